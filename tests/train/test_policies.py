"""A step and a resumption under each policy of the mesh are those of one device."""

import dataclasses
import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import batches, small
from helpers.mesh_steps import assert_same_step, step_on
from var_jax.config.train import MeshConfig
from var_jax.devices import gathering, sharding
from var_jax.devices.mesh import make_mesh
from var_jax.io.checkpoint import Checkpoints
from var_jax.objectives import registry
from var_jax.train.program import Program

pytestmark = pytest.mark.usefixtures("compiled_fast")

SLOW = pytest.mark.slow  # each policy compiles a program of its own
BATCH = 8
# Its heads, MLP and vocabulary divide by 8, as its width does.
TRANSFORMER = dataclasses.replace(small.TRANSFORMER, width=32, heads=8, remat="dots")
CONFIG = small.train_config("transformer", "", transformer=TRANSFORMER, batch_size=BATCH)
ONE = MeshConfig(1, 1)
ZERO1 = MeshConfig(8, 1, policy="zero1")
HSDP = MeshConfig(8, 1, policy="hsdp", replicas=2)
BOTH_AXES = MeshConfig(4, 2, policy="zero1")
LAYOUTS = {
    "zero1": ZERO1,
    "hsdp of 2 replicas": HSDP,
    "hsdp of 1": MeshConfig(8, 1, policy="hsdp"),
    "zero1 of 4 replicas": MeshConfig(8, 1, policy="zero1", replicas=4),
    "zero1 with a model axis": BOTH_AXES,
    "replicas of 4 x 2": MeshConfig(4, 2, policy="hsdp", replicas=2),
}


@pytest.fixture(scope="module")
def batch() -> dict[str, np.ndarray]:
    return batches.labeled_tokens(BATCH)


def program(layout: MeshConfig, config=CONFIG) -> Program:
    config = dataclasses.replace(config, mesh=layout)
    devices = jax.devices()[: layout.data * layout.model]
    return Program(registry.with_frozen_shapes(config), make_mesh(layout, devices))


@pytest.fixture(scope="module")
def start():
    """Parameters that every layout starts from."""
    return jax.tree.map(np.asarray, program(ONE).first_state().params)


@pytest.fixture(scope="module")
def step(batch, start):
    """Returns `step_on` a layout, computed once for each."""
    return functools.cache(lambda layout: step_on(layout, batch, start, CONFIG))


@pytest.mark.long
@pytest.mark.parametrize(
    "name", ["zero1", "hsdp of 2 replicas", *(pytest.param(n, marks=SLOW) for n in [*LAYOUTS][2:])]
)
def test_train_step_is_the_same_under_every_policy(step, start, name):
    """Metrics and updated parameters are those of one device to rounding: where weights lie, when
    they are gathered and how gradients are summed changes no number beyond that."""
    assert_same_step(step(LAYOUTS[name]), step(ONE), start)


@pytest.mark.long
@pytest.mark.parametrize("remat", ["none", "dots:1", "offload"])
def test_train_step_of_any_rematerialization_and_in_parts_is_the_same(batch, start, remat):
    """The parts of a batch are divided over replicas as the batch is, and a backward pass that
    recomputes nothing, other things in either block, or takes its products from the host's memory,
    finds the whole weights too."""
    transformer = dataclasses.replace(TRANSFORMER, remat=remat)
    config = dataclasses.replace(CONFIG, transformer=transformer, microbatches=2)
    layout = MeshConfig(4, 1, policy="zero1", replicas=2)
    one_device = step_on(ONE, batch, start, dataclasses.replace(CONFIG, microbatches=2))
    assert_same_step(step_on(layout, batch, start, config), one_device, start)


def sizes_of(kind: str, text: str) -> list[int]:
    """Numbers of values in the results of a program's collectives of a kind."""
    results = re.findall(rf"= \w+\[([\d,]+)\]\S* {kind}(?:-start)?\(", text)
    return [int(np.prod([int(n) for n in dims.split(",")])) for dims in results]


