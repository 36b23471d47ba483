"""The next-scale transformer: GPT-2-like blocks with class-conditional AdaLN (VAR, section 3.3), in
Flax Linen."""

from __future__ import annotations

from typing import TYPE_CHECKING

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from var_jax.config.model import TransformerConfig
from var_jax.config.scales import Scales
from var_jax.config.strict import require_from_data
from var_jax.devices.sharding import constrain, parameter
from var_jax.ops import attention, masks
from var_jax.ops.products import add_bias, last_axis_spec, product

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, PRNGKeyArray

LN_EPS = 1e-6
MAX_LOG_SCALE = float(np.log(100))
REMAT = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


@flax.struct.dataclass
class Cache:
    """What generation keeps between scales; inside a block, one layer's part of it.

    Attributes:
      k, v: keys and values of the coarser scales that the next one sees, one entry a scale, each
        (layers, b, l, h, d).
      modulations: the class's AdaLN (layers, b, 6, w), None before the first scale. A third of the
        weights lies in front of it, and it does not change from scale to scale.
      first: of an empty cache, how many first scales come at once; 0 where one comes at a time.
    """

    k: tuple[jax.Array, ...] = ()
    v: tuple[jax.Array, ...] = ()
    modulations: jax.Array | None = None
    first: int = flax.struct.field(pytree_node=False, default=0)


def wide_product(x: Float[Array, "*b i"], kernel: Float[Array, "i o"]) -> Float[Array, "*b o"]:
    """x W summed and given in float32, from operands of any dtype.

    The backward pass rounds the cotangent to the operands' dtype first, so that both of its
    products run at that dtype's rate, as those of all other layers do.
    """
    return product(last_axis_spec(x.ndim, 1), x, kernel, x.dtype, kernel.dtype, wide=True)


class Linear(nn.Module):
    """x W + b over the last axis, the output of any rank, every dimension with its logical name.

    Attributes:
      wide: the product is summed, biased and given in float32 (logits), whatever the dtype of its
        operands.
    """

    shape: tuple[int, ...]
    names: tuple[str | None, ...]
    config: TransformerConfig
    init_factor: float = 1.0
    wide: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        stored, dtype = jnp.dtype(self.config.param_dtype), jnp.dtype(self.config.dtype)
        init = nn.initializers.normal(self.config.init_std * self.init_factor)
        kernel = parameter(self, "kernel", init, (x.shape[-1], *self.shape), self.names, stored)
        bias = parameter(self, "bias", nn.initializers.zeros, self.shape, self.names[1:], stored)
        spec, summed = (
            last_axis_spec(x.ndim, len(self.shape)),
            jnp.dtype(self.config.gradient_dtype),
        )
        return add_bias(product(spec, x, kernel, dtype, summed, wide=self.wide), bias, summed)


def gamma_init(config: TransformerConfig, std: float):
    """Normal of `std` for (..., 6, width) modulations, times init_adaln_gamma for gammas,
    init_adaln for the rest."""
    factors = np.array([config.init_adaln_gamma] * 2 + [config.init_adaln] * 4)[:, None]

    def init(key, shape, dtype):
        return (jax.random.normal(key, shape) * (std * factors)).astype(dtype)

    return init


class Modulation(nn.Module):
    """SiLU and a linear from the condition to n vectors of the model width: AdaLN's scales, shifts
    and gammas."""

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
        stored, dtype = jnp.dtype(c.param_dtype), jnp.dtype(c.dtype)
        names = ("embed", "modulation", "modulated")
        kernel = parameter(self, "kernel", init, (c.width, self.n, c.width), names, stored)
        bias = parameter(self, "bias", nn.initializers.zeros, (self.n, c.width), names[1:], stored)
        summed = jnp.dtype(c.gradient_dtype)
        return add_bias(product("bw,wnv->bnv", nn.silu(cond), kernel, dtype, summed), bias, summed)


def layer_norm(
    x: Float[Array, "b l w"],
    scale: Float[Array, "b w"],
    shift: Float[Array, "b w"],
) -> Float[Array, "b l w"]:
    """LayerNorm without parameters in float32, then (1 + scale) and shift of AdaLN, in the dtype of
    `x`."""
    wide = x.astype(jnp.float32)
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    normed = centred * jax.lax.rsqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + LN_EPS)
    scale, shift = (m.astype(jnp.float32)[:, None] for m in (scale, shift))
    return (normed * (1 + scale) + shift).astype(x.dtype)


