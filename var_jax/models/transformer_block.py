"""The transformer's layers: a block of attention and MLP under AdaLN, in Flax Linen.

The layers are GPT-2-like with class-conditional AdaLN. Source: VAR, section 3.3.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from var_jax.config.model import TransformerConfig
from var_jax.config.scales import Scales
from var_jax.devices import gathering, target
from var_jax.devices.sharding import constrain, parameter
from var_jax.ops import attention
from var_jax.ops.mixed_precision import add_bias, last_axis_spec, product

if TYPE_CHECKING:
    from jaxtyping import Array, Float

LN_EPS = 1e-6
MAX_LOG_SCALE = float(np.log(100))


@flax.struct.dataclass
class Cache:
    """The state that sampling carries from scale to scale; inside a block, one layer's part of it.

    Attributes:
      k: keys of the coarser scales that the next scale sees, one (layers, b, l, h, d) per scale.
      v: values of the same scales.
      modulations: the class's AdaLN vectors (layers, b, 6, w), None before the first scale. A third
        of the weights compute them, and they are the same for all scales.
      keep_scales: for an empty cache, how many known leading scales are computed at once; 0 for
        one scale at a time.
    """

    k: tuple[jax.Array, ...] = ()
    v: tuple[jax.Array, ...] = ()
    modulations: jax.Array | None = None
    keep_scales: int = flax.struct.field(pytree_node=False, default=0)


@flax.struct.dataclass
class TokenCache:
    """The cache of token-by-token generation; inside a block, the part of one layer.

    Attributes:
      k: keys of all positions (layers, b, n, h, d), zeros from `length` on.
      v: their values.
      modulations: the class's AdaLN (layers, b, 6, w).
      length: positions that are filled, once per layer (layers,).
    """

    k: jax.Array
    v: jax.Array
    modulations: jax.Array
    length: jax.Array


class LayerCache(NamedTuple):
    """The keys, values and modulations that a block adds to the cache.

    Attributes:
      k: keys of the tokens that it computed.
      v: their values.
      modulations: AdaLN's vectors of the class.
    """

    k: Float[Array, "b l h d"]
    v: Float[Array, "b l h d"]
    modulations: Float[Array, "b 6 w"]


class Linear(nn.Module):
    """x W + b over the last axis, with an output of any rank.

    Attributes:
      shape: sizes of the output's new dimensions.
      names: logical axis names of the kernel.
      init_factor: factor on the kernel's standard deviation at initialization.
      wide: whether the product is summed and returned in float32 (logits), whatever the dtype of
        its operands.
    """

    shape: tuple[int, ...]
    names: tuple[str | None, ...]
    config: TransformerConfig
    init_factor: float = 1.0
    wide: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        stored, dtype = jnp.dtype(self.config.float_param_dtype), jnp.dtype(self.config.dtype)
        summed = jnp.dtype(self.config.gradient_dtype)
        init = nn.initializers.normal(self.config.init_std * self.init_factor)
        kernel = parameter(self, "kernel", init, (x.shape[-1], *self.shape), self.names, stored)
        bias = parameter(self, "bias", nn.initializers.zeros, self.shape, self.names[1:], stored)
        spec = last_axis_spec(x.ndim, len(self.shape))
        y = product(spec, x, kernel, dtype, summed, wide=self.wide, names=self.names)
        return add_bias(y, bias, summed)


def gamma_init(config: TransformerConfig, std: float) -> nn.initializers.Initializer:
    """Returns the initializer of (..., 6, width) modulations.

    It is normal with a deviation of `std`, times init_adaln_gamma for the two gammas and init_adaln
    for the four others.
    """
    factors = np.array([config.init_adaln_gamma] * 2 + [config.init_adaln] * 4)[:, None]

    def init(key, shape, dtype):
        return (jax.random.normal(key, shape) * (std * factors)).astype(dtype)

    return init


class Modulation(nn.Module):
    """SiLU and a linear layer from the condition to AdaLN's scales, shifts and gammas.

    Attributes:
      n: number of vectors of the model width.
      init: "plain", "block" or "head": how the kernel is initialized.
    """

    n: int
    config: TransformerConfig
    init: str = "plain"

    @nn.compact
    def __call__(self, cond: Float[Array, "b w"]) -> Float[Array, "b n w"]:
        c = self.config
        init = {
            "plain": nn.initializers.normal(c.init_std),
            "block": gamma_init(c, c.init_std),
            "head": nn.initializers.normal(c.init_std * c.init_adaln),
        }[self.init]
        stored, dtype = jnp.dtype(c.float_param_dtype), jnp.dtype(c.dtype)
        names = ("condition", "modulation", "modulated")
        kernel = parameter(self, "kernel", init, (c.width, self.n, c.width), names, stored)
        bias = parameter(self, "bias", nn.initializers.zeros, (self.n, c.width), names[1:], stored)
        summed = jnp.dtype(c.gradient_dtype)
        cond = nn.silu(cond)
        if not gathering.is_training():  # weights are whole along the data axis
            return add_bias(product("bw,wnv->bnv", cond, kernel, dtype, summed), bias, summed)
        # A third of a block's weights: each device computes some columns for all images of its
        # replica, and they exchange these, which takes less than gathering the weights.
        cond = constrain(cond, "group", None)
        y = add_bias(product("bw,wnv->bnv", cond, kernel, dtype, summed), bias, summed)
        y = constrain(y, "group", None, "modulated")
        # By gathering on CPUs: their runtime does not order an all-to-all with other collectives,
        # so that devices may wait for each other in two of them.
        if target.platform() == "cpu":
            y = constrain(y, "group", None, None)
        return constrain(y, "batch", None, None)


def recomputed(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Returns an elementwise function that is recomputed in the backward pass on a single CPU.

    It then keeps only its arguments. Under the scan over layers, each array that is kept is
    written, copied into a stack and read again, which takes longer there than computing it twice.
    """

    @functools.wraps(function)
    def call(*args: jax.Array) -> jax.Array:
        if target.is_single_cpu():
            return jax.checkpoint(function, prevent_cse=False)(*args)
        return function(*args)

    return call


