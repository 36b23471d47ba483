"""Nested dicts of arrays come back from their files as they were, and files are whole or absent."""

import resource

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from helpers.trees import assert_same
from var_jax.errors import UserError
from var_jax.io.array_file import load_arrays, save_arrays


def test_save_arrays_round_trips(tmp_path):
    """Every dtype, nesting and memory order that a model may have is read as it was written."""
    tree = {
        "a": {
            "b": jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3),
            "c": np.array([1, 2], np.int32),
        },
        "d": np.linspace(0, 1, 4, dtype=np.float32).reshape(2, 2).T[::-1],
        "e": np.array([True, False]),
    }
    save_arrays(tmp_path / "x.safetensors", tree)
    assert_same(load_arrays(tmp_path / "x.safetensors"), jax.tree.map(np.asarray, tree))
    assert [f.name for f in tmp_path.iterdir()] == ["x.safetensors"]


def test_save_arrays_takes_sharded_and_transposed_arrays(tmp_path):
    """Arrays that lie on several devices, or are not contiguous, are written whole and in order."""
    mesh = jax.make_mesh((jax.device_count(),), ("data",))
    array = np.arange(jax.device_count() * 6.0, dtype=np.float32).reshape(-1, 6)
    tree = {"x": jax.device_put(array, NamedSharding(mesh, PartitionSpec("data"))), "t": array.T}
    save_arrays(tmp_path / "x", tree)
    assert_same(load_arrays(tmp_path / "x"), {"x": array, "t": array.T})


@pytest.mark.parametrize("size", [0, 4, 60, -1])
def test_load_arrays_refuses_a_truncated_file(tmp_path, size):
    """A file cut off at any place is refused in one line that names it."""
    path = tmp_path / "x.safetensors"
    save_arrays(path, {"a": np.ones((20, 20), np.float32)})
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UserError, match=r"x\.safetensors does not read as safetensors: ") as caught:
        load_arrays(path)
    assert "\n" not in str(caught.value)


def test_load_arrays_refuses_a_missing_file(tmp_path):
    """A missing file is the user's mistake, not a stack trace."""
    with pytest.raises(UserError, match="No such file"):
        load_arrays(tmp_path / "x.safetensors")


def test_save_arrays_on_a_full_disk_keeps_the_file_before(tmp_path):
    """A write that fails leaves the earlier file readable and no temporary file beside it."""
    path = tmp_path / "x.safetensors"
    save_arrays(path, {"a": np.ones(3)})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(UserError, match="cannot write .*: File too large"):
            save_arrays(path, {"a": np.ones(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_same(load_arrays(path), {"a": np.ones(3)})
    assert [f.name for f in tmp_path.iterdir()] == ["x.safetensors"]
