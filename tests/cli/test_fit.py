"""`var-jax fit`: laws, plots and predictions of tables and sweeps, and mistakes."""

import argparse
import json
import math
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from var_jax.cli import fit
from var_jax.cli.main import main
from var_jax.errors import UserError
from var_jax.studies.planted_laws import Planted

DATA = pathlib.Path(__file__).parents[1] / "scaling" / "data"
SINGLE = (1.8, math.log(400), 0.34)
JOINT = (1.82, math.log(478), 0.347, math.log(2143), 0.367)


def single(runs=10, noise=0.0):
    return planted_runs(Planted("", SINGLE, (2e7,), (2e9,), ((runs,),), noise))


def joint(shape, noise):
    return planted_runs(Planted("", JOINT, (3e7, 6e8), (3e9, 6e10), (shape,), noise))


def planted_runs(planted):
    p = planted.draw(np.random.default_rng(1))
    return np.exp(p.logx), np.exp(p.logy), planted.theta


def run(*argv):
    parser = argparse.ArgumentParser()
    fit.add_arguments(parser)
    return fit.run(parser.parse_args([str(arg) for arg in argv]))


def table_file(path, x, y, names, **columns):
    header = ["run", *names, "loss", *columns]
    lines = [",".join(header)]
    for i, (row, loss) in enumerate(zip(x, y, strict=True)):
        lines.append(",".join(map(str, [f"r{i}", *row, loss, *(c[i] for c in columns.values())])))
    path.write_text("\n".join(lines) + "\n")
    return path


def read_fit(out):
    return json.loads((out / "fit.json").read_text())


def test_fit_of_a_grid_gives_every_law_plot_and_prediction(tmp_path, capsys):
    """The true parameters lie in the intervals, every plot has ink, and the optimum of a compute
    budget costs that budget and has the law's loss in its interval."""
    x, y, theta = joint(shape=(8, 5), noise=1e-3)
    compute = 6 * x[:, 0] * x[:, 1]
    source = table_file(tmp_path / "runs.csv", x, y, ["params", "tokens"], compute=compute)
    out = tmp_path / "out"
    assert (
        run(
            source,
            "--out",
            out,
            "--resamples",
            100,
            "--predict",
            "params=1e10",
            "--predict",
            "compute=1e22",
        )
        == 0
    )
    result = read_fit(out)
    inputs = ("params", "compute", "params+tokens")
    assert set(result["laws"]) == {f"loss~{i}" for i in inputs}
    law = result["laws"]["loss~params+tokens"]
    assert law["form"] == "E + A * N**-alpha + B * D**-beta"
    for name, true in zip(("E", "A", "alpha", "B", "beta"), theta, strict=True):
        true = math.exp(true) if name in "AB" else true
        low, high = law[name]["ci95"]
        assert low < true < high and low < law[name]["value"] < high
    assert {"pearson", "n_runs", "holdout_relative_error", "starts_agreeing", "warnings"} <= set(
        law
    )
    assert law["n_runs"] == 40
    for name in (
        "laws_params",
        "laws_compute",
        "laws_joint",
        "frontier",
        "isoflop",
        "residuals",
        "bootstrap",
    ):
        assert np.ptp(np.asarray(Image.open(out / f"{name}.png"))) > 0
    best = next(p for p in result["predictions"] if p["law"] == "loss~params+tokens")
    share = 6 * best["optimal_params"]["value"] * best["optimal_tokens"]["value"]
    assert share == pytest.approx(1e22, rel=1e-6)
    exact = JOINT[0] + sum(
        math.exp(JOINT[i]) * best[n]["value"] ** -JOINT[i + 1]
        for i, n in ((1, "optimal_params"), (3, "optimal_tokens"))
    )
    assert best["loss"]["ci95"][0] < exact < best["loss"]["ci95"][1]
    for name in ("optimal_params", "optimal_tokens"):
        low, high = best[name]["ci95"]
        assert low < best[name]["value"] < high
    assert best["loss"]["new_run95"][0] < best["loss"]["ci95"][0]
    printed = capsys.readouterr().out
    assert "loss~params+tokens at compute 1e+22" in printed and "optimal params" in printed
    report = (out / "report.md").read_text()
    assert "![frontier.png](frontier.png)" in report and "Predictions" in report


def test_fit_skips_laws_of_missing_columns_and_says_why_it_refuses_one(tmp_path):
    """Three sizes and no tokens leave one law, whose entry has the reason and empty values."""
    x, y, _ = single(runs=3)
    assert (
        run(
            table_file(tmp_path / "a.csv", x, y, ["params"]),
            "--out",
            tmp_path / "o",
            "--resamples",
            0,
        )
        == 0
    )
    law = read_fit(tmp_path / "o")["laws"]
    assert list(law) == ["loss~params"]
    assert law["loss~params"]["alpha"] == {"value": None, "ci95": [None, None]}
    assert "few-sizes" in law["loss~params"]["warnings"][0]


