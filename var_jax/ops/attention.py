"""Attention over token maps of shape (batch, length, heads, head_dim), with the softmax in float32.

The implementations compute the same numbers; the accelerator decides which one runs:

- xla: one block of queries per scale against the keys it sees, so that masked blocks are never
  computed; on one CPU in float32 by `ops.cpu_attention`.
- splash: a Pallas kernel for TPUs that keeps the logits on the chip (`ops.attention_splash`).
- cudnn: the blocks of xla, the large ones by cuDNN's fused kernel; for GPUs, bfloat16 or float16.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import jax
import jax.numpy as jnp

from var_jax.config.scales import Scales
from var_jax.devices import target
from var_jax.errors import UserError
from var_jax.ops import attention_splash, cpu_attention, masks
from var_jax.ops.normalize import l2_normalize

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

Implementation = Literal["xla", "splash", "cudnn"]

# Scales with fewer tokens than a tile of cuDNN's kernel are left to XLA: the kernel would compute
# mostly padding, and its backward pass refuses some of the smallest shapes. These scales hold 3 %
# of the pairs at 256 px.
FUSED_QUERIES = 64


def normalize(x: Float[Array, "b l h d"]) -> Float[Array, "b l h d"]:
    """Returns queries or keys divided by their L2 norm, computed in float32 (QK-norm)."""
    return l2_normalize(x.astype(jnp.float32)).astype(x.dtype)


def attend(
    q: Float[Array, "b q h d"],
    k: Float[Array, "b k h d"],
    v: Float[Array, "b k h d"],
    softmax_scale: float,
    mask: Bool[Array, "q k"] | None = None,
) -> Float[Array, "b q h d"]:
    """Returns softmax(softmax_scale q k^T) v over all keys, or over those where `mask` is true."""
    is_float32 = q.dtype == k.dtype == v.dtype == jnp.float32
    if mask is None and is_float32 and target.is_single_cpu():
        return cpu_attention.attend(q, k, v, softmax_scale)
    logits = softmax_scale * jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32)
    if mask is not None:
        logits = jnp.where(mask, logits, -jnp.inf)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v)


def fused(
    q: Float[Array, "b q h d"],
    k: Float[Array, "b k h d"],
    v: Float[Array, "b k h d"],
    softmax_scale: float,
    backend: Literal["cudnn", "xla"] = "cudnn",
) -> Float[Array, "b q h d"]:
    """Returns `attend` over all keys, by a fused kernel where the queries fill its tiles.

    Args:
      backend: the implementation of `jax.nn.dot_product_attention`; "xla" computes the same where
        there is no GPU.
    """
    if q.shape[1] < FUSED_QUERIES:
        return attend(q, k, v, softmax_scale)
    return jax.nn.dot_product_attention(q, k, v, scale=softmax_scale, implementation=backend)


def by_scale(
    q: Float[Array, "b L h d"],
    k: Float[Array, "b L h d"],
    v: Float[Array, "b L h d"],
    *,
    softmax_scale: float,
    scales: Scales,
    mask: masks.Mask,
    block: Callable[..., jax.Array] = attend,
) -> Float[Array, "b L h d"]:
    """Returns attention of all scales, one block of queries per scale against the keys it sees.

    Masked pairs (38 % at 256 px) are never computed, except where every scale is one token: so many
    blocks would take longer than all pairs at once.

    Args:
      block: computes one scale's attention from its queries and the keys and values it sees.
    """
    if len(scales) > 1 and max(scales.lengths) == 1:
        return attend(q, k, v, softmax_scale, jnp.asarray(masks.dense(scales, mask)))
    parts = []
    for i in range(len(scales)):
        seen = masks.visible(scales, mask, i)
        parts.append(block(q[:, scales.span(i)], k[:, seen], v[:, seen], softmax_scale))
    return jnp.concatenate(parts, axis=1)


def masked(
    q: Float[Array, "b L h d"],
    k: Float[Array, "b L h d"],
    v: Float[Array, "b L h d"],
    *,
    softmax_scale: float,
    scales: Scales,
    mask: masks.Mask,
    implementation: Implementation,
) -> Float[Array, "b L h d"]:
    """Returns attention of all scales at once, each to the scales that the mask lets it see."""
    if implementation == "splash":
        return attention_splash.attend(
            q, k, v, softmax_scale, scales, mask, interpret=target.platform() == "cpu"
        )
    return by_scale(
        q,
        k,
        v,
        softmax_scale=softmax_scale,
        scales=scales,
        mask=mask,
        block=_block(implementation),
    )


def cached(
    q: Float[Array, "b q h d"],
    k: Float[Array, "b k h d"],
    v: Float[Array, "b k h d"],
    *,
    softmax_scale: float,
    implementation: Implementation,
) -> Float[Array, "b q h d"]:
    """Returns attention of one scale to all keys that it sees, the cached ones and its own."""
    return _block(implementation)(q, k, v, softmax_scale)


def _block(implementation: Implementation) -> Callable[..., jax.Array]:
    return functools.partial(fused, backend="cudnn") if implementation == "cudnn" else attend


def is_fusible(dtype: jnp.dtype, head_dim: int) -> bool:
    """Returns whether cuDNN's fused kernel takes heads of this dtype and size."""
    return dtype.itemsize == 2 and head_dim % 8 == 0 and head_dim <= 128


def choose(
    requested: Literal["auto", "xla", "splash", "cudnn"], dtype: jnp.dtype, head_dim: int
) -> Implementation:
    """Returns the implementation to run on `target.platform()`.

    A CPU runs splash too, interpreted, which is correct and slow.

    Args:
      requested: an implementation, or "auto" for the platform's own.
    Raises:
      UserError: the requested one cannot run there, or not with this dtype or head_dim.
    """
    here = target.platform()
    fusible = is_fusible(dtype, head_dim)
    if requested == "auto":
        if here == "tpu":
            return "splash"
        return "cudnn" if here == "gpu" and fusible else "xla"
    if requested == "splash" and here == "gpu":
        raise UserError(
            "transformer.attention is 'splash', a kernel for TPUs; "
            "on a GPU it must be auto, xla or cudnn"
        )
    if requested == "cudnn" and here != "gpu":
        raise UserError(
            "transformer.attention is 'cudnn', a kernel for GPUs; "
            f"on a {here.upper()} it must be auto, xla or splash"
        )
    if requested == "cudnn" and not fusible:
        raise UserError(
            f"transformer.attention is 'cudnn' with {dtype.name} and heads of {head_dim}; "
            "it must be xla, or the dtype bfloat16 and the heads a multiple of 8 up to 128"
        )
    return requested
