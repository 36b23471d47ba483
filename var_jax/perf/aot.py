"""Lowers a run's exact train or sample step for described devices, with abstract arrays."""

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
from var_jax.devices import sharding, target
from var_jax.models import flops, init
from var_jax.objectives.base import Objective
from var_jax.perf.tpu_slices import Slice
from var_jax.sampling import sampler_registry
from var_jax.sampling.image_keys import image_keys
from var_jax.train import mesh_choice
from var_jax.train.program import Program

SAMPLES_PER_DEVICE = 8
CFG = 1.5


@dataclasses.dataclass(frozen=True)
class Step:
    """A lowered step.

    Attributes:
      lowered: the program.
      mesh: the mesh that it is lowered for.
      images: images per step, over all devices.
      flops: analytic FLOPs per step over all devices; recomputation does not count.
      replicated_bytes: bytes per device of the training state that the mesh does not divide
        (`mesh_choice`).
    """

    lowered: jax.stages.Lowered
    mesh: Mesh
    images: int
    flops: float
    replicated_bytes: int = 0


def train(objective: Objective[Any], where: Slice) -> Step:
    """Returns the training step of `train.loop`, with every part of the run in it.

    A transformer's takes tokens (the tokenizer's encoding is a program of its own); a tokenizer's
    has its discriminator and the frozen networks of its losses. Values of frozen weights are not
    needed (`registry.with_frozen_shapes`).

    Raises:
      UserError: the mesh does not divide the model or the batch.
    """
    idle_keys.refuse(objective.config)
    mesh, replicated_bytes = mesh_choice.choose(objective, where.devices)
    program = Program(objective, mesh)
    frozen = jax.eval_shape(lambda weights: weights, objective.frozen)
    with jax.set_mesh(mesh):
        lowered = program.step().lower(
            program.abstract_state(),
            program.abstract_batch(),
            jax.tree.map(_with, frozen, objective.frozen_shardings(frozen, mesh)),
        )
    images = objective.config.batch_size
    return Step(lowered, mesh, images, objective.flops_per_image() * images, replicated_bytes)


def sample(objective: Objective[Any], where: Slice, images: int | None = None) -> Step:
    """Returns guided generation with the objective's published settings, decoder included.

    Weights are sharded over the model axis and replicated over the data axis: gathering them at
    every scale would cost more than it saves.
    """
    config = objective.config
    require(objective.generates, "the config's stage", config.stage, "transformer")
    images = images or SAMPLES_PER_DEVICE * len(where.devices)
    mesh = mesh_choice.choose_for_sampling(objective, images, where.devices)
    model = ModelConfig(config.tokenizer, config.transformer)
    rows, replicated = (
        NamedSharding(mesh, PartitionSpec("data")),
        NamedSharding(mesh, PartitionSpec()),
    )

    def without_data(placement: NamedSharding) -> NamedSharding:
        return NamedSharding(
            mesh, PartitionSpec(*(None if axis == "data" else axis for axis in placement.spec))
        )

    boxed = init.boxed_shapes(config.transformer)
    shardings = jax.tree.map(without_data, sharding.shardings(boxed, mesh))
    params = {
        "transformer": jax.tree.map(_with, nn.meta.unbox(boxed), shardings),
        "tokenizer": _abstract(init.param_shapes(config.tokenizer), replicated),
    }
    sampler = sampler_registry.find(model)
    prepared = sampler.benchmark_settings(model, CFG)
    traced = _abstract(jax.eval_shape(lambda: prepared.traced), replicated)
    key = jax.eval_shape(lambda: image_keys(0, jnp.arange(1)))
    labels, keys = (
        jax.ShapeDtypeStruct((images,), dtype, sharding=rows) for dtype in (jnp.int32, key.dtype)
    )
    with jax.set_mesh(mesh):
        lowered = sampler.program.lower(model, prepared.compiled, params, labels, keys, traced)
    image_flops = sampler.generation_flops(model, prepared) + flops.decode_flops(config.tokenizer)
    return Step(lowered, mesh, images, images * image_flops)


def saved_bytes(objective: Objective[Any], remat: str, data: int) -> float:
    """Returns the bytes per device that a forward pass keeps for the backward pass.

    The pass is that of a microbatch under a remat policy.

    They are those of the residuals' shapes, split over only the data axis: an upper estimate that
    needs no compilation.

    Args:
      data: size of the mesh's data axis.
    """
    config = objective.config
    model = dataclasses.replace(objective.model, remat=remat)
    objective = objective.with_config(dataclasses.replace(config, **{objective.section: model}))
    rows = config.batch_size // config.microbatches
    batch = {
        name: jax.ShapeDtypeStruct((rows, *image.shape), image.dtype)
        for name, image in objective.batch_shapes().items()
    }

    def residuals(params, frozen, batch):
        rng = jax.random.key(0)
        return jax.vjp(lambda p: objective.loss(p, frozen, batch, rng)[0], params)[1]

    params = nn.meta.unbox(jax.eval_shape(objective.init, jax.random.key(0)))
    with target.tracing_for_other_devices():
        leaves = jax.tree.leaves(jax.eval_shape(residuals, params, objective.frozen, batch))
    numbers = [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.number)]
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in numbers) / data


def _abstract(tree: Any, placement: NamedSharding) -> Any:
    return jax.tree.map(lambda leaf: _with(leaf, placement), tree)


def _with(leaf: jax.ShapeDtypeStruct, placement: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placement)
