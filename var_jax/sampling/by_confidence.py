"""Sampling and editing with masked-prediction models, pass by pass, in one program.

A pass samples all masked tokens at once, and masks the least confident again.

Source: MaskGIT (arXiv 2202.04200); google-research/maskgit `libml/parallel_decode.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from var_jax.config.model import ModelConfig
from var_jax.config.strict import require
from var_jax.models import flops, int8_weights
from var_jax.models.masked_transformer import MaskedTransformer
from var_jax.models.tokenizer import Tokenizer
from var_jax.ops import mask_schedule
from var_jax.sampling.guidance import NegativeLabels, guide, guided_rows
from var_jax.sampling.image_keys import KeySource, as_keys
from var_jax.sampling.logits import filter_logits, sample
from var_jax.sampling.objective_sampler import ObjectiveSampler, Prepared, require_number
from var_jax.sampling.sampler import EditSource, finished
from var_jax.sampling.settings import RANGES, Ramp, Settings

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, Key, UInt8


class MaskedSamplerConfig(NamedTuple):
    """Settings that are compiled into the program.

    Attributes:
      steps: passes of the network.
      top_k: number of largest logits that are sampled from; 0 is off.
      use_top_p: whether `MaskedSamplingParams.top_p` applies.
      guided: whether the unconditional branch is computed.
      as_uint8: whether images are rounded to uint8.
    """

    steps: int
    top_k: int
    use_top_p: bool
    guided: bool
    as_uint8: bool = False


class MaskedSamplingParams(NamedTuple):
    """Settings that are traced: other values run the same program.

    Attributes:
      cfg: guidance strength t of each pass.
      top_p: probability mass that is sampled from.
      temperature: divisor of the logits.
      noise: factor on the Gumbel noise of the confidence, before the first pass; it falls linearly
        to 0 at the last.
    """

    cfg: Float[Array, " t"]
    top_p: Float[Array, ""] | float
    temperature: Float[Array, ""] | float
    noise: Float[Array, ""] | float


class Choice(NamedTuple):
    """The tokens that a pass samples at every position, and their confidence.

    Attributes:
      tokens: the sampled tokens.
      confidence: how sure the model is of them; the lowest are masked again.
    """

    tokens: Int[Array, "b L"]
    confidence: Float[Array, "b L"]


# From the logits of a pass, whose rows are twice the batch with guidance, and the pass's number.
Choose = Callable[["Float[Array, 'rows L v']", Any], Choice]


@functools.partial(jax.jit, static_argnames=("config", "sampler"))
def generate_masked(
    config: ModelConfig,
    sampler: MaskedSamplerConfig,
    weights: dict,
    labels: Int[Array, " b"],
    keys: Key[Array, " b"] | KeySource,
    params: MaskedSamplingParams,
    *,
    edit: EditSource | None = None,
    negative: NegativeLabels | None = None,
) -> tuple[Float[Array, "b H W c"] | UInt8[Array, "b H W c"], Int[Array, "b L"]]:
    """Samples images for class labels, or the masked part of given images.

    Args:
      weights: {"tokenizer": ..., "transformer": ...}.
      edit: an image to edit: its kept tokens are visible from the first pass on, and stay.
      negative: classes that guidance leads away from; None for "no class".
    Returns:
      images in [0, 1], and tokens in raster order.
    """
    keys = as_keys(keys)

    def choose(logits: Float[Array, "rows L v"], step: Int[Array, ""] | int) -> Choice:
        if sampler.guided:
            logits = guide(logits, params.cfg[step], negative)
        logits = logits / params.temperature
        top_p = params.top_p if sampler.use_top_p else None
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, step)
        token_keys, noise_keys = jax.vmap(jax.random.split, out_axes=1)(step_keys)
        tokens = sample(token_keys, filter_logits(logits, sampler.top_k, top_p))
        # The confidence is of all codes, so that it tells tokens apart where top-k leaves one.
        log_probabilities = jax.nn.log_softmax(logits, axis=-1)
        confidence = jnp.take_along_axis(log_probabilities, tokens[..., None], axis=-1)[..., 0]
        noise = jax.vmap(lambda key: jax.random.gumbel(key, tokens.shape[1:]))(noise_keys)
        annealed = params.noise * (1 - (step + 1) / sampler.steps)
        return Choice(tokens, confidence + annealed * noise)

    start = jnp.full((len(labels), config.tokenizer.scales.total), config.tokenizer.vocab_size)
    if edit is not None:
        start = jnp.where(edit.keep.reshape(start.shape), edit.tokens, start)
    rows = labels
    if sampler.guided:
        rows = guided_rows(labels, config.transformer.num_classes, negative)
    tokens = _by_confidence(config, sampler, weights, rows, start, choose=choose)
    tokenizer = Tokenizer(config.tokenizer)
    images = tokenizer.apply({"params": weights["tokenizer"]}, tokens, method="decode")
    return finished(images, as_uint8=sampler.as_uint8), tokens


def _by_confidence(
    config: ModelConfig,
    sampler: MaskedSamplerConfig,
    weights: dict,
    labels: Int[Array, " rows"],
    start: Int[Array, "b L"],
    *,
    choose: Choose,
) -> Int[Array, "b L"]:
    """Returns tokens without masked ones.

    Args:
      labels: those of the batch, and of the rows of guidance after them.
      start: tokens to begin with; V where they are masked.
    """
    mask_token, steps = config.tokenizer.vocab_size, sampler.steps
    remaining = jnp.asarray(mask_schedule.remaining_counts(steps, start.shape[1]))
    masked_at_first = jnp.sum(start == mask_token, axis=1)
    transformer = MaskedTransformer(config.transformer)
    apply = functools.partial(transformer.apply, {"params": weights["transformer"]})
    copies = len(labels) // len(start)

    def after_pass(tokens, logits, step):
        count = remaining[step, masked_at_first]
        return fill(tokens, choose(logits, step), count, mask_token=mask_token)

    def next_step(tokens, step):
        logits = apply(jnp.tile(tokens, (copies, 1)), modulation, method="next_pass")
        return after_pass(tokens, logits, step), None

    logits, modulation = apply(jnp.tile(start, (copies, 1)), labels, method="first_pass")
    tokens, _ = jax.lax.scan(next_step, after_pass(start, logits, 0), jnp.arange(1, steps))
    return tokens


def fill(
    tokens: Int[Array, "b L"], choice: Choice, remaining: Int[Array, " b"], *, mask_token: int
) -> Int[Array, "b L"]:
    """Returns the tokens after a pass: masked ones as sampled, but the least confident as masked.

    Visible tokens stay.

    Args:
      remaining: how many are to be masked again; fewer than before are, while there are two.
    """
    masked = tokens == mask_token
    fewer = jnp.maximum(jnp.sum(masked, axis=1) - 1, 1)
    confidence = jnp.where(masked, choice.confidence, jnp.inf)
    again = masked & mask_schedule.lowest(confidence, jnp.minimum(remaining, fewer))
    return jnp.where(again, mask_token, jnp.where(masked, choice.tokens, tokens))


class MaskedSampler(ObjectiveSampler):
    """Decoding by confidence; the preset "fid" is MaskGIT's at 256 pixels, without guidance."""

    presets: ClassVar[dict[str, Settings]] = {
        "fid": {
            "cfg": 0.0,
            "top_k": 0,
            "top_p": 0.0,
            "temperature": 1.0,
            "steps": 8,
            "noise": 4.5,
        },
        "greedy": {
            "cfg": 0.0,
            "top_k": 1,
            "top_p": 0.0,
            "temperature": 1.0,
            "steps": 8,
            "noise": 0.0,
        },
    }
    edits = True
    program = staticmethod(generate_masked)

    def prepare(self, config: ModelConfig, settings: Settings) -> Prepared:
        transformer = config.transformer
        for name, value in settings.items():
            if name == "cfg" and isinstance(value, Ramp):
                valid = RANGES[name]
                require(valid.contains(value.first), "cfg.first", value.first, valid.described)
                require(valid.contains(value.last), "cfg.last", value.last, valid.described)
            else:
                require_number(name, value, transformer.objective)
        top_k, steps, cfg = int(settings["top_k"]), int(settings["steps"]), settings["cfg"]
        ramp = cfg if isinstance(cfg, Ramp) else Ramp(cfg, cfg)
        cfg_by_step = np.linspace(ramp.first, ramp.last, steps)
        compiled = MaskedSamplerConfig(
            steps=steps,
            top_k=top_k if top_k < transformer.vocab_size else 0,
            use_top_p=0 < settings["top_p"] < 1,
            guided=bool(np.any(cfg_by_step > 0)),
        )
        numbers = (cfg_by_step, settings["top_p"], settings["temperature"], settings["noise"])
        traced = MaskedSamplingParams(*(np.asarray(number, np.float32) for number in numbers))
        return Prepared(compiled, traced, compiled.guided)

    def generation_flops(self, config: ModelConfig, prepared: Prepared) -> float:
        return flops.generation_flops(
            config.transformer, guided=prepared.guided, evaluations=prepared.compiled.steps
        )

    def sequential_passes(self, config: ModelConfig, prepared: Prepared) -> int:
        return prepared.compiled.steps

    def generation_bytes(self, config: ModelConfig, prepared: Prepared, batch: int) -> int:
        """Returns the bytes that the network moves at the least to generate a batch.

        They are its weights once per pass (AdaLN's once). Keys and values are not kept.
        """
        c = config.transformer
        steps, a_pass = prepared.compiled.steps, c.depth * (4 * c.width**2 + 2 * c.width * c.hidden)
        adaln = flops.block_adaln_weights(c)
        elsewhere = flops.adaln_weights(c) - adaln + steps * c.width * c.vocab_size
        return int8_weights.bytes_of(c, adaln + steps * a_pass, elsewhere)

    def network_alone(
        self, config: ModelConfig, prepared: Prepared, weights: dict[str, Any], labels: jax.Array
    ) -> Callable[[], Any]:
        return functools.partial(_network_alone, config, prepared.compiled, weights, labels)


@functools.partial(jax.jit, static_argnames=("config", "sampler"))
def _network_alone(config: ModelConfig, sampler: MaskedSamplerConfig, weights, labels):
    """Runs the network for all passes, on guidance's rows too.

    Each token is 1 where its largest logit is positive, and that logit is its confidence, so that
    no pass is left out and nothing is searched.
    """

    def choose(logits, step):
        largest = jnp.max(logits[: len(labels)], axis=-1)
        return Choice((largest > 0).astype(jnp.int32), largest)

    start = jnp.full((len(labels), config.tokenizer.scales.total), config.tokenizer.vocab_size)
    rows = labels
    if sampler.guided:
        rows = guided_rows(labels, config.transformer.num_classes, None)
    return _by_confidence(config, sampler, weights, rows, start, choose=choose)
