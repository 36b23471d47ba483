"""A SLURM of one node for the tests of this folder."""

import tempfile
from pathlib import Path

import pytest

from slurm import cluster as slurm_cluster


@pytest.fixture(scope="session")
def cluster():
    """A running SLURM that the commands of the test find."""
    if missing := slurm_cluster.missing():
        pytest.skip(
            f"no SLURM on this machine ({', '.join(missing)} missing): "
            "apt-get install slurm-wlm munge"
        )
    # Not below pytest's own directory: the path of a socket may not be long.
    with (
        tempfile.TemporaryDirectory(prefix="slurm") as directory,
        slurm_cluster.started(Path(directory)) as running,
    ):
        yield running


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    """Sets the environment of jobs: one CPU device per process in place of the eight of the tests,
    and programs that are compiled once and fast."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("XLA_FLAGS", raising=False)
        patch.setenv("JAX_PLATFORMS", "cpu")
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "xla"))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
        yield
