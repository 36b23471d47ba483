"""One step on every mesh of 8 devices is the step of one device; and how devices come to lie in a
mesh."""

import dataclasses
import functools
import re
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from helpers import batches, small
from helpers.mesh_steps import assert_same_step, one_step
from var_jax.config.train import MeshConfig
from var_jax.devices.mesh import host_rows, make_mesh
from var_jax.errors import UserError
from var_jax.objectives import registry
from var_jax.train.program import Program

pytestmark = pytest.mark.usefixtures("compiled_fast")

SLOW = pytest.mark.slow  # each mesh compiles a program of its own
BATCH = 8
# Its heads, MLP and vocabulary divide by 8, as its width does.
TRANSFORMER = dataclasses.replace(small.TRANSFORMER, width=32, heads=8)
CONFIG = small.train_config("transformer", "", transformer=TRANSFORMER, batch_size=BATCH)


@pytest.fixture(scope="module")
def batch() -> dict[str, np.ndarray]:
    return batches.labeled_tokens(BATCH)


@pytest.fixture(scope="module")
def start():
    """Parameters that every mesh starts from."""
    mesh = make_mesh(MeshConfig(1, 1), jax.devices()[:1])
    return jax.tree.map(
        np.asarray, Program(registry.with_frozen_shapes(CONFIG), mesh).first_state().params
    )


@pytest.fixture(scope="module")
def step_on(batch, start):
    """Returns `one_step` of the first rows of the batch on a mesh, computed once for each."""

    @functools.cache
    def step(data: int, model: int, rows: int = BATCH):
        config = dataclasses.replace(CONFIG, batch_size=rows)
        some = {name: values[:rows] for name, values in batch.items()}
        return one_step(data, model, some, start, config)

    return step


@pytest.mark.long
@pytest.mark.parametrize(
    "mesh", [(8, 1), (4, 2), pytest.param((2, 4), marks=SLOW), pytest.param((1, 8), marks=SLOW)]
)
def test_train_step_is_the_same_on_every_mesh(step_on, start, mesh):
    """Metrics and updated parameters are those of one device, to rounding."""
    assert_same_step(step_on(*mesh), step_on(1, 1), start)


@pytest.mark.long
def test_train_step_with_flips_and_weights_is_the_same_on_a_mesh(batch, start):
    """Which tokens are replaced depends on the step's key alone, not on where rows lie."""
    transformer = dataclasses.replace(TRANSFORMER, flip_share=0.5, scale_weights=(2.0, 1.0, 0.5))
    config = dataclasses.replace(CONFIG, transformer=transformer)
    steps = [one_step(data, model, batch, start, config) for data, model in ((4, 2), (1, 1))]
    assert_same_step(*steps, start)


@pytest.mark.long
@pytest.mark.parametrize("mesh", [(3, 2), (1, 3), pytest.param((3, 1), marks=SLOW)])
def test_train_step_is_the_same_on_a_mesh_that_does_not_divide_the_model(step_on, start, mesh):
    """Width 32 and 8 heads do not divide by 3: what stays whole changes where numbers lie, and none
    of them."""
    assert_same_step(step_on(*mesh, rows=6), step_on(1, 1, rows=6), start)


def gathered(text: str) -> list[tuple[int, ...]]:
    """Shapes that the all-gathers of a program give, in whatever tuple or order."""
    results = re.findall(r"= (.*?) all-gather(?:-start)?\(", text)
    return [
        tuple(map(int, dims.split(",")))
        for result in results
        for dims in re.findall(r"\w\[([\d,]+)\]", result)
    ]


@pytest.mark.long
@pytest.mark.parametrize("mesh", [(8, 1), (4, 2)], ids=str)
def test_train_step_gathers_no_whole_stack_of_parameters(step_on, start, mesh):
    """A block's parameters are gathered when it is its turn: all layers at once would take the
    memory of all."""
    stacks = {leaf.shape for leaf in jax.tree.leaves(start["blocks"])}
    assert all(shape[0] == TRANSFORMER.depth for shape in stacks)
    shapes = gathered(step_on(*mesh)[2])
    assert shapes  # there are some: the parameters lie sharded
    held = {tuple(sorted(shape)) for shape in stacks if len(shape) > 2}
    assert not [shape for shape in shapes if tuple(sorted(d for d in shape if d != 1)) in held]


def test_gathered_reads_shapes_from_a_program():
    """The helper above reads both forms of an all-gather, so that the next test cannot pass by
    finding none."""
    line = (
        "  %all-gather.3 = f32[2,32,128]{2,1,0} all-gather(%param.7), channel_id=3, dimensions={1}"
    )
    assert gathered(line) == [(2, 32, 128)]
    assert gathered(
        "  %ag = (f32[2,4]{1,0}, f32[2,32]{1,0}) all-gather-start(%p), dimensions={1}"
    ) == [(2, 4), (2, 32)]


