"""Fixtures that tests of commands share."""

import numpy as np
import pytest
from PIL import Image

from helpers import small
from helpers.hub_server import hub, hub_service  # noqa: F401
from var_jax.cli.main import main
from var_jax.io.torch_convert import write_torch


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Published files of a reference case: tokenizer.safetensors and transformer.safetensors."""
    directory = tmp_path_factory.mktemp("weights")
    write_torch(directory, *small.reference(small.CASES[0])[0].to_torch())
    return directory


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("config") / "small_run.py"
    file.write_text(small.CONFIG_FILE)
    return file


@pytest.fixture
def refused(capsys, tmp_path, monkeypatch):
    """Runs a command and gives its one line on stderr; `{out}` is where nothing may be written."""
    monkeypatch.setenv(
        "SLURM_NTASKS", "1"
    )  # alone: this process has used JAX, and cannot join others any more

    def run(*argv) -> str:
        before = sorted(tmp_path.rglob("*"))
        capsys.readouterr()
        code = main([str(a).replace("{out}", str(tmp_path / "out")) for a in argv])
        printed = capsys.readouterr()
        assert code == 2 and printed.out == ""
        assert printed.err.startswith("var-jax: ") and printed.err.count("\n") == 1, printed.err
        assert sorted(tmp_path.rglob("*")) == before
        return printed.err

    return run


@pytest.fixture
def image(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8), dtype=np.uint8)).save(
        tmp_path / "image.png"
    )
    return tmp_path / "image.png"
