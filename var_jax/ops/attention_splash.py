"""Masked attention by JAX's Pallas kernel for TPUs (splash attention).

It never writes the logits to memory.

The kernel skips tiles in which no token sees another and computes all others in full. At 256 px a
tile is as large as a scale and none is empty, so that the kernel saves only memory and its traffic;
at 512 px about a third of the tiles are empty.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel,
    splash_attention_mask,
)

from var_jax.config.scales import Scales
from var_jax.devices import sharding
from var_jax.ops import masks

if TYPE_CHECKING:
    from jaxtyping import Array, Float

LANES = 128  # the kernel takes tiles whose sides are multiples of this
LARGEST_TILE = 512  # float32 logits of a larger one crowd the chip's vector memory
START_BITS = 16  # an entry of `ScaleMask.q_sequence` holds a span's start above its end


@dataclasses.dataclass(frozen=True)
class ScaleMask(splash_attention_mask.Mask):
    """A mask computed in the kernel from each query's span of visible keys, not read from memory.

    Queries of the padding see the same keys as the last token, so that no softmax is empty; they
    are dropped afterwards. Keys of the padding are in no span.

    Attributes:
      scales: the scales of the sequence.
      mask: name of the attention mask (`ops.masks`).
      length: the padded length.
    """

    scales: Scales
    mask: masks.Mask
    length: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.length, self.length

    @functools.cached_property
    def q_sequence(self) -> np.ndarray:
        """Each query's span as start << START_BITS | end, int32 (length,).

        The kernel hands it to `mask_function`.
        """
        spans = [masks.visible(self.scales, self.mask, k) for k in range(len(self.scales))]
        packed = np.array([span.start << START_BITS | span.stop for span in spans], np.int32)
        padding = self.length - self.scales.total
        return np.pad(packed[self.scales.level_ids], (0, padding), mode="edge")

    @staticmethod
    def mask_function(spans, keys):
        return (keys >= spans >> START_BITS) & (keys < (spans & ((1 << START_BITS) - 1)))

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        rows, columns = index
        return self.mask_function(
            self.q_sequence[rows, None], np.arange(self.length, dtype=np.int32)[None, columns]
        )


def tiling(total: int) -> tuple[int, int]:
    """Returns (padded length, side of a tile) for a sequence of `total` tokens."""
    tiles = -(-total // LANES)
    side = max(n for n in range(1, LARGEST_TILE // LANES + 1) if tiles % n == 0)
    return tiles * LANES, side * LANES


def attend(
    q: Float[Array, "b L h d"],
    k: Float[Array, "b L h d"],
    v: Float[Array, "b L h d"],
    softmax_scale: float,
    scales: Scales,
    mask: masks.Mask,
    *,
    interpret: bool,
) -> Float[Array, "b L h d"]:
    """Returns attention of all scales at once, each to the scales that the mask lets it see.

    Under a mesh every device computes its own images and heads, because XLA's partitioner cannot
    split the kernel.

    Args:
      interpret: whether XLA operations replace the kernel, for a CPU.
    """
    length, tile = tiling(scales.total)
    sizes = splash_attention_kernel.BlockSizes(
        block_q=tile,
        block_kv=tile,
        block_q_dkv=tile,
        block_kv_dkv=tile,
        block_q_dq=tile,
        block_kv_dq=tile,
    )

    def attend_local(*qkv):
        padding = ((0, 0), (0, length - scales.total), (0, 0), (0, 0))
        q, k, v = (jnp.swapaxes(jnp.pad(t, padding), 1, 2) for t in qkv)
        heads = splash_attention_mask.MultiHeadMask([ScaleMask(scales, mask, length)] * q.shape[1])
        kernel = splash_attention_kernel.make_splash_mha_single_device(
            heads, block_sizes=sizes, interpret=interpret
        )
        values = jnp.swapaxes(jnp.asarray(jax.vmap(kernel)(q, k, v)), 1, 2)
        return values[:, : scales.total]

    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty:
        spec = sharding.spec_for_shape(("batch", "tokens", "act_heads", None), q.shape, mesh.shape)
        attend_local = jax.shard_map(
            attend_local, in_specs=(spec,) * 3, out_specs=spec, check_vma=False
        )
    return attend_local((q * softmax_scale).astype(q.dtype), k, v)
