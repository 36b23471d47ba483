"""Memory of training and of sampling per device, estimated from shapes without a compiler.

What the forward pass keeps is read off the shapes of its derivative. A compiler fuses operations
and frees arrays early, and needs room of its own: its figure may be smaller or larger by half
(LARGEST_RATIO). `perf.aot` asks the compiler itself, and
`memory_rule` chooses by the estimate.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from var_jax.config import rematerialization
from var_jax.config.model import ModelConfig, TokenizerConfig, TransformerConfig
from var_jax.devices import gathering, sharding, target
from var_jax.objectives.base import Objective
from var_jax.ops import attention
from var_jax.sampling import batch_size
from var_jax.train import trainable

REMAT_OF_TOKENIZER = ("none", "full")
# The largest estimate over the compiler's figure for the same step (docs/guides/scale.md has all).
LARGEST_RATIO = 1.81
FLOAT32_BYTES = 4  # per number of parameters, moments and gradients


@dataclasses.dataclass(frozen=True)
class TrainingMemory:
    """The parts of a training step's memory, in bytes per device.

    Attributes:
      state: parameters, moments and average of all trained networks.
      frozen: weights that are not trained and that a step uses.
      gradients: those of all trained parameters, of a device's share.
      gathered: whole weights of one block and of the ends of the network, with their gradients,
        which a mesh gathers from the devices, and under "zero1" the whole weights of all blocks; 0
        on one device.
      residuals: by policy of rematerialization in all blocks, what the forward pass keeps of an
        image for the backward pass.
      recomputed: likewise, what the backward pass computes again of an image for one block.
      encoded: what encoding an image takes, in a program of its own before the step; 0 where the
        run reads no images, or trains on them.
      parts: over how many devices a step's images are divided.
      devices: over how many the images are divided when they are encoded.
      depth: number of blocks that a policy may be chosen for.
    """

    state: float
    frozen: float
    gradients: float
    gathered: float
    residuals: Mapping[str, float]
    recomputed: Mapping[str, float]
    encoded: float
    parts: int
    devices: int
    depth: int

    def peak(self, remat: str, images: int, microbatches: int = 1) -> float:
        """Returns the bytes per device of a step over `images` on all devices."""
        activations = images / self.parts / microbatches * self._of_image(remat)
        encoding = images / self.devices * self.encoded
        training = self._fixed(remat, microbatches) + activations
        return self.state + self.frozen + max(training, encoding)

    def most_images(self, remat: str, budget: float, microbatches: int = 1) -> int:
        """Returns the largest batch over all devices that takes at most `budget` bytes on each.

        The batch is a multiple of the number of parts and microbatches; 0 if none is so small.
        """
        room = budget - self.state - self.frozen
        rows = (room - self._fixed(remat, microbatches)) / self._of_image(remat)
        if self.encoded:
            of_encoder = room / self.encoded * self.devices / self.parts / microbatches
            rows = min(rows, of_encoder)
        return max(int(rows), 0) * self.parts * microbatches

    def offloaded(self, remat: str, images: int) -> float:
        """Returns the bytes per device that a step over `images` brings to the host's memory.

        They are the fewest that these can be, if all axes of the mesh divide what is kept.
        """
        groups = rematerialization.groups(remat, self.depth)
        blocks = sum(one.blocks for one in groups if one.policy == rematerialization.OFFLOAD)
        if not blocks:
            return 0.0
        of_image = self.residuals["dots"] - self.residuals[rematerialization.FULL]
        return images / self.devices * of_image * blocks / self.depth

    def _fixed(self, remat: str, microbatches: int) -> float:
        """Returns the bytes that do not grow with the images, besides state and frozen weights."""
        sums = 1 if microbatches == 1 else 2  # gradients of a part, and their sum so far
        # The parameters of each group of blocks, and their gradients, are copies.
        copies = 2 if len(rematerialization.on_device(remat, self.depth)) > 1 else 0
        return (sums + copies) * self.gradients + self.gathered

    def _of_image(self, remat: str) -> float:
        groups = rematerialization.on_device(remat, self.depth)
        recomputed = max(self.recomputed[one.policy] for one in groups)
        return rematerialization.mean(self.residuals, groups) + recomputed


def of_training(
    objective: Objective[Any],
    mesh: Mapping[str, int],
    platform: str,
    dtype: str,
    residuals: Mapping[str, float] | None = None,
) -> TrainingMemory:
    """Returns the parts of a training step's memory, for all policies of rematerialization.

    No array is made; the derivative is traced a few times, which takes seconds.

    Args:
      objective: with the shapes of its frozen weights (`registry.with_frozen_shapes`).
      mesh: devices along each mesh axis.
      platform: of the devices, "tpu", "gpu" or "cpu"; it decides how attention is computed.
      dtype: of activations, "float32" or "bfloat16".
      residuals: those of the same model on another mesh or under another policy, which are the
        same, so that nothing is traced.
    """
    objective = _computing_in(objective, dtype, platform)
    model = objective.model
    data, devices = sharding.batch_parts(mesh), math.prod(mesh.values())
    # Values of some of the blocks are means of the others.
    remat = tuple(name for name in remat_values(objective) if ":" not in name)
    residuals = residuals or _residuals_per_image(objective, remat)
    share = _share_of_block(model) / (1 if objective.batch_over_model_axis else mesh["model"])
    return TrainingMemory(
        state=state_bytes(objective, mesh),
        frozen=_bytes(objective.step_frozen()),
        gradients=sum(sharding.bytes_per_device(boxed, mesh) for boxed in _trained(objective)),
        gathered=_gathered(objective, mesh) if devices > 1 else 0.0,
        residuals=residuals,
        recomputed={name: (residuals["none"] - residuals[name]) * share for name in remat},
        encoded=_encoded(objective),
        parts=devices if objective.batch_over_model_axis else data,
        devices=devices,
        depth=_depth(model),
    )


def remat_values(objective: Objective[Any]) -> tuple[str, ...]:
    """Returns the values of `remat` of an objective's model, from the least recomputation on."""
    return objective.remat_choices or REMAT_OF_TOKENIZER