class Attention(nn.Module):
    config: TransformerConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b l w"], cache: Cache | None):
        """All scales at once under the mask (`cache` None), or the first ones, whose keys and
        values are given, or one scale that sees itself and the cached ones.

        Returns:
          the output (b, l, w), and the new keys and values (None without a cache).
        """
        c = self.config
        heads, names = (c.heads, c.head_dim), ("heads", "head_dim")
        stored, dtype = jnp.dtype(c.param_dtype), jnp.dtype(c.dtype)
        kernel = parameter(
            self,
            "qkv",
            nn.initializers.normal(c.init_std),
            (c.width, 3, *heads),
            ("embed", "qkv", *names),
            stored,
        )
        summed = jnp.dtype(c.gradient_dtype)
        qkv = product("blw,wnhd->blnhd", x, kernel, dtype, summed)
        zeros = nn.initializers.zeros
        q = add_bias(qkv[:, :, 0], parameter(self, "q_bias", zeros, heads, names, stored), summed)
        k = qkv[:, :, 1]
        v = add_bias(qkv[:, :, 2], parameter(self, "v_bias", zeros, heads, names, stored), summed)
        scale = 0.25 / c.head_dim**0.5
        if c.qk_norm:
            init = nn.initializers.constant(np.log(4.0))
            log_scale = parameter(self, "log_scale", init, heads[:1], names[:1], stored)
            per_head = jnp.exp(jnp.minimum(log_scale.astype(jnp.float32), MAX_LOG_SCALE))
            q = (attention.normalise(q) * per_head[:, None]).astype(dtype)
            k = attention.normalise(k)
            scale = 1.0
        q, k, v = (constrain(t, "batch", "tokens", "act_heads", None) for t in (q, k, v))
        implementation = attention.choose(c.attention, dtype, c.head_dim)
        if cache is None:
            present = c.scales.of_length(q.shape[1])
            y, new = attention.masked(q, k, v, scale, present, c.mask, implementation), None
        elif cache.first:
            some = Scales(c.scales.sizes[: cache.first])
            # Never splash: its tiles are made for whole sequences, and this is a part of one,
            # without gradients.
            block = "xla" if implementation == "splash" else implementation
            y, new = attention.masked(q, k, v, scale, some, c.mask, block), (k, v)
        else:
            seen_k, seen_v = jnp.concatenate([*cache.k, k], 1), jnp.concatenate([*cache.v, v], 1)
            y, new = attention.cached(q, seen_k, seen_v, scale, implementation), (k, v)
        std = c.init_std / (2 * c.depth) ** 0.5
        proj = parameter(
            self, "proj", nn.initializers.normal(std), (*heads, c.width), (*names, "embed"), stored
        )
        bias = parameter(self, "proj_bias", zeros, (c.width,), ("embed",), stored)
        return add_bias(product("blhd,hdw->blw", y, proj, dtype, summed), bias, summed), new


class Block(nn.Module):
    """Attention and MLP, each normalised and modulated before, and gated by gamma after."""

    config: TransformerConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b l w"],
        cache: Cache | None,
        keep: Float[Array, "2 b"] | None,
        cond: Float[Array, "b w"] | Float[Array, "b 6 w"],
    ):
        """The block's output, and its part of the cache: new keys, new values, modulations (None
        without a cache)."""
        c = self.config
        if cache is not None and cache.modulations is not None:
            modulations = cache.modulations
        elif c.shared_adaln:
            init, stored = gamma_init(c, c.width**-0.5), jnp.dtype(c.param_dtype)
            offset = parameter(
                self, "ada_offset", init, (6, c.width), ("modulation", "modulated"), stored
            )
            modulations = add_bias(cond, offset, jnp.dtype(c.gradient_dtype))
        else:
            modulations = Modulation(6, c, init="block", name="ada")(cond)
        gamma1, gamma2, scale1, scale2, shift1, shift2 = (modulations[:, i] for i in range(6))
        if keep is not None:  # drop-path drops a sample's whole branch, and scales the kept ones up
            gamma1, gamma2 = gamma1 * keep[0][:, None], gamma2 * keep[1][:, None]
        y, new = Attention(c, name="attn")(layer_norm(x, scale1, shift1), cache)
        x = x + (y * gamma1[:, None]).astype(x.dtype)
        y = Linear((c.hidden,), ("embed", "mlp"), c, name="fc1")(layer_norm(x, scale2, shift2))
        y = nn.gelu(constrain(y, "batch", "tokens", "act_mlp"), approximate=True)
        y = Linear((c.width,), ("mlp", "embed"), c, (2 * c.depth) ** -0.5, name="fc2")(y)
        x = x + (y * gamma2[:, None]).astype(x.dtype)
        return constrain(x, "batch", "tokens", "act_embed"), new and (*new, modulations)