def test_fit_takes_a_given_floor_and_fits_every_column(tmp_path):
    """The floor that is given for one column is that of its law, without an interval; the other
    column has a law of its own."""
    x, y, theta = single(noise=1e-3)
    source = table_file(tmp_path / "a.csv", x, y, ["params"], err_last=y / 5)
    run(source, "--out", tmp_path / "o", "--resamples", 0, "--irreducible", f"loss={theta[0]}")
    laws = read_fit(tmp_path / "o")["laws"]
    assert set(laws) == {"loss~params", "err_last~params"}
    law = laws["loss~params"]
    assert law["E"] == {"value": theta[0], "ci95": [theta[0], theta[0]], "given": True}
    assert law["alpha"]["ci95"][0] < theta[2] < law["alpha"]["ci95"][1]


def test_fit_reads_a_strangers_table(tmp_path):
    """A published table of 104 runs is read by a mapping of its column names."""
    assert (
        run(
            DATA / "gadre_104.csv",
            "--out",
            tmp_path,
            "--map",
            "run=name,loss=loss0",
            "--resamples",
            0,
        )
        == 0
    )
    law = read_fit(tmp_path)["laws"]["loss~params+tokens"]
    assert law["n_runs"] == 104
    assert 0 < law["alpha"]["value"] < 1


def test_fit_of_two_columns_is_a_pure_power_law(tmp_path):
    """Five groups of published optima give five laws, with the published exponent."""
    source = DATA / "optimal_pairs_refinedweb.csv"
    assert (
        run(
            source,
            "--out",
            tmp_path,
            "--law",
            "n~flops",
            "--sigma",
            "n_star_std",
            "--group",
            "setting",
            "--predict",
            "flops=1e20",
        )
        == 0
    )
    result = read_fit(tmp_path)
    assert len(result["laws"]) == len(result["predictions"]) == 5
    law = result["laws"]["n~flops[rw|tuned|short|const|standard]"]
    assert law["exponent"]["value"] == pytest.approx(0.4969, abs=1e-4)
    assert (tmp_path / "power.png").exists()


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--predict", "params"], "name=value"),
        (["--predict", "params=-1"], "positive"),
        (["--predict", "tokens=1e9"], "no law takes that"),
        (["--resamples", "-1"], "0 or more"),
        (["--map", "params"], "name=value"),
        (["--irreducible", "x"], "number from 0"),
        (["--irreducible", "los=1"], "not fitted"),
        (["--law", "n"], "y~x"),
        (["--sigma", "params"], "--law"),
        (["--law", "loss~param"], "did you mean 'params'"),
        (["--huber", "0"], "above 0"),
        (["--next", "many"], "--next 'many' is not a positive number"),
        (["--next", "1e20"], "--next needs a determined joint law"),
    ],
)
def test_fit_names_mistakes_and_leaves_nothing_behind(tmp_path, arguments, words):
    """One line has the option and what would be right, and there is no output directory."""
    x, y, _ = single(runs=6)
    source = table_file(tmp_path / "a.csv", x, y, ["params"])
    with pytest.raises(UserError, match=words) as error:
        run(source, "--out", tmp_path / "o", "--resamples", 0, *arguments)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "o").exists()


def test_fit_names_a_table_without_losses_or_inputs(tmp_path):
    """A table needs a loss and the parameters or the compute."""
    for text, words in (
        ("run,params\na,1\n", "starts with loss or err"),
        ("run,loss\na,1\n", "params nor a compute"),
    ):
        (tmp_path / "a.csv").write_text(text)
        with pytest.raises(UserError, match=words):
            run(tmp_path / "a.csv", "--out", tmp_path / "o")


@pytest.mark.parametrize("law", [(), ("--law", "loss~params")])
@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("a,1e6,nan\nb,2e6,\nc,3e6,0\n", "a: loss is 'nan'"),
        ("a,0,3\nb,-1,2\n", "a: params is '0'"),
        ("a,1e6,oops\n", "a: loss is 'oops'"),
        ("a,1e6,\nb,,3\n", "b: params is ''"),
    ],
)
def test_fit_refuses_a_table_without_usable_rows(tmp_path, law, rows, words):
    """An empty report would pass for a fit: the command ends in one line that quotes the first
    reasons, and writes nothing."""
    (tmp_path / "a.csv").write_text("run,params,loss\n" + rows)
    with pytest.raises(UserError, match=f"no row can be fitted.*{words}") as error:
        run(tmp_path / "a.csv", "--out", tmp_path / "o", *law)
    assert "\n" not in str(error.value) and not (tmp_path / "o").exists()


