"""Convolutions as the TPU compiler divides them among the chips of a slice."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from var_jax.config.model import TokenizerConfig
from var_jax.config.scales import Scales
from var_jax.devices import sharding
from var_jax.models import cnn, discriminator
from var_jax.perf import hlo, tpu_slices, uncached

pytest.importorskip(
    "libtpu", reason="libtpu, the TPU compiler, is not installed (pip install 'var-jax[aot]')"
)

CHANNELS, CHIPS = 128, 16
CONFIG = TokenizerConfig(Scales.parse("1,2"), in_channels=3, channels=CHANNELS, dtype="bfloat16")


@pytest.mark.long
@pytest.mark.parametrize(
    ("module", "dtype"),
    [
        (cnn.Conv(CHANNELS, CONFIG), "bfloat16"),
        (cnn.Conv(CHANNELS, dataclasses.replace(CONFIG, dtype="float32")), "float32"),
        (discriminator.Conv(CHANNELS, 3), "float32"),
    ],
    ids=["tokenizer", "tokenizer_float32", "discriminator"],
)
def test_kernels_are_gathered_and_not_sent_around(module: nn.Module, dtype):
    """The kernel's output channels are divided over the chips, and so are the images. Left to
    itself, the compiler sends the channels around the ring, a permutation for each chip's, and
    executes nearly twice the FLOPs of the forward and the backward pass. Gathers bring the kernel
    together in bfloat16, which a TPU multiplies float32 in as well, and the FLOPs are hardly more
    than the analytic."""
    devices = tpu_slices.named("v5e:4x4").devices
    mesh = Mesh(np.array(devices).reshape(CHIPS, 1), ("data", "model"))
    shape = (4 * CHIPS, 64, 64, CHANNELS)
    small = jnp.zeros((1, 8, 8, CHANNELS), dtype)
    boxed = jax.eval_shape(module.init, jax.random.key(0), small)["params"]

    def described(leaf):
        names, size = sharding.names_and_shape(leaf)
        where = NamedSharding(mesh, sharding.spec_for_shape(names, size, mesh.shape))
        return jax.ShapeDtypeStruct(size, jnp.float32, sharding=where)

    params = jax.tree.map(described, boxed, is_leaf=sharding.is_boxed)
    assert params["kernel"].sharding.spec[-1] == "data"
    rows = NamedSharding(mesh, PartitionSpec("data"))
    maps = jax.ShapeDtypeStruct(shape, dtype, sharding=rows)

    def gradients(params, maps):
        result, pull_back = jax.vjp(lambda p, x: module.apply({"params": p}, x), params, maps)
        return pull_back(result)

    wheres = jax.tree.map(lambda leaf: leaf.sharding, params), rows
    with jax.set_mesh(mesh), uncached.compilation():
        compiled = jax.jit(gradients, out_shardings=wheres).lower(params, maps).compile()
    program = hlo.Program(compiled.as_text() or "")
    collectives = program.collectives()
    assert "collective-permute" not in {one.kind for one in collectives}
    gathered = {one.bytes for one in collectives if one.kind == "all-gather"}
    assert gathered == {9 * CHANNELS**2 * jnp.dtype("bfloat16").itemsize}
    analytic = 3 * 2 * 9 * CHANNELS**2 * np.prod(shape[:3]) / CHIPS
    assert program.matrix_flops() < 1.3 * analytic
