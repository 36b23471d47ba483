"""The comparison of objectives: what it trains next depends on the rows that there are, and all of
its runs are such as train accepts, at equal compute."""

import csv
import importlib
import json

import pytest

from helpers.scripts import ROOT, load_script
from var_jax.cli import main as cli
from var_jax.cli.args import read_config
from var_jax.config import idle_keys
from var_jax.errors import Parser
from var_jax.models import flops

# What a run's files hold, those that the script reads.
META = {
    "state": "done",
    "steps": 10,
    "batch_size": 64,
    "optimizer": {"base_lr": 0.1},
    "flops_per_step": {"exact": 1.0},
    "params": {"total": 10},
}


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
        "generation_flops": 1e9,
        "passes": 7,
        "seconds_per_image": 0.01,
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
    args = {"next_scale": 1.0, "next_token_spiral": 4.0, "masked": 0.25, "diffusion": 2.0}
    assert {(row.arg, row.factor, row.seed) for row in final if row.seed} == {
        (arg, rate, seed) for arg, rate in args.items() for seed in script.SEEDS[1:]
    }
    orders = {"next_token", "next_token_zcurve"}
    assert {row.arg for row in final if row.seed == 0 and not row.size} == orders | set(args)
    assert {row.sampler for row in final if row.arg == "next_scale"} == {"cfg3"}
    smaller = {(row.arg, row.size) for row in asked if row.size}
    assert len(smaller) == 12
    curve = [row.sampler for row in asked if row.num == script.FEW]
    assert {f"euler{n}" for n in script.PASSES} <= set(curve)


def test_machines_that_divide_the_objectives_make_the_rows_of_the_whole_study(script):
    """Every objective's rows are the same whether the others are asked for or not."""

    def asked_for(objectives):
        rows = set()

        def get(row):
            rows.add(row)
            return row_of(script, row, loss=lambda r: abs(r.factor - 1), distance=lambda r: r.seed)

        script.study(get, objectives)
        return rows

    parts = [asked_for([objective]) for objective in script.ARGS]
    assert sum(map(len, parts)) == len(set.union(*parts))
    assert set.union(*parts) == asked_for(tuple(script.ARGS))


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
        script.Row(arg, 1.0, seed=seed, sampler="cfg0", num=script.MANY)
        for arg in ("next_scale", "next_token", "next_token_zcurve")
        for seed in (0, 1)
    ]
    third = script.Row("masked", 1.0, share=script.SHARE, sampler="cfg0", num=script.MANY)
    few = rows[0]._replace(num=script.FEW)
    for row in (*rows, third, few, script.Row("masked", 1.0)):
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
    assert "held_out_loss" in report["next_scale"]


def test_commands_of_every_row_are_ones_that_parse(script, monkeypatch, tmp_path):
    """The options of `train`, `generate` and `evaluate` exist and take these values; samplers of
    diffusion make at most 50 passes, guidance included. Tokenizers are of one recipe."""
    monkeypatch.chdir(ROOT)
    commands = []

    def record(*arguments, **_):
        commands.append(list(map(str, arguments)))
        return True

    monkeypatch.setattr(script, "var_jax", record)
    monkeypatch.setattr(script.run_records, "last_held_out", lambda run: {"loss": 1.0})
    monkeypatch.setattr(script, "costs", lambda row, workdir: {})
    monkeypatch.setattr(script.json, "loads", lambda text: META)
    for name in script.TOKENIZERS:
        script.write_tokenizer(tmp_path, name)
    for objective, samplers in script.SAMPLERS.items():
        for sampler in (*samplers, *(["euler8"] if objective == "diffusion" else [])):
            row = script.Row(script.ARGS[objective][0], 1.0, sampler=sampler, num=script.FEW)
            for name in ("status", "config", "meta"):
                path = tmp_path / row.run / f"{name}.json"
                path.parent.mkdir(exist_ok=True)
                path.write_text("{}")
            (tmp_path / f"{row.name}.evaluation.json").write_text("{}")
            script.make(row, tmp_path)
            evaluations = {"heun": 2 * row.settings.get("steps", 1) - 1}.get(
                row.settings.get("solver"), row.settings.get("steps", 1)
            )
            guided = row.settings["cfg"] > 0
            assert objective != "diffusion" or evaluations * (1 + guided) <= 50
    assert {command[0] for command in commands} == {"train", "tokenize", "generate", "evaluate"}
    for name, *options in commands:
        command = importlib.import_module(f"var_jax.cli.{name}")
        parser = Parser()
        command.add_arguments(parser)
        _, rest = parser.parse_known_args(options)
        assert all(text.startswith("--config.") for text in rest)
    tokenizers = [
        read_config(command[2], [flag for flag in command if flag.startswith("--config.")])
        for command in commands[:4:2]
    ]
    for tokenizer, scales in zip(tokenizers, script.TOKENIZERS.values(), strict=True):
        assert str(tokenizer.tokenizer.scales) == scales
        assert tokenizer.tokenizer.vocab_size == script.CODES
        assert tokenizer.tokenizer.scales.finest == (8, 8)


def test_no_row_is_begun_when_the_time_is_over(script, tmp_path, capsys, monkeypatch):
    """With no hours left the command names the next row, trains nothing, and still ends well."""
    args = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--hours", "0"]
    monkeypatch.setattr("sys.argv", ["rivals_study.py", *args])
    assert script.main() == 0
    assert "next: next_scale_size0_rate0.5_seed0_third" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()
