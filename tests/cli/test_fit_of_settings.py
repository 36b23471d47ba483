"""`var-jax fit` of a sweep over learning rates and batch sizes, and of tables without a law."""

import itertools
import json
import math

import pytest

from var_jax.cli.main import main


def run(source, out, *options):
    argv = ["fit", str(source), "--out", str(out), "--resamples", "0", *options]
    assert main(argv) == 0


def read_fit(out):
    return json.loads((out / "fit.json").read_text())


def test_fit_of_a_sweep_over_rates_and_batches(tmp_path, capsys):
    """A sweep's directory says the rates and batches itself: both laws have the planted exponents,
    the laws of losses use one run per size and budget, and the command says so. A table of the same
    runs whose columns have other names gives the same by --map."""
    lines = ["name,params,tokens,loss,lr,images"]
    for i, (size, tokens, batch, factor) in enumerate(
        itertools.product((1e5, 4e5, 1.6e6, 6.4e6), (1e7, 4e7, 1.6e8), (8, 16, 32), (0.5, 1, 2, 4))
    ):
        best = 4 * size**-0.5 * (batch / 16) ** 0.5
        rate = best * factor * 0.6
        best_batch = 15 * (tokens / 4e7) ** 0.2
        loss = 2 + 300 * size**-0.45 + 900 * tokens**-0.4
        loss *= 1 + 0.02 * math.log(rate / best) ** 2 + 0.01 * math.log(batch / best_batch) ** 2
        directory = tmp_path / "sweep" / f"r{i:03}"
        directory.mkdir(parents=True)
        steps = round(tokens / (batch * 100))
        meta = {
            "params": {"total": size, "body": size},
            "tokens_per_step": batch * 100,
            "flops_per_step": 6 * size * batch * 100,
        }
        optimizer = {"base_lr": rate * 256 / batch, "schedule": "cooldown"}
        config = {"steps": steps, "batch_size": batch, "optimizer": optimizer}
        record = {"step": steps, "split": "val", "loss": loss}
        for name, content in (
            ("meta.json", meta),
            ("config.json", config),
            ("metrics.jsonl", record),
            ("status.json", {"state": "done"}),
        ):
            (directory / name).write_text(json.dumps(content))
        tokens = steps * batch * 100
        lines.append(f"r{i:03},{size},{tokens},{loss!r},{rate!r},{batch}")
    run(tmp_path / "sweep", tmp_path / "o", "--forms", "none")
    result = read_fit(tmp_path / "o")
    laws = result["optima"]["laws"]
    rate_law = laws["learning_rate~params+tokens+batch_size"]
    for name, true in (("a", -0.5), ("b", 0), ("g", 0.5)):
        assert rate_law[name]["value"] == pytest.approx(true, abs=0.01)
    assert laws["batch_size~tokens"]["b"]["value"] == pytest.approx(0.2, abs=0.01)
    assert result["laws"]["loss~params+tokens"]["n_runs"] == 12
    assert (tmp_path / "o" / "optima.png").exists()
    assert "## Learning rate and batch size" in (tmp_path / "o" / "report.md").read_text()
    printed = capsys.readouterr().out
    assert "best-setting: 132 runs" in printed and "best learning_rate~" in printed

    (tmp_path / "a.csv").write_text("\n".join(lines) + "\n")
    names = "run=name,learning_rate=lr,batch_size=images"
    run(tmp_path / "a.csv", tmp_path / "o2", "--forms", "none", "--map", names)
    other = read_fit(tmp_path / "o2")["optima"]["laws"]
    for name in "abg":
        value = other["learning_rate~params+tokens+batch_size"][name]["value"]
        assert value == pytest.approx(rate_law[name]["value"], abs=1e-9)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty file"),
        ("run,params,loss\n", "no runs"),
        ("run,params,loss\na,1e6,3\n", "one run, a"),
        ("run,params,loss\na,1e6,-3\nb,2e6,-2\n", "no row can be fitted"),
        ("run,params,loss\na,1e6,x\nb,2e6,y\n", "no row can be fitted"),
        ("run,params,loss\na,small,3\nb,large,2\n", "no row can be fitted"),
    ],
)
def test_fit_of_a_bad_table_exits_with_2(tmp_path, capsys, text, words):
    """Tables without two usable runs end the command with exit code 2 and one line, and leave no
    report that would pass for a fit."""
    (tmp_path / "a.csv").write_text(text)
    assert main(["fit", str(tmp_path / "a.csv"), "--out", str(tmp_path / "o")]) == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1 and words in error
    assert not (tmp_path / "o").exists()


def test_fit_leaves_out_a_column_of_text(tmp_path):
    """A column whose name begins with loss and holds words has no law, and a warning names it; the
    other column is fitted, and is the one by which forms are compared."""
    sizes = [2e7 * 1.7**i for i in range(9)]
    rows = "".join(f"{n},{1.8 + 400 * n**-0.34},cross-entropy\n" for n in sizes)
    (tmp_path / "a.csv").write_text("params,loss_val,loss_kind\n" + rows)
    run(tmp_path / "a.csv", tmp_path / "o")
    result = read_fit(tmp_path / "o")
    assert list(result["laws"]) == ["loss_val~params"]
    assert "best_form" in result["laws"]["loss_val~params"]
    assert any(note.startswith("no-numbers: loss_kind") for note in result["warnings"])
