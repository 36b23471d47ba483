"""The exact train or sample step of a configuration over described devices: abstract arrays,
nothing materialised."""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from var_jax.config import idle_keys
from var_jax.config.model import ModelConfig
from var_jax.config.strict import require
from var_jax.config.train import TrainConfig
from var_jax.devices import sharding
from var_jax.models import flops
from var_jax.models.tokenizer import Tokenizer
from var_jax.objectives import frozen_networks, losses
from var_jax.perf.tpu_slices import Slice
from var_jax.sampling import sampler
from var_jax.train import mesh_choice, state
from var_jax.train.program import Program

SAMPLES_A_DEVICE = 8
CFG = 1.5


@dataclasses.dataclass(frozen=True)
class Step:
    """Attributes:
    images: of a step, over all devices.
    flops: analytic, of a step over all devices; recomputation does not count.
    replicated_bytes: of the training state, per device, where the mesh does not divide the model
      (`mesh_choice`).
    """

    lowered: jax.stages.Lowered
    mesh: Mesh
    images: int
    flops: float
    replicated_bytes: int = 0


def train(config: TrainConfig, where: Slice) -> Step:
    """The step that `train.loop` takes, a transformer's from tokens (the tokenizer's encoding is
    its own program), a tokenizer's with its discriminator and the frozen networks of its losses, of
    which no weights are needed.

    Raises:
      UserError: the mesh does not divide the model or the batch.
    """
    idle_keys.refuse(config)
    config, networks = frozen_networks.load(config, sizes_only=True)
    mesh, replicated_bytes = mesh_choice.choose(config, where.devices)
    program = Program(config, mesh, networks)
    if config.stage == "transformer":
        frozen, work = _tokenizer_params(config), flops.train_flops_per_image(config.transformer)
    else:
        frozen = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, networks.params))
        work = flops.tokenizer_train_flops(config.tokenizer)
    with jax.set_mesh(mesh):
        lowered = program.step().lower(
            program.abstract_state(),
            program.abstract_batch(),
            _abstract(frozen, program.replicated),
        )
    return Step(lowered, mesh, config.batch_size, work * config.batch_size, replicated_bytes)


def sample(config: TrainConfig, where: Slice, images: int | None = None) -> Step:
    """Guided generation with the published settings, decoder included.

    Weights are sharded over the model axis and whole on every part of the data axis: gathering them
    at every scale would cost more than it saves.
    """
    require(config.stage == "transformer", "the config's stage", config.stage, "transformer")
    images = images or SAMPLES_A_DEVICE * len(where.devices)
    mesh = mesh_choice.choose_for_sampling(config, images, where.devices)
    model = ModelConfig(config.tokenizer, config.transformer)
    rows, replicated = (
        NamedSharding(mesh, PartitionSpec("data")),
        NamedSharding(mesh, PartitionSpec()),
    )

    def without_data(placement: NamedSharding) -> NamedSharding:
        return NamedSharding(
            mesh, PartitionSpec(*(None if axis == "data" else axis for axis in placement.spec))
        )

    boxed = _boxed_params(config)
    shardings = jax.tree.map(without_data, sharding.shardings(boxed, mesh))
    params = {
        "transformer": jax.tree.map(_with, nn.meta.unbox(boxed), shardings),
        "tokenizer": _abstract(_tokenizer_params(config), replicated),
    }
    static = sampler.Static(
        top_k=min(900, config.transformer.vocab_size - 1), use_top_p=True, guided=True
    )
    dynamic = sampler.Dynamic(
        *(jax.ShapeDtypeStruct((), jnp.float32, sharding=replicated) for _ in range(3))
    )
    key = jax.eval_shape(lambda: sampler.image_keys(0, jnp.arange(1)))
    labels, keys = (
        jax.ShapeDtypeStruct((images,), dtype, sharding=rows) for dtype in (jnp.int32, key.dtype)
    )
    with jax.set_mesh(mesh):
        lowered = sampler.generate.lower(model, static, params, labels, keys, dynamic)
    return Step(
        lowered,
        mesh,
        images,
        images
        * (
            flops.generation_flops(config.transformer, guided=True)
            + flops.decode_flops(config.tokenizer)
        ),
    )


def saved_bytes(config: TrainConfig, remat: str, data: int) -> float:
    """Bytes a device that the forward pass of a microbatch keeps for the backward pass under a
    remat policy.

    From the shapes of the residuals, split over the data axis alone: an upper estimate, and no
      compilation.
    """
    config = dataclasses.replace(
        config, transformer=dataclasses.replace(config.transformer, remat=remat)
    )
    rows = config.batch_size // config.microbatches
    batch = {
        "tokens": jax.ShapeDtypeStruct((rows, config.tokenizer.scales.total), jnp.int32),
        "label": jax.ShapeDtypeStruct((rows,), jnp.int32),
    }

    def residuals(params, frozen, batch):
        rng = jax.random.key(0)
        return jax.vjp(lambda p: losses.transformer_loss(config, p, frozen, batch, rng)[0], params)[
            1
        ]

    kept = jax.eval_shape(
        residuals, nn.meta.unbox(_boxed_params(config)), _tokenizer_params(config), batch
    )
    return (
        sum(
            math.prod(leaf.shape) * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(kept)
            if jnp.issubdtype(leaf.dtype, jnp.number)
        )
        / data
    )


def _boxed_params(config: TrainConfig) -> Any:
    return jax.eval_shape(state.init_params(config), jax.random.key(0))


def _tokenizer_params(config: TrainConfig) -> Any:
    image = jnp.zeros((1, *config.tokenizer.image_shape))
    return jax.eval_shape(
        lambda key: nn.meta.unbox(Tokenizer(config.tokenizer).init(key, image))["params"],
        jax.random.key(0),
    )


def _abstract(tree: Any, placement: NamedSharding) -> Any:
    return jax.tree.map(lambda leaf: _with(leaf, placement), tree)


def _with(leaf: jax.ShapeDtypeStruct, placement: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placement)
