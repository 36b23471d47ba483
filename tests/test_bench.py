"""`var-jax bench` where JAX, Flax, Optax, einops, ml_collections and NumPy are installed, and nothing else of ours."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import small

ROOT = Path(__file__).parent.parent
# Refuses what our own modules and configs import beyond the six (absl is ml_collections' own); what those six bring
# along for themselves is theirs. The project is not installed there either.
BARE = """
import builtins, importlib.metadata, sys
allowed = {"jax", "flax", "optax", "einops", "ml_collections", "numpy", "absl", "var_jax", *sys.stdlib_module_names}
plain, version = builtins.__import__, importlib.metadata.version

def guarded(name, globals=None, locals=None, fromlist=(), level=0):
    importer = (globals or {}).get("__name__", "")
    ours = importer.partition(".")[0] == "var_jax" or (globals or {}).get("__file__", "").endswith("small_run.py")
    if ours and not level and name.partition(".")[0] not in allowed:
        raise ModuleNotFoundError(f"{importer} imports {name}")
    return plain(name, globals, locals, fromlist, level)

def missing(name):
    if name == "var-jax":
        raise importlib.metadata.PackageNotFoundError(name)
    return version(name)

builtins.__import__, importlib.metadata.version = guarded, missing
from var_jax import bench
from var_jax.cli.main import main
bench.MATRIX["cpu"] = 64
sys.exit(main(sys.argv[1:]))
"""


def bare(*argv) -> subprocess.CompletedProcess:
    environment = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0", "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", BARE, *map(str, argv)], env=environment, capture_output=True,
                          text=True, check=False)


@pytest.mark.parametrize("what", ["sample", "train"])
def test_bench_runs_where_little_is_installed(what, tmp_path):
    config, report = tmp_path / "small_run.py", tmp_path / "report.json"
    config.write_text(small.CONFIG_FILE)
    run = bare("bench", what, "--config", config, "--batch", 2, "--repeats", 1, "--json", report)
    assert run.returncode == 0, run.stderr
    found = json.loads(report.read_text())
    assert found["batch"] == 2 and found["ratio"] == pytest.approx(found["seconds"] / found["floor_seconds"])


def test_the_guard_refuses_what_is_not_among_them(tmp_path):
    run = bare("sample", "--model", tmp_path, "--labels", "0", "--out", tmp_path / "out.png")
    assert run.returncode == 1 and "ModuleNotFoundError: var_jax" in run.stderr
