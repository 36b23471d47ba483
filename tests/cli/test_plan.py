"""`var-jax plan`: what it prints and writes, and mistakes before anything is traced."""

import json
import os
import subprocess
import sys

import pytest

from helpers import small
from var_jax.cli.main import main
from var_jax.perf import cost_lines, run_costs, tpu_slices


@pytest.mark.long
def test_plan_prints_and_writes_the_figures(tmp_path, capsys):
    """The JSON has the keys of `aot`'s that both have; the text names chips and verdict."""
    (tmp_path / "config.py").write_text(small.CONFIG_FILE)
    arguments = ["plan", "--config", str(tmp_path / "config.py"), "--chip", "V5E:2x2"]
    assert main([*arguments, "--json", str(tmp_path / "plan.json")]) == 0
    figures = json.loads((tmp_path / "plan.json").read_text())
    assert figures["devices"] == 4 and figures["chip"] == "v5e" and figures["fits"] is True
    assert {"hbm_bytes", "peak_bytes", "flops", "mesh", "images", "steps"} <= figures.keys()
    text = capsys.readouterr().out
    assert "4 devices of v5e as data 4 x model 1" in text and "per device with float32" in text
    assert "policy fsdp, replicas 1" in text and figures["policy"] == "fsdp"


@pytest.mark.parametrize(
    ("chip", "topology"),
    [("V5E:2x2", "v5e:2x2"), ("v5e:4", ""), ("v4:2x2x2", ""), ("v5e:3x3", ""), ("h200:8", "")],
)
def test_plan_names_the_compilers_command_where_it_is_accepted(
    tmp_path, capsys, monkeypatch, chip, topology
):
    """The printed slice is one that `aot` reads; for others, and for GPUs, no command is printed.
    The costs themselves are left out."""
    pytest.importorskip(
        "libtpu", reason="libtpu, the TPU compiler, is not installed (pip install 'var-jax[aot]')"
    )
    monkeypatch.setattr(run_costs, "report", lambda *_: {})
    monkeypatch.setattr(cost_lines, "lines", lambda _: [])
    config = tmp_path / "config.py"
    config.write_text(small.CONFIG_FILE)
    assert main(["plan", "--config", str(config), "--chip", chip]) == 0
    _, command, printed = capsys.readouterr().out.partition("var-jax aot --config ")
    assert bool(command) == bool(topology)
    if topology:
        assert printed.split() == [str(config), "--topology", topology]
        assert tpu_slices.named(topology).chip.name == "v5e"


@pytest.mark.long
@pytest.mark.parametrize(
    ("command", "code"), [(["plan"], 0), (["aot", "--topology", "v5x:4x4"], 2)]
)
def test_commands_about_other_chips_take_none_of_this_host(tmp_path, command, code):
    """JAX is on its CPU after the command, although the environment asks for a platform whose start
    would fail; a process of its own, because JAX chooses its platform once."""
    (tmp_path / "config.py").write_text(small.CONFIG_FILE)
    name, *options = command
    arguments = [name, "--config", str(tmp_path / "config.py"), *options]
    script = (
        f"from var_jax.cli.main import main; code = main({arguments!r})\n"
        "import jax; print('ended', code, jax.default_backend())"
    )
    run = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "JAX_PLATFORMS": "nonsense"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.stdout.splitlines()[-1:] == [f"ended {code} cpu"], run.stderr


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
