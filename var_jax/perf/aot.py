"""Ahead-of-time lowering of a run's training or sampling step, for devices that are only described.

Arrays are `jax.ShapeDtypeStruct`s with shardings; no weights are made.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from var_jax.config import idle_keys
from var_jax.config.model import ModelConfig
from var_jax.config.strict import require
from var_jax.devices import sharding
from var_jax.models import flops, init
from var_jax.objectives.base import Objective
from var_jax.perf.tpu_slices import Slice
from var_jax.sampling import sampler_registry
from var_jax.sampling.image_keys import image_keys
from var_jax.train import mesh_choice
from var_jax.train.program import Program

SAMPLES_PER_DEVICE = 8  # by default
CFG = 1.5  # the published guidance strength


@dataclasses.dataclass(frozen=True)
class Step:
    """A lowered step.

    Attributes:
      objective: the objective whose step it is, with settings in place of "auto".
      lowered: the program.
      mesh: the mesh that it is lowered for.
      images: images per step, over all devices.
      flops: model FLOPs per step over all devices, without recomputation.
      replicated_bytes: bytes per device of the training state that the mesh does not divide
        (`mesh_choice`).
    """

    objective: Objective[Any]
    lowered: jax.stages.Lowered
    mesh: Mesh
    images: int
    flops: float
    replicated_bytes: int = 0


def lower_train_step(objective: Objective[Any], choice: mesh_choice.Choice) -> Step:
    """Lowers the training step of `train.loop` in its last variant, with all terms active.

    The step of a transformer takes tokens, since encoding is a program of its own; that of a
    tokenizer includes its discriminator and the frozen networks of its losses. Values of frozen
    weights are not needed (`registry.with_frozen_shapes`).

    Args:
      choice: the mesh, of `mesh_choice.choose`.
    Raises:
      UserError: the mesh does not divide the model or the batch.
    """
    idle_keys.refuse(objective.config)
    mesh, replicated_bytes = choice
    program = Program(objective, mesh)
    frozen = jax.eval_shape(lambda weights: weights, objective.step_frozen())
    with jax.set_mesh(mesh):
        lowered = program.step().lower(
            program.abstract_state(),
            program.abstract_batch(),
            jax.tree.map(_with_sharding, frozen, objective.frozen_shardings(frozen, mesh)),
        )
    images = objective.config.batch_size
    step_flops = objective.flops_per_image() * images
    return Step(program.objective, lowered, mesh, images, step_flops, replicated_bytes)


def lower_sampling(objective: Objective[Any], tpu_slice: Slice, images: int | None = None) -> Step:
    """Lowers guided sampling with the objective's published settings and the tokenizer's decoder.

    Weights are sharded over the model axis and replicated over the data axis: gathering them at
    every scale would cost more than it saves.
    """
    config = objective.config
    require(objective.generates, "the config's stage", config.stage, "transformer")
    images = images or SAMPLES_PER_DEVICE * len(tpu_slice.devices)
    mesh = mesh_choice.choose_for_sampling(objective, images, tpu_slice.devices)
    model = ModelConfig(config.tokenizer, config.transformer)
    rows = NamedSharding(mesh, PartitionSpec("data"))
    replicated = NamedSharding(mesh, PartitionSpec())

    def without_data(param_sharding: NamedSharding) -> NamedSharding:
        axes = [None if axis == "data" else axis for axis in param_sharding.spec]
        return NamedSharding(mesh, PartitionSpec(*axes))

    boxed = init.boxed_shapes(config.transformer)
    shardings = jax.tree.map(without_data, sharding.shardings(boxed, mesh))
    params = {
        "transformer": jax.tree.map(_with_sharding, nn.meta.unbox(boxed), shardings),
        "tokenizer": _abstract_like(init.param_shapes(config.tokenizer), replicated),
    }
    sampler = sampler_registry.find(model)
    prepared = sampler.benchmark_settings(model, CFG)
    traced = _abstract_like(jax.eval_shape(lambda: prepared.traced), replicated)
    key_dtype = jax.eval_shape(lambda: image_keys(0, jnp.arange(1))).dtype
    labels = jax.ShapeDtypeStruct((images,), jnp.int32, sharding=rows)
    keys = jax.ShapeDtypeStruct((images,), key_dtype, sharding=rows)
    with jax.set_mesh(mesh):
        lowered = sampler.program.lower(model, prepared.compiled, params, labels, keys, traced)
    image_flops = sampler.generation_flops(model, prepared) + flops.decode_flops(config.tokenizer)
    return Step(objective, lowered, mesh, images, images * image_flops)


def memory(compiled: jax.stages.Compiled) -> dict[str, float]:
    """Returns the bytes on one device by kind.

    They are those of arguments, results that do not reuse arguments, temporaries, code, and their
    sum; and, of the host's memory, those that the program keeps there for a while.
    """
    stats = compiled.memory_analysis()
    parts = {
        "argument_bytes": stats.argument_size_in_bytes,
        "output_bytes": stats.output_size_in_bytes - stats.alias_size_in_bytes,
        "temporary_bytes": stats.temp_size_in_bytes,
        "code_bytes": stats.generated_code_size_in_bytes,
    }
    on_host = {"host_bytes": stats.host_temp_size_in_bytes}
    return {**parts, "peak_bytes": sum(parts.values()), **on_host}


def _abstract_like(tree: Any, array_sharding: NamedSharding) -> Any:
    return jax.tree.map(lambda leaf: _with_sharding(leaf, array_sharding), tree)


def _with_sharding(
    leaf: jax.ShapeDtypeStruct, array_sharding: NamedSharding
) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=array_sharding)
