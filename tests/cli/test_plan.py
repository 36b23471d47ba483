"""`var-jax plan`: what it prints and writes, and mistakes before anything is traced."""

import json

import pytest

from helpers import small
from var_jax.cli.main import main


def test_plan_prints_and_writes_the_figures(tmp_path, capsys):
    """The JSON has the keys of `aot`'s that both have; the text names chips, verdict and the
    command that asks the compiler."""
    (tmp_path / "config.py").write_text(small.CONFIG_FILE)
    arguments = ["plan", "--config", str(tmp_path / "config.py"), "--chip", "V5E:2x2"]
    assert main([*arguments, "--json", str(tmp_path / "plan.json")]) == 0
    figures = json.loads((tmp_path / "plan.json").read_text())
    assert figures["devices"] == 4 and figures["chip"] == "v5e" and figures["fits"] is True
    assert {"hbm_bytes", "peak_bytes", "flops", "mesh", "images", "steps"} <= figures.keys()
    text = capsys.readouterr().out
    assert "4 v5e as data 4 x model 1" in text and "per device with float32" in text
    assert f"var-jax aot --config {tmp_path / 'config.py'} --topology V5E:2x2" in text


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--chip", "h20"], "--chip 'h20' is not in the table; did you mean 'h200'"),
        (["--chip", "h200:0"], "a number of chips or a slice's shape, such as h200:8"),
        (["--mfu", "40"], "--mfu is 40.0; it must be above 0 and at most 1"),
        (["--images", "0"], "--images is 0; it must be at least 1"),
        (["--json", "nowhere/a.json"], "in a directory that exists"),
    ],
)
def test_plan_names_a_mistake(tmp_path, capsys, args, message):
    """One line names the flag, its value and the right ones."""
    (tmp_path / "config.py").write_text(small.CONFIG_FILE)
    assert main(["plan", "--config", str(tmp_path / "config.py"), *args]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