def state_bytes(objective: Objective[Any], mesh: Mapping[str, int]) -> float:
    """Returns the bytes per device of a run's parameters, moments and average.

    Parameters that `trainable` leaves as they are have no moments.

    On a mesh of one device they are also those of a checkpoint.
    """
    networks = _trained(objective)
    model, *others = (sharding.bytes_per_device(boxed, mesh) for boxed in networks)
    moved = sharding.bytes_per_device(_moved(objective, networks[0]), mesh)
    # Adam has two moments of each parameter that moves; only the model has an average.
    return model + 2 * moved + 3 * sum(others) + (model if objective.config.ema else 0)


def encodes(objective: Objective[Any]) -> bool:
    """Returns whether images are encoded before every step of a run."""
    from_cache = objective.reads_tokens and objective.config.data.tokens_dir
    has_encoder = bool(jax.tree.leaves(objective.step_frozen()))
    return objective.encodes_images and has_encoder and not from_cache


@dataclasses.dataclass(frozen=True)
class SamplingMemory:
    """The memory of guided sampling, in bytes per device.

    Attributes:
      weights: those of transformer and tokenizer; on a mesh only the model axis divides them.
      image: keys and values of an image and of its unconditional branch, and its feature maps in
        the decoder.
    """

    weights: float
    image: float

    def peak(self, images: int) -> float:
        """Returns the bytes of sampling `images` per device at once."""
        return self.weights + images * self.image

    def most_images(self, budget: float) -> int:
        """Returns how many images per device take at most `budget` bytes; 0 if none does."""
        return max(int((budget - self.weights) / self.image), 0)


def of_sampling(objective: Objective[Any], mesh: Mapping[str, int], dtype: str) -> SamplingMemory:
    """Returns the memory of sampling from a run's model with weights and activations of a dtype.

    Args:
      objective: one that generates.
      mesh: devices along the axes "data" and "model".
    """
    config = objective.config
    assert config.transformer is not None
    itemsize = jnp.dtype(dtype).itemsize
    undivided = {"data": 1, "model": mesh["model"]}
    stored = sharding.bytes_per_device(objective.divided_shapes(), undivided)  # in float32
    numbers = stored / FLOAT32_BYTES + _count(objective.frozen)
    model = ModelConfig(
        dataclasses.replace(config.tokenizer, dtype=dtype),
        dataclasses.replace(config.transformer, dtype=dtype),
    )
    return SamplingMemory(itemsize * numbers, float(batch_size.bytes_per_image(model, rows=2)))


def residual_bytes_by_value(
    objective: Objective[Any], values: Iterable[str], data: int
) -> dict[str, float]:
    """Returns `residual_bytes` for values of rematerialization, of all blocks or some.

    Each policy is traced once.
    """
    depth = _depth(objective.model)
    groups = {value: rematerialization.on_device(value, depth) for value in values}
    policies = dict.fromkeys(one.policy for parts in groups.values() for one in parts)
    sizes = {policy: residual_bytes(objective, policy, data) for policy in policies}
    return {value: rematerialization.mean(sizes, parts) for value, parts in groups.items()}


