"""Attention over token maps. Shapes are (batch, length, heads, head_dim); softmax is float32
always.

The implementations compute the same numbers; which one runs is a matter of the accelerator:

- xla: one block of queries a scale against the keys it sees, so that masked blocks are never
computed.
- splash: a Pallas kernel for TPUs that keeps the logits on the chip (`ops.splash`).
- cudnn: the blocks of xla, the large ones by cuDNN's fused kernel; for GPUs, bfloat16 or float16.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import jax
import jax.numpy as jnp

from var_jax.config.scales import Scales
from var_jax.errors import UserError
from var_jax.ops import attention_splash, masks
from var_jax.ops.normalize import l2_normalize

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

Implementation = Literal["xla", "splash", "cudnn"]

# Scales of fewer tokens than a tile of cuDNN's kernel are left to XLA: the kernel would compute
# mostly padding, and its backward pass refuses some of the smallest shapes. They hold 3 % of the
# pairs at 256 px.
FUSED_QUERIES = 64


def normalise(x: Float[Array, "b l h d"]) -> Float[Array, "b l h d"]:
    """`x` over its L2 norm along head_dim, in float32 and back (QK-norm)."""
    return l2_normalize(x.astype(jnp.float32)).astype(x.dtype)


def attend(
    q: Float[Array, "b q h d"],
    k: Float[Array, "b k h d"],
    v: Float[Array, "b k h d"],
    scale: float,
    mask: Bool[Array, "q k"] | None = None,
) -> Float[Array, "b q h d"]:
    """softmax(scale q k^T) v, of all keys or of those that `mask` lets through."""
    logits = scale * jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32)
    if mask is not None:
        logits = jnp.where(mask, logits, -jnp.inf)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v)


def fused(
    q: Float[Array, "b q h d"],
    k: Float[Array, "b k h d"],
    v: Float[Array, "b k h d"],
    scale: float,
    backend: Literal["cudnn", "xla"] = "cudnn",
) -> Float[Array, "b q h d"]:
    """`attend` of all keys by `jax.nn.dot_product_attention`, where there are queries enough to
    fill its tiles.

    Args:
      backend: its implementation; "xla" computes the same where there is no GPU.
    """
    if q.shape[1] < FUSED_QUERIES:
        return attend(q, k, v, scale)
    return jax.nn.dot_product_attention(q, k, v, scale=scale, implementation=backend)


def by_scale(
    q: Float[Array, "b L h d"],
    k: Float[Array, "b L h d"],
    v: Float[Array, "b L h d"],
    scale: float,
    scales: Scales,
    mask: masks.Mask,
    block: Callable[..., jax.Array] = attend,
) -> Float[Array, "b L h d"]:
    """One block of queries a scale against the keys it sees: masked pairs (38 % at 256 px) are
    never computed."""
    parts = []
    for i in range(len(scales)):
        seen = masks.visible(scales, mask, i)
        parts.append(block(q[:, scales.span(i)], k[:, seen], v[:, seen], scale))
    return jnp.concatenate(parts, axis=1)


def masked(
    q: Float[Array, "b L h d"],
    k: Float[Array, "b L h d"],
    v: Float[Array, "b L h d"],
    scale: float,
    scales: Scales,
    mask: masks.Mask,
    implementation: Implementation,
) -> Float[Array, "b L h d"]:
    """Attention of all scales at once, each to those that the mask lets it see."""
    if implementation == "splash":
        return attention_splash.attend(q, k, v, scale, scales, mask, interpret=platform() == "cpu")
    return by_scale(q, k, v, scale, scales, mask, _block(implementation))


def cached(
    q: Float[Array, "b q h d"],
    k: Float[Array, "b k h d"],
    v: Float[Array, "b k h d"],
    scale: float,
    implementation: Implementation,
) -> Float[Array, "b q h d"]:
    """Attention of one scale to the keys that it sees, all of them."""
    return _block(implementation)(q, k, v, scale)


def _block(implementation: Implementation) -> Callable[..., jax.Array]:
    return functools.partial(fused, backend="cudnn") if implementation == "cudnn" else attend


def platform() -> str:
    """ "cpu", "gpu" or "tpu": of the mesh that is set, which may be of devices that are not here,
    else of this host."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def choose(
    wanted: Literal["auto", "xla", "splash", "cudnn"], dtype: jnp.dtype, head_dim: int
) -> Implementation:
    """The implementation to run on `platform()`: the wanted one, or for "auto" the platform's own.

    A CPU runs splash too, interpreted: right, and slow.

    Raises:
      UserError: the wanted one cannot run there, or not with this dtype or head_dim.
    """
    here = platform()
    fusible = dtype.itemsize == 2 and head_dim % 8 == 0 and head_dim <= 128
    if wanted == "auto":
        return "splash" if here == "tpu" else "cudnn" if here == "gpu" and fusible else "xla"
    if wanted == "splash" and here == "gpu":
        raise UserError(
            "transformer.attention is 'splash', a kernel for TPUs; on a GPU it must be auto, xla or cudnn"
        )
    if wanted == "cudnn" and here != "gpu":
        raise UserError(
            f"transformer.attention is 'cudnn', a kernel for GPUs; on a {here.upper()} it must be auto, "
            "xla or splash"
        )
    if wanted == "cudnn" and not fusible:
        raise UserError(
            f"transformer.attention is 'cudnn' with {dtype.name} and heads of {head_dim}; it must be xla, "
            "or the dtype bfloat16 and the heads a multiple of 8 up to 128"
        )
    return wanted
