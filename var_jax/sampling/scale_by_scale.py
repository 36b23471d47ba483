"""The sampler of next-scale prediction: presets, settings per scale, FLOPs and bytes.

The compiled program itself is in `sampler`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from var_jax.config.model import ModelConfig
from var_jax.config.strict import require
from var_jax.models import flops, int8_weights, refiner
from var_jax.models.transformer import Cache, Transformer
from var_jax.ops import masks
from var_jax.ops.resize import resize
from var_jax.sampling import sampler
from var_jax.sampling.objective_sampler import ObjectiveSampler, Prepared
from var_jax.sampling.refined_scale import num_refined, sample_scale
from var_jax.sampling.settings import PRESETS, Settings, resolve

PICTURE = sampler.SamplerConfig(top_k=0, use_top_p=True, guided=True)


class NextScaleSampler(ObjectiveSampler):
    """Scale-by-scale sampling (VAR, section 3.2)."""

    presets = PRESETS
    by_scale = True
    edits = True
    program = staticmethod(sampler.generate)

    def prepare(self, config: ModelConfig, settings: Settings) -> Prepared:
        compiled, traced = sampler.split_settings(
            config, resolve(config.tokenizer.scales, settings)
        )
        if config.refiner is not None:
            for name, used in (("ssg", any(compiled.use_ssg)), ("smooth", compiled.smooth)):
                require(
                    not used,
                    name,
                    settings[name],
                    "off for a model with a refiner, whose tokens are chosen one after the other",
                )
        return Prepared(compiled, traced, any(compiled.guided))

    def generation_flops(self, config: ModelConfig, prepared: Prepared) -> float:
        own = flops.generation_flops(config.transformer, guided=prepared.guided)
        if config.refiner is None:
            return own
        rows = 2 if prepared.guided else 1
        return own + rows * flops.refiner_flops(config.refiner, config.transformer)

    def sequential_passes(self, config: ModelConfig, prepared: Prepared) -> int:
        """Returns the transformer's passes, one for a scale, and the refiner's, one for a token."""
        refined = num_refined(config)
        return len(config.transformer.scales) + config.transformer.scales.offsets[refined]

    def generation_bytes(self, config: ModelConfig, prepared: Prepared, batch: int) -> int:
        """Returns the smallest number of bytes that the transformer moves to generate a batch.

        They are its weights once per scale (AdaLN's before the blocks once), and keys and values,
        written once and read by every scale that sees them; a refiner's, once per token.
        Activations could stay on the chip.
        """
        c = config.transformer
        rows = 2 * batch if prepared.guided else batch
        head = flops.head_adaln_weights(c)
        adaln = flops.block_adaln_weights(c)
        ends = c.width * (c.vocab_size + c.z_channels) + head
        per_scale = c.depth * (4 * c.width**2 + 2 * c.width * c.hidden)
        spans = (masks.visible(c.scales, c.mask, k) for k in range(len(c.scales)))
        # The tokens of the scale itself are written, the others read.
        touched = sum(span.stop - span.start for span in spans)
        in_blocks = adaln + len(c.scales) * per_scale
        elsewhere = flops.adaln_weights(c) - adaln - head + len(c.scales) * ends
        cached = 2 * c.depth * c.width * touched
        if config.refiner is not None:
            r, scales = config.refiner.blocks(c), config.refiner.scales(c)
            a_token = r.depth * (4 * r.width**2 + 2 * r.width * r.hidden) + r.width * c.vocab_size
            elsewhere += scales.total * a_token + len(scales) * c.width * r.width
            pairs = sum(n * (n + 1) // 2 for n in scales.lengths)
            cached += 2 * r.depth * r.width * pairs
        return (
            int8_weights.bytes_of(c, in_blocks, elsewhere)
            + jnp.dtype(c.dtype).itemsize * rows * cached
        )

    def network_alone(
        self, config: ModelConfig, prepared: Prepared, weights: dict[str, Any], labels: jax.Array
    ) -> Callable[[], Any]:
        both = jnp.tile(labels, 2 if prepared.guided else 1)
        feature = jnp.zeros(
            (len(labels), *config.tokenizer.scales.finest, config.tokenizer.z_channels)
        )
        return functools.partial(_all_logits, config, weights, both, feature)

    def benchmark_settings(self, config: ModelConfig, cfg: float) -> Prepared:
        """Returns the published settings, each one number: the program ramps guidance itself."""
        guided = cfg > 0
        compiled = sampler.SamplerConfig(
            top_k=min(900, config.transformer.vocab_size - 1), use_top_p=True, guided=guided
        )
        traced = sampler.SamplingParams(*map(jnp.float32, (cfg, 0.96, 1.0)))
        return Prepared(compiled, traced, guided)

    def picture_settings(self, config: ModelConfig) -> Prepared:
        return Prepared(PICTURE, sampler.SamplingParams(1.5, 0.96, 1.0), guided=True)


@functools.partial(jax.jit, static_argnums=0)
def _all_logits(config: ModelConfig, params, labels, feature):
    """Runs the transformer over all scales on fixed inputs, and returns the largest logits.

    The logits are returned so that the compiler can leave no pass out; of refined scales, the
    tokens.
    """
    transformer = functools.partial(
        Transformer(config.transformer).apply, {"params": params["transformer"]}
    )
    cache, largest = Cache(), []
    for k, size in enumerate(config.tokenizer.scales.sizes):
        tokens = resize(feature, size, "area").reshape(len(feature), -1, feature.shape[-1])
        tokens = jnp.tile(tokens, (len(labels) // len(feature), 1, 1))
        inputs = tokens if k else None
        if k < num_refined(config):
            base, cache = refiner.predictions(
                config.transformer,
                params["transformer"],
                k,
                inputs,
                labels,
                cache,
                method="next_scale",
            )
            chosen = sample_scale(config, params, k, base, _any_token)
            largest.append(jnp.max(chosen).astype(jnp.float32))
            continue
        logits, cache = transformer(k, inputs, labels, cache, method="next_scale")
        largest.append(jnp.max(logits))
    return jnp.stack(largest)


def _any_token(logits: jax.Array, place: Any) -> jax.Array:
    """Returns 1 where a row's largest logit is positive, which needs no search for a token."""
    return (jnp.max(logits, axis=-1) > 0).astype(jnp.int32)