def residual_bytes(objective: Objective[Any], remat: str, data: int) -> float:
    """Returns an upper bound on the bytes of a microbatch's residuals per device.

    Residuals are what the forward pass keeps for the backward pass. Their bytes are computed from
    shapes, without a compilation, and divided over only the data axis; boolean masks and random
    keys are left out.

    Args:
      remat: the policy of rematerialization in all blocks.
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


def _computing_in(objective: Objective[Any], dtype: str, platform: str) -> Objective[Any]:
    """Returns the objective with another dtype, and with the attention that the platform has.

    Fused attention of any platform keeps the same arrays; the TPU's kernel can be traced anywhere.
    """
    model = dataclasses.replace(objective.model, dtype=dtype)
    if isinstance(model, TransformerConfig):
        fused = platform == "tpu" or (
            platform == "gpu" and attention.is_fusible(jnp.dtype(dtype), model.head_dim)
        )
        is_xla = model.attention == "xla" or not fused
        model = dataclasses.replace(model, attention="xla" if is_xla else "splash")
    config = dataclasses.replace(objective.config, **{objective.section: model})
    return objective.with_config(config)


def _residuals_per_image(objective: Objective[Any], remat: tuple[str, ...]) -> dict[str, float]:
    """Returns the bytes of an image's residuals by policy, without those of the weights."""

    def of_batch(name: str, images: int) -> float:
        config = dataclasses.replace(objective.config, batch_size=images, microbatches=1)
        return residual_bytes(objective.with_config(config), name, data=1)

    two = {name: of_batch(name, 2) for name in remat}
    # The weights among the residuals are those of the state, and are the same for any policy.
    weights = 2 * of_batch(remat[-1], 1) - two[remat[-1]]
    return {name: (size - weights) / 2 for name, size in two.items()}


def _share_of_block(model: TokenizerConfig | TransformerConfig) -> float:
    """Returns the share of all blocks' activations that are recomputed at once, those of a block.

    Most of a tokenizer's are in the blocks at full size: `blocks` in the encoder, and one more in
    the decoder.
    """
    if isinstance(model, TransformerConfig):
        return 1 / model.depth
    return 1 / (2 * model.blocks + 1)


def _depth(model: TokenizerConfig | TransformerConfig) -> int:
    return model.depth if isinstance(model, TransformerConfig) else 1


def _trained(objective: Objective[Any]) -> list[Any]:
    """Returns the boxed shapes of the parameters of each trained network, the model's first."""
    key = jax.random.key(0)
    further = jax.eval_shape(objective.further_networks, key)
    return [jax.eval_shape(objective.init, key), *further.values()]


def _moved(objective: Objective[Any], boxed: Any) -> list[Any]:
    """Returns the boxed shapes of a model's parameters without those that stay as they are."""
    mask = trainable.mask_of(objective.config.trainable, boxed)
    chosen = None if mask is None else flatten_dict(mask)
    return [leaf for path, leaf in flatten_dict(boxed).items() if chosen is None or chosen[path]]


def _gathered(objective: Objective[Any], mesh: Mapping[str, int]) -> float:
    """Returns the bytes of whole weights: a block's and the ends', and their gradients.

    Where whole weights stay until the backward pass, those of all blocks count.
    """
    model, params = objective.model, nn.meta.unbox(_trained(objective)[0])
    blocks = _count(params.get("blocks", {}))
    of_block = blocks / model.depth if isinstance(model, TransformerConfig) else blocks
    itemsize = jnp.dtype(model.dtype).itemsize + FLOAT32_BYTES
    at_once = float((_count(params) - blocks + of_block) * itemsize)
    if objective.config.mesh.policy != "zero1":
        return at_once
    weights = gathering.gathered_numbers(_trained(objective)[0], mesh)
    return at_once + weights * jnp.dtype(model.dtype).itemsize


def _encoded(objective: Objective[Any]) -> float:
    """Returns the bytes of encoding one image before a step, if the run does."""
    if not encodes(objective):
        return 0.0
    return float(batch_size.bytes_per_image(ModelConfig(objective.config.tokenizer), rows=0))


def _count(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _bytes(tree: Any) -> float:
    leaves = jax.tree.leaves(tree)
    return float(sum(math.prod(leaf.shape) * jnp.dtype(leaf.dtype).itemsize for leaf in leaves))