@recomputed
def gelu(x: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """Returns GELU in its approximation by tanh."""
    return nn.gelu(x, approximate=True)


def per_token(
    vectors: Float[Array, "b w"], tokens: int
) -> Float[Array, "b 1 w"] | Float[Array, "b l w"]:
    """Returns a vector of each image in a shape that broadcasts over the image's tokens.

    On a single CPU, that of a single image is repeated for each token. The compiler then sums its
    gradient over both axes, images and tokens; its sum over tokens alone takes 15 times as long.
    """
    if len(vectors) == 1 and target.is_single_cpu():
        return jnp.broadcast_to(vectors[:, None], (1, tokens, vectors.shape[1]))
    return vectors[:, None]


@recomputed
def layer_norm(
    x: Float[Array, "b l w"],
    scale: Float[Array, "b w"],
    shift: Float[Array, "b w"],
) -> Float[Array, "b l w"]:
    """Returns AdaLN: LayerNorm without parameters, then (1 + scale) and shift.

    It is computed in float32 and returned in the dtype of `x`.
    """
    wide = x.astype(jnp.float32)
    centered = wide - jnp.mean(wide, axis=-1, keepdims=True)
    normed = centered * jax.lax.rsqrt(jnp.mean(centered**2, axis=-1, keepdims=True) + LN_EPS)
    scale, shift = (per_token(m.astype(jnp.float32), x.shape[1]) for m in (scale, shift))
    return (normed * (1 + scale) + shift).astype(x.dtype)


def head_norm(module: nn.Module, config: TransformerConfig) -> Float[Array, "2 w"]:
    """Returns the parameter of `module` with scale and shift of the plain LayerNorm before a head.

    Call it in the `setup` of a network whose class is only a start token.
    """
    zeros, stored = nn.initializers.zeros, jnp.dtype(config.float_param_dtype)
    names = ("modulation", "modulated")
    return parameter(module, "head_norm", zeros, (2, config.width), names, stored)


def spread_norm(norm: Float[Array, "2 w"], cond: Float[Array, "b w"]) -> Float[Array, "b 2 w"]:
    """Returns a scale and shift repeated for every row of a batch, in the form that AdaLN has."""
    return jnp.broadcast_to(norm.astype(cond.dtype), (len(cond), *norm.shape))


class Attention(nn.Module):
    """Multi-head self-attention over the blocks of a sequence, with optional QK-norm.

    The blocks are the scales, or those of another objective's sequence
    (`TransformerConfig.sequence`).
    """

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b l w"], cache: Cache | TokenCache | None):
        """Returns the output (b, l, w), and the new (keys, values), None without a cache.

        Args:
          x: tokens of all scales (`cache` None), of the first `cache.keep_scales` scales, of one
            scale that sees itself and the cached ones, or one token that sees itself and those
            before it (a `TokenCache`).
        """
        c = self.config
        heads, names = (c.heads, c.head_dim), ("heads", "head_dim")
        stored, dtype = jnp.dtype(c.float_param_dtype), jnp.dtype(c.dtype)
        summed = jnp.dtype(c.gradient_dtype)
        zeros = nn.initializers.zeros

        # Queries, keys and values come from one product; keys have no bias, as published, but in
        # diffusion transformers.
        init, axes = nn.initializers.normal(c.init_std), ("embed", "qkv", *names)
        kernel = parameter(self, "qkv", init, (c.width, 3, *heads), axes, stored)
        qkv = product("blw,wnhd->blnhd", x, kernel, dtype, summed, names=axes)
        q = add_bias(qkv[:, :, 0], parameter(self, "q_bias", zeros, heads, names, stored), summed)
        k = qkv[:, :, 1]
        if c.key_bias:
            k = add_bias(k, parameter(self, "k_bias", zeros, heads, names, stored), summed)
        v = add_bias(qkv[:, :, 2], parameter(self, "v_bias", zeros, heads, names, stored), summed)
        softmax_scale = 0.25 / c.head_dim**0.5
        if c.qk_norm:
            init = nn.initializers.constant(np.log(4.0))
            log_scale = parameter(self, "log_scale", init, heads[:1], names[:1], stored)
            per_head = jnp.exp(jnp.minimum(log_scale.astype(jnp.float32), MAX_LOG_SCALE))
            q = (attention.normalize(q) * per_head[:, None]).astype(dtype)
            k = attention.normalize(k)
            softmax_scale = 1.0
        q, k, v = (constrain(t, "batch", "tokens", "act_heads", None) for t in (q, k, v))

        # A cache decides the keys that queries see: all, those of the first scales, or cached ones.
        implementation = attention.choose(c.attention, dtype, c.head_dim)
        if isinstance(cache, TokenCache):
            y = attention.attend(
                q,
                jax.lax.dynamic_update_slice_in_dim(cache.k, k, cache.length, axis=1),
                jax.lax.dynamic_update_slice_in_dim(cache.v, v, cache.length, axis=1),
                softmax_scale,
                mask=(jnp.arange(cache.k.shape[1]) <= cache.length)[None],
            )
        elif cache is not None and not cache.keep_scales:
            visible_k = jnp.concatenate([*cache.k, k], 1)
            visible_v = jnp.concatenate([*cache.v, v], 1)
            y = attention.cached(
                q,
                visible_k,
                visible_v,
                softmax_scale=softmax_scale,
                implementation=implementation,
            )
        else:
            if cache is None:
                scales = c.sequence.of_length(q.shape[1])
            else:
                scales = Scales(c.scales.sizes[: cache.keep_scales])
                # Splash's tiles are made for whole sequences, and this is a part of one, without
                # gradients.
                implementation = "xla" if implementation == "splash" else implementation
            y = attention.masked(
                q,
                k,
                v,
                softmax_scale=softmax_scale,
                scales=scales,
                mask=c.mask,
                implementation=implementation,
            )

        init, axes = nn.initializers.normal(c.init_std / (2 * c.depth) ** 0.5), (*names, "embed")
        proj = parameter(self, "proj", init, (*heads, c.width), axes, stored)
        bias = parameter(self, "proj_bias", zeros, (c.width,), ("embed",), stored)
        y = add_bias(product("blhd,hdw->blw", y, proj, dtype, summed, names=axes), bias, summed)
        return y, None if cache is None else (k, v)


class Block(nn.Module):
    """Attention and MLP, each normalized and modulated before, and gated by gamma after."""

    config: TransformerConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b l w"],
        cache: Cache | TokenCache | None,
        keep: Float[Array, "2 b"] | None,
        cond: Float[Array, "b w"] | Float[Array, "b 6 w"] | None,
    ) -> tuple[Float[Array, "b l w"], LayerCache | None]:
        """Returns the block's output and its addition to the cache (None without a cache).

        Args:
          keep: drop-path's factor on each sample's attention and MLP branch; None to keep every
            branch.
          cond: the class's embedding, or its shared AdaLN vectors; None where the cache has the
            modulations.
        """
        c = self.config
        if cache is not None and cache.modulations is not None:
            modulations = cache.modulations
        elif c.class_conditioning == "start_token":
            # LayerNorm's own scales and shifts take the class's place; both branches count fully.
            norms = parameter(
                self,
                "norms",
                nn.initializers.zeros,
                (4, c.width),
                ("modulation", "modulated"),
                jnp.dtype(c.float_param_dtype),
            )
            six = jnp.concatenate([jnp.ones((2, c.width)), norms.astype(jnp.float32)])
            modulations = jnp.broadcast_to(six.astype(x.dtype), (len(x), *six.shape))
        elif c.shared_adaln:
            init, stored = gamma_init(c, c.width**-0.5), jnp.dtype(c.float_param_dtype)
            offset = parameter(
                self, "ada_offset", init, (6, c.width), ("modulation", "modulated"), stored
            )
            modulations = add_bias(cond, offset, jnp.dtype(c.gradient_dtype))
        else:
            modulations = Modulation(6, c, init="block", name="ada")(cond)
        gamma1, gamma2, scale1, scale2, shift1, shift2 = (modulations[:, i] for i in range(6))
        # Drop-path drops a sample's whole branch, and scales the kept branches up.
        if keep is not None:
            gamma1, gamma2 = gamma1 * keep[0][:, None], gamma2 * keep[1][:, None]

        y, new = Attention(c, name="attn")(layer_norm(x, scale1, shift1), cache)
        x = x + (y * per_token(gamma1, y.shape[1])).astype(x.dtype)
        y = Linear((c.hidden,), ("embed", "mlp"), c, name="fc1")(layer_norm(x, scale2, shift2))
        y = gelu(constrain(y, "batch", "tokens", "act_mlp"))
        y = Linear((c.width,), ("mlp", "embed"), c, (2 * c.depth) ** -0.5, name="fc2")(y)
        x = x + (y * per_token(gamma2, y.shape[1])).astype(x.dtype)
        x = constrain(x, "batch", "tokens", "act_embed")
        return x, None if new is None else LayerCache(*new, modulations)
