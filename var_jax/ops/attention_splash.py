"""Masked attention by JAX's Pallas kernel for TPUs (splash attention).

The logits stay in VMEM and are never written to HBM.

The kernel skips blocks of logits in which no token sees another and computes all others in full. At
256 px a block (384 tokens) is larger than every scale (at most 256) and none is empty, so that the
kernel saves only memory and its traffic; at 512 px about a third of the blocks are empty.
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

LANES = 128  # the kernel takes blocks whose sides are multiples of this
OUTPUT = "attention_output"  # the name of the results for policies of rematerialization
LARGEST_BLOCK = 512  # float32 logits of a larger one would crowd VMEM
END_BITS = 16  # an entry of `ScaleMask.q_sequence` is a span as start << END_BITS | end


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
        """Each query's span as start << END_BITS | end, int32 (length,).

        The kernel hands its entries to `mask_function`. The base class expects positions here;
        packed spans serve as well.
        """
        spans = [masks.visible(self.scales, self.mask, k) for k in range(len(self.scales))]
        packed = np.array([span.start << END_BITS | span.stop for span in spans], np.int32)
        padding = self.length - self.scales.total
        return np.pad(packed[self.scales.level_ids], (0, padding), mode="edge")

    @staticmethod
    def mask_function(spans, keys):
        """Returns whether each query sees each key; it runs in the kernel.

        Args:
          spans: entries of `q_sequence`.
          keys: positions of the keys.
        """
        return (keys >= spans >> END_BITS) & (keys < (spans & ((1 << END_BITS) - 1)))

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        """Returns a part of the mask, by which the kernel's setup finds the empty blocks."""
        rows, columns = index
        return self.mask_function(
            self.q_sequence[rows, None], np.arange(self.length, dtype=np.int32)[None, columns]
        )


def blocking(total: int) -> tuple[int, int]:
    """Returns (padded length, side of a block) for a sequence of `total` tokens.

    The side is the largest up to LARGEST_BLOCK that divides the padded length.
    """
    groups = -(-total // LANES)  # of LANES tokens
    side = max(n for n in range(1, LARGEST_BLOCK // LANES + 1) if groups % n == 0)
    return groups * LANES, side * LANES


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
    """Returns the attention of the whole sequence; each token attends to the keys `mask` shows it.

    Under a mesh every device computes its own images and heads, because XLA's partitioner cannot
    split the kernel.

    Args:
      interpret: whether to run the kernel in Pallas's interpret mode, for tests on a CPU.
    """
    length, block = blocking(scales.total)
    sizes = splash_attention_kernel.BlockSizes(
        block_q=block,
        block_kv=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_q_dq=block,
        block_kv_dq=block,
    )

    def attend_local(*qkv):
        # Padded, and (images, heads, tokens, channels); the kernel takes one image.
        padding = ((0, 0), (0, length - scales.total), (0, 0), (0, 0))
        q, k, v = (jnp.swapaxes(jnp.pad(t, padding), 1, 2) for t in qkv)
        heads = splash_attention_mask.MultiHeadMask([ScaleMask(scales, mask, length)] * q.shape[1])
        kernel = splash_attention_kernel.make_splash_mha_single_device(
            heads, block_sizes=sizes, interpret=interpret, residual_checkpoint_name=OUTPUT
        )
        out = jnp.swapaxes(jnp.asarray(jax.vmap(kernel)(q, k, v)), 1, 2)
        return out[:, : scales.total]

    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty:
        spec = sharding.spec_for_shape(("batch", "tokens", "act_heads", None), q.shape, mesh.shape)
        # The check would need the axes over which outputs vary, which the kernel does not declare.
        attend_local = jax.shard_map(
            attend_local, in_specs=(spec,) * 3, out_specs=spec, check_vma=False
        )
    # The kernel does not scale the logits.
    return attend_local((q * softmax_scale).astype(q.dtype), k, v)
