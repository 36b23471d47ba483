"""Studies as they are run from the command line, on digits and small models."""

import types

import pytest

from helpers import toy_network
from helpers.studies import REFERENCE
from var_jax.evaluate import feature_networks


@pytest.fixture
def run_study(model_dir, digits_dir, tmp_path, monkeypatch):
    """Returns a function that runs a study's `main` on the digits and returns its exit code.

    Its output directory is its attribute `out`. Features are those of a toy network.
    """
    monkeypatch.setattr(feature_networks, "load", lambda *_: toy_network.network())
    out = tmp_path / "out"

    def run(module: types.ModuleType, *options: str, model=model_dir, num: int = 10) -> int:
        arguments = {
            "--model": model,
            "--reference": REFERENCE,
            "--training": "digits:train[:80]",
            "--resize": "stretch",
            "--data-dir": digits_dir,
            "--num": num,
            "--resamples": 0,
            "--cache": "",
            "--out": out,
        }
        command = [str(part) for pair in arguments.items() for part in pair]
        return module.main([*command, *options])

    run.out = out
    return run