class Transformer(nn.Module):
    """Logits of every token of a scale from the coarser scales and a class."""

    config: TransformerConfig

    def setup(self):
        c = self.config
        require_from_data("transformer.num_classes", c.num_classes)
        stored = jnp.dtype(c.param_dtype)
        normal = nn.initializers.normal(c.init_std)
        self.word_embed = Linear((c.width,), ("code", "embed"), c)

        def table(name: str, rows: int, axis: str):
            return parameter(self, name, normal, (rows, c.width), (axis, "embed"), stored)

        self.class_embed = table("class_embed", c.num_classes + 1, "classes")
        self.pos_start = table("pos_start", c.scales.lengths[0], "positions")
        self.pos_embed = table("pos_embed", c.scales.total, "positions")
        self.level_embed = table("level_embed", len(c.scales), "levels")
        block = (
            Block
            if c.remat == "none"
            else nn.remat(Block, prevent_cse=False, policy=REMAT[c.remat])
        )
        self.blocks = nn.scan(
            block,
            length=c.depth,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, 0, nn.broadcast),
            out_axes=0,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(c)
        if c.shared_adaln:
            self.shared_ada = Modulation(6, c)
        self.head_ada = Modulation(2, c, init="head")
        self.head = Linear((c.vocab_size,), ("embed", "vocab"), c, c.init_head, wide=True)

    def __call__(
        self,
        inputs: Float[Array, "b L-l1 c"],
        labels: Int[Array, " b"],
        rng: PRNGKeyArray | None = None,
    ) -> Float[Array, "b L v"]:
        """Teacher forcing: logits of all scales at once, or of the first ones.

        Args:
          inputs: the tokenizer's `teacher_input` of the true tokens, or as much of it as the first
            scales have.
          labels: class ids; `num_classes` means "no class".
          rng: given in training, draws class dropout and drop-path; without it neither acts.
        """
        c, batch = self.config, labels.shape[0]
        keep = None
        if rng is not None:
            class_rng, path_rng = jax.random.split(rng)
            dropped = jax.random.bernoulli(class_rng, c.class_dropout, (batch,))
            labels = jnp.where(dropped, c.num_classes, labels)
            keep_rate = 1 - jnp.linspace(0, c.drop_path, c.depth)[:, None, None]
            keep = jax.random.bernoulli(path_rng, keep_rate, (c.depth, 2, batch)) / keep_rate
        cond = self._condition(labels)
        x = jnp.concatenate([self._start(cond), self.word_embed(inputs)], axis=1)
        x = self._placed(x, slice(0, x.shape[1]))
        x, _ = self.blocks(
            constrain(x, "batch", "tokens", "act_embed"), None, keep, self._block_condition(cond)
        )
        return self._logits(x, cond)

    def next_scale(
        self, k: int, inputs: Float[Array, "b l c"] | None, labels: Int[Array, " b"], cache: Cache
    ) -> tuple[Float[Array, "b l v"], Cache]:
        """Logits of scale k, and the cache for scale k + 1, in order from 0; `inputs` is unused
        (None) at the first."""
        cond = self._condition(labels)
        x = self._placed(
            self._start(cond) if k == 0 else self.word_embed(inputs), self.config.scales.span(k)
        )
        x, (new_k, new_v, modulations) = self.blocks(x, cache, None, self._block_condition(cond))
        c = self.config
        unseen = masks.first_visible(c.mask, k + 1) - masks.first_visible(c.mask, k)
        kept_k, kept_v = (*cache.k, new_k)[unseen:], (*cache.v, new_v)[unseen:]
        return self._logits(x, cond), Cache(kept_k, kept_v, modulations)

    def prefill(self, n: int, inputs: Float[Array, "b l-l1 c"], labels: Int[Array, " b"]) -> Cache:
        """The cache for scale n, as `next_scale` leaves it after scales 0 to n - 1, from all of
        them in one pass.

        Args:
          inputs: the tokenizer's `teacher_input` as far as those scales need it.
        """
        c, cond = self.config, self._condition(labels)
        x = jnp.concatenate([self._start(cond), self.word_embed(inputs)], axis=1)
        x = self._placed(x, slice(0, c.scales.offsets[n]))
        _, (k, v, modulations) = self.blocks(x, Cache(first=n), None, self._block_condition(cond))
        seen = [c.scales.span(i) for i in range(masks.first_visible(c.mask, n), n)]
        return Cache(
            tuple(k[:, :, span] for span in seen),
            tuple(v[:, :, span] for span in seen),
            modulations,
        )

    def _condition(self, labels):
        return jnp.take(self.class_embed, labels, axis=0).astype(jnp.dtype(self.config.dtype))

    def _block_condition(self, cond):
        return self.shared_ada(cond) if self.config.shared_adaln else cond

    def _start(self, cond):
        rows = jnp.repeat(cond[:, None], self.pos_start.shape[0], axis=1)
        return add_bias(rows, self.pos_start, jnp.dtype(self.config.gradient_dtype))

    def _placed(self, x, span: slice):
        """x plus level and position embedding of the tokens in `span`."""
        places = (
            jnp.take(self.level_embed, self.config.scales.level_ids[span], axis=0)
            + self.pos_embed[span]
        )
        return add_bias(x, places, jnp.dtype(self.config.gradient_dtype))

    def _logits(self, x, cond):
        scale, shift = jnp.moveaxis(self.head_ada(cond), 1, 0)
        logits = self.head(layer_norm(x, scale, shift))
        return constrain(logits, "batch", "tokens", "act_vocab")
