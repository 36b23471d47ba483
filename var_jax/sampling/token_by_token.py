"""Sampling of next-token models, token by token with cached keys and values, in one program."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from var_jax.config.model import ModelConfig
from var_jax.models import flops, int8_weights
from var_jax.models.token_transformer import TokenTransformer
from var_jax.models.tokenizer import Tokenizer
from var_jax.ops import orders
from var_jax.sampling.guidance import NegativeLabels, guide, guided_rows
from var_jax.sampling.image_keys import KeySource, as_keys
from var_jax.sampling.logits import filter_logits, sample
from var_jax.sampling.objective_sampler import ObjectiveSampler, Prepared, require_number
from var_jax.sampling.sampler import finished
from var_jax.sampling.settings import Settings

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, Key, UInt8


class TokenSamplerConfig(NamedTuple):
    """Settings that are compiled into the program.

    Attributes:
      top_k: number of largest logits that are sampled from; 0 is off.
      use_top_p: whether `TokenSamplingParams.top_p` applies.
      guided: whether the unconditional branch is computed.
      as_uint8: whether images are rounded to uint8.
    """

    top_k: int
    use_top_p: bool
    guided: bool
    as_uint8: bool = False


class TokenSamplingParams(NamedTuple):
    """Settings that are traced: other values run the same program.

    Attributes:
      cfg: guidance strength t, the same at every token.
      top_p: probability mass that is sampled from.
      temperature: divisor of the logits.
    """

    cfg: Float[Array, ""] | float
    top_p: Float[Array, ""] | float
    temperature: Float[Array, ""] | float


@functools.partial(jax.jit, static_argnames=("config", "sampler"))
def generate_tokens(
    config: ModelConfig,
    sampler: TokenSamplerConfig,
    weights: dict,
    labels: Int[Array, " b"],
    keys: Key[Array, " b"] | KeySource,
    params: TokenSamplingParams,
    *,
    negative: NegativeLabels | None = None,
) -> tuple[Float[Array, "b H W c"] | UInt8[Array, "b H W c"], Int[Array, "b L"]]:
    """Samples images for class labels.

    Args:
      weights: {"tokenizer": ..., "transformer": ...}.
      negative: classes that guidance leads away from; None for "no class".
    Returns:
      images in [0, 1], and tokens in raster order.
    """
    keys = as_keys(keys)

    def choose(logits: Float[Array, "rows v"], position: Int[Array, ""] | int) -> jax.Array:
        if sampler.guided:
            logits = guide(logits, params.cfg, negative)
        logits = logits / params.temperature
        logits = filter_logits(logits, sampler.top_k, params.top_p if sampler.use_top_p else None)
        token_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, position)
        return sample(token_keys, logits[:, None])[:, 0]

    rows = labels
    if sampler.guided:
        rows = guided_rows(labels, config.transformer.num_classes, negative)
    tokens = _token_by_token(config, weights, rows, choose, batch=len(labels))
    tokenizer = Tokenizer(config.tokenizer)
    images = tokenizer.apply({"params": weights["tokenizer"]}, tokens, method="decode")
    return finished(images, as_uint8=sampler.as_uint8), tokens


def _token_by_token(
    config: ModelConfig,
    weights: dict,
    labels: Int[Array, " rows"],
    choose: Callable[[Float[Array, "rows v"], Any], Int[Array, " b"]],
    *,
    batch: int,
) -> Int[Array, "b L"]:
    """Returns tokens in raster order.

    Args:
      labels: those of the batch, and of the rows of guidance after them.
      choose: returns the batch's tokens of a position of the sequence from the logits of all rows.
    """
    transformer = TokenTransformer(config.transformer)
    apply = functools.partial(transformer.apply, {"params": weights["transformer"]})
    order = orders.forward(config.transformer.order, config.tokenizer.scales.finest)
    copies = len(labels) // batch

    def step(carry, position):
        token, state = carry
        logits, state = apply(jnp.tile(token, copies), state, method="next_token")
        token = choose(logits, position)
        return (token, state), token

    logits, state = apply(labels, method="first_token")
    first = choose(logits, 0)
    _, later = jax.lax.scan(step, (first, state), jnp.arange(1, len(order)))
    sequence = jnp.concatenate([first[None], later]).T
    return sequence[:, orders.inverse(order)]


class NextTokenSampler(ObjectiveSampler):
    """Token-by-token sampling from next-token models.

    The preset "fid" is LlamaGen's: its guidance 2, which is t = 1 in this package's form, without
    filters.
    """

    presets: ClassVar[dict[str, Settings]] = {
        "fid": {"cfg": 1.0, "top_k": 0, "top_p": 0.0, "temperature": 1.0},
        "greedy": {"cfg": 1.0, "top_k": 1, "top_p": 0.0, "temperature": 1.0},
    }
    program = staticmethod(generate_tokens)

    def prepare(self, config: ModelConfig, settings: Settings) -> Prepared:
        transformer = config.transformer
        for name, value in settings.items():
            require_number(name, value, transformer.objective)
        top_k, guided = int(settings["top_k"]), settings["cfg"] > 0
        compiled = TokenSamplerConfig(
            top_k=top_k if top_k < transformer.vocab_size else 0,
            use_top_p=0 < settings["top_p"] < 1,
            guided=guided,
        )
        numbers = (settings[name] for name in ("cfg", "top_p", "temperature"))
        return Prepared(compiled, TokenSamplingParams(*map(np.float32, numbers)), guided)

    def generation_flops(self, config: ModelConfig, prepared: Prepared) -> float:
        return flops.generation_flops(config.transformer, guided=prepared.guided)

    def sequential_passes(self, config: ModelConfig, prepared: Prepared) -> int:
        return config.transformer.scales.total

    def generation_bytes(self, config: ModelConfig, prepared: Prepared, batch: int) -> int:
        """Returns the smallest number of bytes that the network moves to generate a batch.

        They are its weights once per token (AdaLN's once), and keys and values, written once and
        read by every token that sees them.
        """
        c = config.transformer
        rows = 2 * batch if prepared.guided else batch
        tokens = c.scales.total
        adaln = flops.block_adaln_weights(c)
        a_token = c.depth * (4 * c.width**2 + 2 * c.width * c.hidden)
        elsewhere = flops.adaln_weights(c) - adaln + tokens * c.width * c.vocab_size
        touched = tokens * (tokens + 1) // 2
        return (
            int8_weights.bytes_of(c, adaln + tokens * a_token, elsewhere)
            + jnp.dtype(c.dtype).itemsize * 2 * c.depth * c.width * rows * touched
        )

    def network_alone(
        self, config: ModelConfig, prepared: Prepared, weights: dict[str, Any], labels: jax.Array
    ) -> Callable[[], Any]:
        return functools.partial(_network_alone, config, weights, labels, guided=prepared.guided)


@functools.partial(jax.jit, static_argnames=("config", "guided"))
def _network_alone(config: ModelConfig, weights, labels, *, guided: bool):
    """Runs the network token by token, on guidance's rows too, without filters or random choices.

    Each token is 1 where its largest logit is positive, which depends on every pass, so that the
    compiler can leave none out, and needs no search.
    """

    def choose(logits, position):
        return (jnp.max(logits[: len(labels)], axis=-1) > 0).astype(jnp.int32)

    rows = guided_rows(labels, config.transformer.num_classes, None) if guided else labels
    return _token_by_token(config, weights, rows, choose, batch=len(labels))
