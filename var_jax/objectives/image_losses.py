"""Distances between images and their reconstructions, in training and on held-out images."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from var_jax.config.model import TokenizerConfig
from var_jax.config.train import LossConfig, TrainConfig
from var_jax.devices import sharding
from var_jax.models.tokenizer import Tokenizer
from var_jax.objectives.evaluation_tools import EvaluationTools
from var_jax.objectives.frozen_networks import LossNetworks, NetworkWeights
from var_jax.objectives.step_types import Batch, Metrics
from var_jax.ops import codebook, vq
from var_jax.ops.normalize import normalize_images

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, UInt8
    from PIL import Image

log = logging.getLogger(__name__)


def image_terms(
    networks: LossNetworks,
    frozen: NetworkWeights,
    reconstructions: Float[Array, "b H W c"],
    images: Float[Array, "b H W c"],
) -> dict[str, Float[Array, " b"]]:
    """Returns the distances of each reconstruction from its image, by name.

    "l1" and "l2" are means over pixels; "perceptual" is the perceptual distance, where the run has
    one.
    """
    terms = {
        "l1": jnp.mean(jnp.abs(reconstructions - images), axis=(1, 2, 3)),
        "l2": jnp.mean((reconstructions - images) ** 2, axis=(1, 2, 3)),
    }
    if networks.perceptual is not None:
        terms["perceptual"] = networks.perceptual.distance(
            frozen.perceptual, reconstructions, images
        )
    return terms


def weighted_sum(weights: LossConfig, terms: Mapping[str, jax.Array]) -> jax.Array:
    """Returns the sum of terms by their weights in the config."""
    return sum((getattr(weights, name) * value for name, value in terms.items()), jnp.zeros(()))


def held_out_metrics(
    config: TrainConfig,
    networks: LossNetworks,
    params: Any,
    frozen: NetworkWeights,
    batch: Batch,
) -> Metrics:
    """Returns the metrics of a held-out batch, summed over the rows that count.

    They have no adversarial terms. `psnr` is in dB with a peak of 1 for pixels in [0, 1], of the
    clamped reconstruction, summed over images. "code_counts" are there where there are codes.
    """
    tokenizer = config.tokenizer
    images = normalized(batch["image"])
    weights = batch["mask"].astype(jnp.float32)
    rebuilt = _rebuild(tokenizer, params, images)
    by_image = image_terms(networks, frozen, rebuilt.images, images) | rebuilt.terms
    by_image["loss"] = weighted_sum(config.loss, by_image)
    by_image["psnr"] = -10 * jnp.log10(jnp.maximum(by_image["l2"] / 4, 1e-10))
    sums = {name: jnp.sum(weights * value) for name, value in by_image.items()}
    if rebuilt.tokens is None:
        return sums
    counts = codebook.code_counts(
        tokenizer.scales, rebuilt.tokens, tokenizer.vocab_size, batch["mask"][:, None]
    )
    return {**sums, "code_counts": counts}


class _Rebuilt(NamedTuple):
    """Reconstructions in [-1, 1], further terms of each image's loss, and the tokens, if any."""

    images: Float[Array, "b H W c"]
    terms: dict[str, Float[Array, " b"]]
    tokens: Int[Array, "b L"] | None


def _rebuild(config: TokenizerConfig, params: Any, images: Float[Array, "b H W c"]) -> _Rebuilt:
    model, variables = Tokenizer(config), {"params": params}
    if not config.quantizes:
        out = model.apply(variables, images, method="continuous_forward")
        terms = {} if out.kl is None else {"kl": out.kl}
        return _Rebuilt(jnp.clip(out.reconstruction, -1, 1), terms, None)
    feature = model.apply(variables, images, method="features")
    quantizer = model.apply(variables, method="quantizer")
    tokens, f_hats, _ = vq.quantize(quantizer, feature)
    reconstructions = model.apply(variables, f_hats[-1], method="decode_feature")
    loss = jax.vmap(lambda f, t: vq.vq_loss(f, t, config.vq_beta))(feature, f_hats)
    return _Rebuilt(reconstructions, {"vq": loss}, tokens)


def normalized(images: UInt8[Array, "b H W c"]) -> Float[Array, "b H W c"]:
    """Returns uint8 images of a batch in [-1, 1], spread over the mesh."""
    return sharding.constrain(normalize_images(images), "images", None, None, None)


def warn_of_collapse(config: TrainConfig, counts: Int[np.ndarray, "k v"]):
    """Logs a warning for every scale whose codes have collapsed.

    A collapsed scale carries almost nothing of the image. Every process computes the counts and one
    logs them: under a mesh, a computation on one process only would wait for the others.
    """
    for k in codebook.collapsed(counts, config.codebook.collapse_share):
        height, width = config.tokenizer.scales.sizes[k]
        used, share = int(codebook.codes_used(counts[k])), float(codebook.perplexity(counts[k]))
        if jax.process_index() == 0:
            log.warning(
                "scale %dx%d has collapsed: %d of %d codes are used, with a perplexity of %.1f",
                height,
                width,
                used,
                counts.shape[1],
                share,
            )


def picture(config: TrainConfig, params: Any, tools: EvaluationTools) -> Image.Image:
    """Returns originals over their reconstructions."""
    from var_jax.io import pictures

    batch = tools.first_batch()
    images, mask = tools.gather((batch["image"], batch["mask"]))
    jitted = jax.jit(
        functools.partial(reconstruct, config.tokenizer), out_shardings=tools.replicated
    )
    program = tools.compiled("reconstruct", lambda: jitted.lower(params, batch["image"]))
    reconstructions = np.asarray(program(params, batch["image"]))
    columns = np.flatnonzero(mask)[: config.sample_classes]
    rows = np.concatenate([images[columns] / 255, reconstructions[columns]])
    return pictures.grid(rows, columns=len(columns))


def reconstruct(
    config: TokenizerConfig, params: Any, images: UInt8[Array, "b H W c"]
) -> Float[Array, "b H W c"]:
    """Returns reconstructions in [0, 1] of uint8 images."""
    model, variables = Tokenizer(config), {"params": params}
    if not config.quantizes:
        (decoded,) = model.apply(variables, normalized(images), method="by_scale")
        return (decoded + 1) / 2
    tokens = model.apply(variables, normalized(images), method="encode")
    return (model.apply(variables, tokens, method="decode") + 1) / 2