def test_fit_of_losses_that_are_all_nan_exits_with_2(tmp_path, capsys):
    """A JSONL table and a CSV table whose losses are all NaN end the command with exit code 2 and
    one line."""
    (tmp_path / "a.jsonl").write_text('{"params": 1e6, "loss": NaN}\n{"params": 2e6}\n')
    (tmp_path / "a.csv").write_text("run,params,loss\na,1e6,nan\nb,2e6,nan\n")
    for name in ("a.jsonl", "a.csv"):
        assert main(["fit", str(tmp_path / name), "--out", str(tmp_path / "o")]) == 2
        error = capsys.readouterr().err
        assert len(error.strip().splitlines()) == 1 and "loss" in error
        assert not (tmp_path / "o").exists()


def test_fit_refuses_a_table_whose_rows_all_contradict(tmp_path):
    """No row remains, and the error has the reason."""
    (tmp_path / "a.csv").write_text("run,params,loss\na,1e6,3\na,1e6,2\n")
    with pytest.raises(UserError, match="no row can be fitted.*a: contradicts another row"):
        run(tmp_path / "a.csv", "--out", tmp_path / "o")


def test_fit_of_a_curve_of_steps_says_what_is_missing(tmp_path):
    """A run's own metrics know steps and losses, and neither sizes nor costs."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.0}\n')
    with pytest.raises(
        UserError, match="neither a params nor a compute column.*directory of a sweep; step alone"
    ):
        run(tmp_path / "metrics.jsonl", "--out", tmp_path / "o")


@pytest.mark.parametrize(
    ("header", "match"),
    [
        ("params,Loss", "--map loss=COLUMN.*'Loss'"),
        ("Params,loss", "--map params=COLUMN.*'Params'"),
    ],
)
def test_fit_proposes_the_column_that_is_spelled_alike(tmp_path, header, match):
    """Tables of other programs capitalize their columns; which one is meant, the user says."""
    rows = "".join(f"{10.0**i},{4 - i / 10}\n" for i in range(6, 12))
    (tmp_path / "a.csv").write_text(f"{header}\n{rows}")
    with pytest.raises(UserError, match=match):
        run(tmp_path / "a.csv", "--out", tmp_path / "o")


def test_fit_leaves_out_an_empty_size_beside_compute(tmp_path):
    """Rows without params are left out of curves by size, and the other rows are fitted."""
    x, y, _ = single(noise=1e-3)
    compute = 6e9 * x[:, 0] * np.linspace(1, 2, len(x))
    source = table_file(tmp_path / "a.csv", x, y, ["params"], compute=compute)
    source.write_text(source.read_text() + "extra,,3.0,1e20\n")
    assert run(source, "--out", tmp_path / "o", "--resamples", 0) == 0
    assert read_fit(tmp_path / "o")["laws"]["loss~params"]["n_runs"] == len(x)


def test_fit_imports_no_jax(tmp_path):
    """Fitting a table takes seconds, several of which an import of JAX would add."""
    x, y, _ = single(runs=6, noise=1e-3)
    source = table_file(tmp_path / "a.csv", x, y, ["params"])
    argv = ["fit", str(source), "--out", str(tmp_path / "o"), "--resamples", "10"]
    code = (
        "import sys; from var_jax.cli.main import main; "
        f"assert main({argv}) == 0; assert not {{'jax', 'flax'}} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_fit_has_the_facts_that_an_author_states(tmp_path, capsys):
    """A table does not say how its parameters were counted: the checklist has what the command is
    told, and a topic that it does not have is refused."""
    planted = Planted("", (1.8, 6.0, 0.34), (2e7,), (2e9,), ((8,),), 0.001)
    p = planted.draw(np.random.default_rng(0))
    x, y = np.exp(p.logx[:, 0]), np.exp(p.logy)
    rows = [f"r{i},{n},{loss}" for i, (n, loss) in enumerate(zip(x, y, strict=True))]
    (tmp_path / "runs.csv").write_text("\n".join(["run,params,loss", *rows]))
    command = [
        "fit",
        str(tmp_path / "runs.csv"),
        "--out",
        str(tmp_path / "out"),
        "--resamples",
        "0",
    ]
    assert main([*command, "--fact", "parameters=without embeddings"]) == 0
    assert "| parameters counted | without embeddings |" in (tmp_path / "out/report.md").read_text()
    assert main([*command, "--fact", "learning rates=tuned"]) == 0
    assert "| learning rates | tuned |" in (tmp_path / "out/report.md").read_text()
    assert main([*command, "--fact", "size=big"]) == 2
    assert "--fact 'size=big' is not of the form TOPIC=TEXT" in capsys.readouterr().err