@dataclasses.dataclass(frozen=True)
class Device:
    """As a backend of several slices describes one."""

    id: int
    slice_index: int
    process_index: int = 0
    platform: str = "fake"
    device_kind: str = "fake"


def slice_places(count: int, slices: int) -> list[Device]:
    """Devices of several slices in an order that mixes them."""
    return [Device(i, i % slices) for i in range(count)]


@pytest.mark.parametrize(("data", "model", "slices"), [(8, 1, 2), (4, 2, 2), (-1, 2, 4)])
def test_slices_are_joined_along_the_data_axis(data, model, slices):
    """The model axis lies within one slice, and a contiguous part of the data axis does too."""
    mesh = make_mesh(MeshConfig(data, model, slices), slice_places(8, slices))
    assert (mesh.shape["data"], mesh.shape["model"]) == (8 // model, model)
    places = np.vectorize(lambda device: device.slice_index)(mesh.devices)
    assert (places == places[:, :1]).all()  # the model axis stays within a slice
    assert places[:, 0].tolist() == sorted(
        places[:, 0].tolist()
    )  # and so does a contiguous part of the data axis


def test_make_mesh_refuses_slices_that_are_not_as_the_config_says():
    """The error names the key with both numbers."""
    with pytest.raises(
        UserError, match=r"mesh.slices is 4; it must be the number of slices there are, 2"
    ):
        make_mesh(MeshConfig(8, 1, 4), slice_places(8, 2))
    with pytest.raises(
        UserError, match=r"mesh.slices is 1; it must be the number of slices there are, 2"
    ):
        make_mesh(MeshConfig(8, 1), slice_places(8, 2))
    with pytest.raises(UserError, match=r"mesh.data is 1; it must be a multiple of mesh.slices 2"):
        make_mesh(MeshConfig(1, 8, 2), slice_places(8, 2))


def gpus(gpus_per_process: int) -> list[Device]:
    """Two hosts of 8 GPUs as JAX describes them: a slice index per host, however many processes it
    has."""
    return [Device(i, i // 8, i // gpus_per_process, "gpu", "NVIDIA H100") for i in range(16)]


@pytest.mark.parametrize(
    "gpus_per_process", [8, 1], ids=["one process per node", "one process per GPU"]
)
@pytest.mark.parametrize(("data", "model"), [(-1, 1), (8, 2), (2, 8), (1, 16), (16, 1)], ids=str)
def test_make_mesh_takes_hosts_of_gpus_as_it_finds_them(gpus_per_process, data, model):
    """A mesh over two nodes needs no key: rows of a node are neighbors, and a model axis that fits
    into a node stays inside it, in whatever order the devices come."""
    devices = gpus(gpus_per_process)
    mesh = make_mesh(MeshConfig(data, model), devices[::-1])
    assert mesh.devices.ravel().tolist() == devices
    assert mesh.shape["model"] == model
    hosts = np.vectorize(lambda device: device.slice_index)(mesh.devices)
    if model <= 8:
        assert (hosts == hosts[:, :1]).all()


@pytest.mark.parametrize(
    "gpus_per_process", [8, 1], ids=["one process per node", "one process per GPU"]
)
def test_make_mesh_takes_the_right_number_of_gpu_hosts_and_refuses_another(gpus_per_process):
    """`mesh.slices` may tell how many hosts there are; a number of hosts that are not there is
    refused."""
    devices = gpus(gpus_per_process)
    assert make_mesh(MeshConfig(-1, 1, 2), devices) == make_mesh(MeshConfig(), devices)
    with pytest.raises(UserError, match=r"mesh\.slices is 3; .*2"):
        make_mesh(MeshConfig(-1, 1, 3), devices)


def test_make_mesh_takes_gpus_without_slices_by_process():
    """A backend that numbers no hosts: processes are told apart by their index."""
    devices = [dataclasses.replace(device, slice_index=None) for device in gpus(8)]
    assert make_mesh(MeshConfig(), devices[::-1]).devices.ravel().tolist() == devices


def test_host_rows_are_those_that_the_hosts_devices_hold():
    """Rows held twice are loaded once, in order, for parts that are apart as well."""

    def held(*indices: slice) -> list[int]:
        places = {i: (index,) for i, index in enumerate(indices)}
        sharding = SimpleNamespace(addressable_devices_indices_map=lambda shape: places)
        return host_rows(sharding, 8).tolist()

    assert held(slice(2, 4), slice(2, 4)) == [2, 3]  # a model axis within the host
    assert held(slice(6, 8), slice(0, 2)) == [
        0,
        1,
        6,
        7,
    ]  # neighbors in the mesh are not neighbors in the batch
    assert held(slice(None)) == list(range(8))
    mesh = make_mesh(MeshConfig(4, 2))
    assert host_rows(NamedSharding(mesh, PartitionSpec("data")), 8).tolist() == list(range(8))
