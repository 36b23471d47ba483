"""Which mesh a run gets, the same for training and for compilation ahead of time."""

import dataclasses
import logging
import runpy
from pathlib import Path

import jax
import pytest

from helpers import small
from var_jax.config.train import MeshConfig, TrainConfig, from_config_dict
from var_jax.errors import UserError
from var_jax.objectives import registry
from var_jax.train import mesh_choice

CONFIGS = Path(__file__).parents[2] / "configs"


@dataclasses.dataclass(frozen=True)
class Device:
    """A device that is described and not there."""

    id: int
    process_index: int = 0
    platform: str = "fake"
    device_kind: str = "fake"


def devices(count: int) -> list[Device]:
    return [Device(i) for i in range(count)]


FIRST_POLICY = MeshConfig()


def published(arg: str, mesh: MeshConfig = FIRST_POLICY, **changes) -> TrainConfig:
    """A published run; its recipe leaves the policy open, and these tests are of the first one."""
    changes["mesh"] = mesh
    config = runpy.run_path(str(CONFIGS / "imagenet256.py"))["get_config"](arg)
    return dataclasses.replace(from_config_dict(config), **changes)


def choose(config: TrainConfig, devices: list[Device]) -> mesh_choice.Choice:
    return mesh_choice.choose(registry.with_frozen_shapes(config), devices)


def sizes(choice: mesh_choice.Choice) -> tuple[int, int]:
    return choice.mesh.shape["data"], choice.mesh.shape["model"]


@pytest.mark.long
@pytest.mark.parametrize(
    ("arg", "count", "mesh"),
    [
        ("d16", 256, (256, 1)),
        ("d30", 256, (128, 2)),
        ("tokenizer", 256, (32, 8)),
        ("d24", 24, (24, 1)),
    ],
)
def test_choose_finds_a_mesh_that_divides_the_model(arg, count, mesh, caplog):
    """For the published models on 256 and 24 devices the model axis grows where the data axis alone
    does not divide the parameters."""
    choice = choose(published(arg), devices(count))
    assert sizes(choice) == mesh
    assert choice.replicated_bytes == 0 and not caplog.records


@pytest.mark.long
@pytest.mark.parametrize("arg", ["d16", "d20"])
def test_choose_replicates_what_no_mesh_divides_and_says_so_once(arg, caplog):
    """24 devices divide neither the width nor the heads of d16 by 3: the data axis leaves the width
    whole."""
    config = published(arg)
    with caplog.at_level(logging.WARNING):
        choice = choose(config, devices(24))
    assert sizes(choice) == (12, 2)
    [record] = caplog.records
    assert "data=12, model=2" in record.message and f"{choice.replicated_bytes:,}" in record.message
    params = jax.eval_shape(registry.with_frozen_shapes(config).init, jax.random.key(0))
    total = 4 * 3 * sum(leaf.size for leaf in jax.tree.leaves(params))
    assert total * (1 / 2 - 1 / 24) < choice.replicated_bytes < total * (1 / 2 - 1 / 24) * 1.1


