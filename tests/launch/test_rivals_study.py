"""The comparison of objectives: what it trains next depends on the rows that there are, and all of
its runs are such as train accepts, at equal compute."""

import csv
import json

import pytest

from helpers.scripts import ROOT, load_script
from var_jax.cli import main as cli
from var_jax.cli.args import read_config
from var_jax.config import idle_keys
from var_jax.models import flops


@pytest.fixture(scope="module")
def script():
    return load_script("rivals_study")


def row_of(script, row, loss, distance):
    """What `make` returns, with a loss and a distance by the row."""
    ends = {"value": distance(row), "ci95": [distance(row) - 5, distance(row) + 5]}
    share = {name: {"value": 0.5} for name in ("precision", "recall", "agreement")}
    return {
        **row._asdict(),
        "objective": row.objective,
        "train_flops": script.FLOPS * row.share,
        "images_seen": 1000,
        "params": 10,
        "held_out_loss": loss(row),
        "seconds_per_image": 0.1,
        "evaluation": {"metrics": {"frechet_distance": ends, **share}},
    }


def test_study_goes_on_where_the_grid_of_rates_ends(script):
    """Rates are added until the best one has a worse one on either side; sampler and order are
    those of the smallest distance; only the best row of an objective gets further seeds."""
    best_rates = {"next_scale": 1.0, "next_token": 4.0, "masked": 0.25, "diffusion": 2.0}
    asked = []

    def get(row):
        asked.append(row)
        return row_of(
            script,
            row,
            loss=lambda r: abs(r.factor - best_rates[r.objective]),
            distance=lambda r: 100 - ("spiral" in r.arg) - (r.sampler == "cfg3"),
        )

    script.study(get)
    factors = {
        objective: {row.factor for row in asked if row.objective == objective and not row.sampler}
        for objective in best_rates
    }
    assert factors == {
        "next_scale": {0.5, 1.0, 2.0},
        "next_token": {0.5, 1.0, 2.0, 4.0, 8.0},
        "masked": {0.125, 0.25, 0.5, 1.0, 2.0},
        "diffusion": {0.5, 1.0, 2.0, 4.0},
    }
    final = [row for row in asked if row.num == script.MANY]
    assert {(row.arg, row.factor, row.seed) for row in final} == {
        (arg, rate, seed)
        for arg, rate in (
            ("next_scale", 1.0),
            ("next_token_spiral", 4.0),
            ("masked", 0.25),
            ("diffusion", 2.0),
        )
        for seed in script.SEEDS
    }
    assert {row.sampler for row in final if row.arg == "next_scale"} == {"cfg3"}
    smaller = {(row.arg, row.size) for row in asked if row.size}
    assert len(smaller) == 12
    curve = [row.sampler for row in asked if row.sampler.startswith("euler") and row.num]
    assert {f"euler{n}" for n in script.PASSES} <= set(curve)


def test_options_are_runs_of_equal_compute(script, monkeypatch, tmp_path):
    """Every objective and size takes as many steps as its FLOPs allow, to within one step, and no
    flag is without effect."""
    monkeypatch.chdir(ROOT)
    sizes = {"maps": "1,2,3,4,5,6,8", "map": "8"}
    for args in script.ARGS.values():
        for arg in args:
            for size in (0, *script.SMALLER):
                row = script.Row(arg, 2.0, size=size, share=0.5, seed=1)
                chosen = script.options(row, tmp_path)
                idle_keys.refuse_flags(
                    read_config(f"configs/rivals.py:{arg}", chosen), idle_keys.flag_keys(chosen)
                )
                name = "map" if f"tokenizer_dir={tmp_path}/maps" not in " ".join(chosen) else "maps"
                tokenizer = [f"--config.tokenizer.scales={sizes[name]}"]
                tokenizer.append("--config.tokenizer.vocab_size=1024")
                config = read_config(f"configs/rivals.py:{arg}", [*chosen, *tokenizer])
                per_step = flops.train_flops_per_image(config.transformer) * config.batch_size
                budget = 0.5 * (script.SMALLER[size][2] if size else script.FLOPS)
                assert abs(config.steps * per_step - budget) <= per_step
                assert config.seed == 1 and config.eval_every == config.steps


def test_table_is_one_that_compare_reads(script, tmp_path, capsys):
    """Rows at all of the compute are in it with their interval and seed, those that choose a rate
    or a sampler are not; compare draws it."""
    rows = [
        script.Row(arg, 1.0, seed=seed, sampler="cfg0", num=10)
        for arg in ("next_scale", "next_token", "next_token_zcurve")
        for seed in (0, 1)
    ]
    third = script.Row("masked", 1.0, share=script.SHARE, sampler="cfg0", num=10)
    for row in (*rows, third, script.Row("masked", 1.0)):
        result = row_of(script, row, loss=lambda r: 1.0, distance=lambda r: 100 + r.seed)
        if not row.sampler:
            del result["evaluation"]
        (tmp_path / f"{row.name}.json").write_text(json.dumps(result))
    table = script.write_table(tmp_path)
    with table.open() as file:
        read = list(csv.DictReader(file))
    assert [row["objective"] for row in read] == [
        name for name in ("next_scale", "next_token", "next_token_zcurve") for _ in range(2)
    ]
    assert cli.main(["compare", str(table), "--out", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out/compare.json").read_text())
    assert set(report) >= {"next_scale", "next_token", "next_token_zcurve"}


def test_no_row_is_begun_when_the_time_is_over(script, tmp_path, capsys, monkeypatch):
    """With no hours left the command names the next row, trains nothing, and still ends well."""
    args = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--hours", "0"]
    monkeypatch.setattr("sys.argv", ["rivals_study.py", *args])
    assert script.main() == 0
    assert "next: next_scale_size0_rate0.5_seed0_third" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()