def weights(params) -> list[int]:
    blocks = params["blocks"]
    arrays = [blocks["attn"]["qkv"], blocks["attn"]["proj"]]
    arrays += [blocks["fc1"]["kernel"], blocks["fc2"]["kernel"]]
    return [array.size // TRANSFORMER.depth for array in arrays]


@pytest.mark.long
def test_zero1_gathers_every_weight_of_a_block_once(step, start):
    """Under "zero1" a program has one all-gather for each of a block's weights, for both passes;
    under "hsdp" it has two, one in each."""
    for layout, times in ((ZERO1, 1), (MeshConfig(8, 1, policy="hsdp"), 2)):
        gathered = sizes_of("all-gather", step(layout)[2])
        for size in weights(start):
            twins = weights(start).count(size)
            assert gathered.count(size) == times * twins, (layout.policy, size)


@pytest.mark.long
def test_policies_sum_gradients_in_parts(step, start):
    """Under "zero1" each of a block's weights has a reduce-scatter, which gives a device an eighth
    of the gradient; under "fsdp" the compiler of CPUs gives every device all of it."""
    parts = [size // 8 for size in weights(start)]
    scattered = sizes_of("reduce-scatter", step(ZERO1)[2])
    assert sorted(set(parts)) == sorted(set(scattered) & set(parts))
    assert not sizes_of("reduce-scatter", step(MeshConfig(8, 1))[2])


def test_replicas_hold_the_same_parts(start):
    """With 2 replicas of 4 devices each, a weight is divided by 4, and its rows lie on the devices
    of both."""
    shardings = program(HSDP).shardings.params["blocks"]["fc1"]["kernel"]
    mesh = shardings.mesh
    assert dict(mesh.shape) == {"replica": 2, "data": 4, "model": 1}
    shape = start["blocks"]["fc1"]["kernel"].shape
    assert np.prod(shardings.shard_shape(shape)) == np.prod(shape) // 4
    assert sharding.batch_parts(mesh.shape) == 8
    assert sharding.batch_sharding(mesh).shard_shape((16,)) == (2,)


@pytest.mark.long
@pytest.mark.parametrize("pair", [("zero1", "fsdp"), ("fsdp", "hsdp of 2 replicas")])
def test_checkpoint_is_restored_exactly_under_another_policy(tmp_path, pair):
    """A state that a run saved under one policy is, under another, the same bit for bit: arrays are
    saved whole, and divided anew. Each array has numbers of its own, so that moments, average and
    parameters cannot stand for each other."""
    layouts = {**LAYOUTS, "fsdp": MeshConfig(8, 1)}
    before, after = (program(layouts[name]) for name in pair)
    number = itertools.count(1)
    saved = jax.tree.map(
        lambda leaf: leaf + jnp.asarray(next(number), leaf.dtype), before.first_state()
    )
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    checkpoints.save(3, saved, {}, wait=True)
    restored, _ = checkpoints.restore(after.abstract_state())
    checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, restored, saved)
    kernel = restored.params["blocks"]["fc1"]["kernel"]
    assert kernel.sharding == after.shardings.params["blocks"]["fc1"]["kernel"]


def test_gathering_is_left_to_the_compiler_where_it_cannot_be_divided():
    """Rows that the mesh does not divide, a weight that it does not divide, and the policy "fsdp"
    leave a product as it is."""
    names, shape = ("embed", "mlp"), (32, 64)
    with jax.set_mesh(make_mesh(ZERO1)):
        assert gathering.plan(names, shape, 8) is None  # no policy is set
        with gathering.under("zero1"):
            assert gathering.plan(names, shape, 8) is not None
            assert gathering.plan(names, shape, 6) is None
            assert gathering.plan(names, (36, 64), 8) is None
            assert gathering.plan(("code", None), shape, 8) is None