def test_choose_replicates_a_codebook_that_a_model_axis_of_3_does_not_divide(caplog):
    """On 24 devices the tokenizer's channels are divided by 8, and its 4096 codes, which 3 does not
    divide, stay whole."""
    choice = choose(published("tokenizer"), devices(24))
    assert sizes(choice) == (8, 3)
    codebook = 4096 * 32 * 4
    assert choice.replicated_bytes == 4 * (codebook - codebook // 3)
    assert ["quantize/codebook" in record.message for record in caplog.records] == [True]


def test_choose_counts_the_average_too():
    """Parameters and Adam's two moments make three parts; a moving average is a fourth."""
    plain, averaged = (choose(published("d16", ema=ema), devices(24)) for ema in (0.0, 0.99))
    assert averaged.replicated_bytes == plain.replicated_bytes // 3 * 4


def test_choose_replicates_a_tokenizer_that_nothing_divides(caplog):
    """On seven devices the images are divided, and the weights lie whole on each device."""
    choice = choose(published("tokenizer", batch_size=14), devices(7))
    assert sizes(choice) == (7, 1)
    assert len(caplog.records) == 1


def test_choose_names_a_better_mesh_where_the_given_one_replicates_too_much():
    """The hint is a mesh that `choose` takes, and a larger `mesh.replicated_share` accepts the
    given one."""
    config = published("d16")
    settings = dataclasses.replace(config, mesh=MeshConfig(24, 1))
    with pytest.raises(
        UserError, match=r"100% .* data=24, model=1; data=12, model=2 would divide more"
    ):
        choose(settings, devices(24))
    hinted = dataclasses.replace(config, mesh=MeshConfig(12, 2))
    assert sizes(choose(hinted, devices(24))) == (12, 2)
    accepted = dataclasses.replace(config, mesh=MeshConfig(24, 1, replicated_share=1.0))
    assert sizes(choose(accepted, devices(24))) == (24, 1)


def test_choose_says_that_no_mesh_is_better():
    """The error names the key that accepts the mesh as it is."""
    config = published("tokenizer", batch_size=14, mesh=MeshConfig(7, 1))
    with pytest.raises(UserError, match=r"mesh\.replicated_share=1 accepts it"):
        choose(config, devices(7))


@pytest.mark.long
@pytest.mark.parametrize(
    ("batch", "parts", "near"), [(100, 1, "99 or 102"), (2, 1, "3"), (700, 5, "690 or 705")]
)
def test_choose_names_batches_that_fit_24_devices(batch, parts, near):
    """16 heads allow model axes up to 8, and so 3 parts of a batch at the least; the sizes that are
    named do fit."""
    config = published("d16", batch_size=batch, microbatches=parts)
    with pytest.raises(
        UserError, match=rf"batch_size is {batch}; it must be a multiple of {3 * parts} .*{near}"
    ):
        choose(config, devices(24))
    for size in near.split(" or "):
        choose(dataclasses.replace(config, batch_size=int(size)), devices(24))


def test_choose_uses_a_model_axis_for_the_batch_alone():
    """Twelve images over eight devices: two devices share the heads of three images each."""
    config = small.train_config("transformer", "", batch_size=12)
    assert sizes(choose(config, devices(8))) == (4, 2)
    with pytest.raises(UserError, match="batch_size is 12; it must be a multiple of 8"):
        choose(small.train_config("tokenizer", "", batch_size=12), devices(8))


@pytest.mark.long
def test_choose_keeps_the_model_axis_of_the_config_as_the_smallest():
    """A config's own axis is kept, given as either of both, and one that does not divide the
    devices is refused."""
    assert sizes(choose(published("d16", mesh=MeshConfig(-1, 4)), devices(16))) == (
        4,
        4,
    )
    assert sizes(choose(published("d16", mesh=MeshConfig(4, -1)), devices(16))) == (
        4,
        4,
    )
    with pytest.raises(
        UserError, match="mesh is -1 x 3; it must be of as many devices as there are, 16"
    ):
        choose(published("d16", mesh=MeshConfig(-1, 3)), devices(16))


def test_choose_for_sampling_divides_weights_along_the_model_axis_alone():
    """The width of d30 does not matter on 256 devices: a data axis holds whole copies."""
    assert dict(
        mesh_choice.choose_for_sampling(
            registry.with_frozen_shapes(published("d30")), 512, devices(256)
        ).shape
    ) == {
        "data": 256,
        "model": 1,
    }
    with pytest.raises(UserError, match="--images is 5; it must be a multiple of"):
        mesh_choice.choose_for_sampling(
            registry.with_frozen_shapes(published("d30")), 5, devices(256)
        )


@pytest.mark.long
@pytest.mark.parametrize("policy", ["auto", "zero1", "hsdp"])
@pytest.mark.parametrize(
    ("arg", "count", "mesh"),
    [
        ("d16", 256, {"data": 256, "model": 1}),
        ("d30", 256, {"replica": 2, "data": 128, "model": 1}),
        ("d16", 24, {"replica": 3, "data": 8, "model": 1}),
    ],
)
def test_choose_takes_replicas_where_the_policy_has_them(policy, arg, count, mesh, caplog):
    """In place of a model axis, whose devices exchange activations, the fewest replicas divide the
    width: 1920 by 128 and not by 256."""
    choice = choose(published(arg, MeshConfig(policy=policy)), devices(count))
    assert dict(choice.mesh.shape) == mesh
    assert choice.replicated_bytes == 0 and not caplog.records


@pytest.mark.long
def test_choose_takes_the_replicas_that_are_given():
    """Where the config has their number, the data axis is divided by it."""
    config = published("d16", MeshConfig(policy="hsdp", replicas=4))
    mesh = choose(config, devices(32)).mesh
    assert dict(mesh.shape) == {"replica": 4, "data": 8, "model": 1}
    with pytest.raises(UserError, match=r"mesh.replicas is 5; .* divisor of the data axis, 32"):
        choose(published("d16", MeshConfig(policy="hsdp", replicas=5)), devices(32))
