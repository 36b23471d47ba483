"""Metrics of a tokenizer's reconstructions against their images."""

from collections.abc import Sequence
from typing import Any

import dm_pix
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from var_jax import Pipeline
from var_jax.config.scales import Scales
from var_jax.devices.batched import OverDevices
from var_jax.evaluate import features, readings, reference_cache, samples, scores
from var_jax.evaluate.feature_networks import CMMD
from var_jax.evaluate.features import Collector, FeatureNetwork, FeatureStats
from var_jax.evaluate.fid import Frechet
from var_jax.evaluate.image_sets import ImageSet
from var_jax.io import pictures
from var_jax.ops import codebook
from var_jax.ops.normalize import normalize_images
from var_jax.pretrained.perceptual import Perceptual

SSIM_WINDOW = 11
SSIM = "SSIM, Gaussian window of 11 pixels (sigma 1.5), range 1, mean of channels and images"
PICTURED_IMAGES = 8
PAIRED = (
    "each image is paired with its reconstruction: resampling one side alone would tell another "
    "noise"
)
PEAK_MSE = 1e-10  # assumed for an image that is the same to the last bit: 100 dB


def evaluate(
    model: Pipeline,
    reference: ImageSet,
    network: FeatureNetwork,
    perceptual: Perceptual | None,
    *,
    cache: str | None = None,
    further: Sequence[FeatureNetwork] = (),
) -> dict[str, Any]:
    """Reconstructs every image of a reference from all its tokens or latents, and measures it.

    The Fréchet distance of paired sets has no floor: a perfect tokenizer's is 0.
    "real_against_real" next to it, of two disjoint halves of the reference, is a scale for reading
    it and no bound; it is measured on fewer images, and biased upwards.

    Args:
      reference: images at the model's size.
      perceptual: also measure this distance.
      cache: as in `reference_cache.read_or_measure`.
      further: other networks, whose distances of the same images stand beside.
    Returns:
      {"features", "reference", "metrics": {"psnr", "psnr_of_mean_mse", "ssim",
      "perceptual", "frechet_distance"}, "usage": {"scales": [...], "all": {...}}, "warnings"};
      no "usage" where the tokenizer has no codes.
    Raises:
      UserError: the images have another size, are too few, or cannot be read.
    """
    features.require_enough(reference)
    spread = model.spread()
    small = min(reference.shape[:2]) < SSIM_WINDOW
    rebuilt = Collector(network)
    others = [Collector(another) for another in further]
    compare = _fidelity(perceptual, small=small)
    parts = []
    sizes = model.config.tokenizer
    counts = np.zeros((len(sizes.scales), codebook.count_bins(sizes.vocab_size)), np.int64)
    with features.progress(reference.count, f"reconstructions of {reference.name}") as bar:
        for batch in reference.read(rebuilt.batch):
            images = normalize_images(batch.images)
            if sizes.quantizes:
                tokens = spread.encode(images)
                back = spread.decode(tokens)
                counts += np.asarray(codebook.code_counts(sizes.scales, tokens, sizes.vocab_size))
            else:
                (back,) = spread.reconstruct(images)
            pixels = pictures.to_uint8((back + 1) / 2)
            for collector in (rebuilt, *others):
                collector.add(pixels)
            parts.append(compare(images, back))
            bar.update(len(images))
    each = {
        name: np.concatenate([part[name] for part in parts]).astype(np.float64) for name in parts[0]
    }
    real = reference_cache.read_or_measure(network, reference, cache)
    reconstructed = rebuilt.finish()
    warnings = samples.image_set_warnings(reference, real, network)
    if small:
        warnings.append(
            f"no SSIM: its window of {SSIM_WINDOW} pixels does not fit into {reference.shape[:2]}"
        )
    if sizes.quantizes and counts.shape[1] < sizes.vocab_size:
        warnings.append(
            f"codes are counted by their lowest 16 bits, {counts.shape[1]} kinds for "
            f"{sizes.vocab_size} codes: usage and perplexity are those of the kinds"
        )
    metrics: dict[str, Any] = {**_psnr(each["mse"]), "ssim": None, "perceptual": None}
    titles = {"ssim": SSIM}
    if perceptual:
        titles["perceptual"] = f"perceptual distance, {perceptual.name}"
    for name, title in titles.items():
        if name in each:
            metrics[name] = {"name": title, **scores.mean_with_interval(each[name])}
    metrics["frechet_distance"] = _distance(network, reconstructed, real)
    readings.add(metrics, network.dimensions)
    for another, collector in zip(further, others, strict=True):
        real = reference_cache.read_or_measure(another, reference, cache)
        metrics[another.key] = _distance(another, collector.finish(), real)
    beside = {"further_features": [another.described() for another in further]} if further else {}
    return {
        "features": network.described(),
        **beside,
        "reference": reference.described(),
        "metrics": metrics,
        **({"usage": usage(counts, sizes.scales)} if sizes.quantizes else {}),
        "warnings": warnings,
    }


def _distance(
    network: FeatureNetwork, reconstructed: FeatureStats, real: FeatureStats
) -> dict[str, Any]:
    """Returns the distance of a network's features, with its reading."""
    paired = {"ci95": None, "ci95_missing": PAIRED}
    if network.key == CMMD:
        metric = {**samples.cmmd(network, reconstructed, real), **paired}
        metric["real_against_real"] = samples.cmmd_floor(real)
        return {**metric, "reading": readings.FIXED[CMMD]}
    metric = {
        "name": network.distance,
        "value": Frechet(real.moments).distance(reconstructed.moments),
        "counts": [reconstructed.moments.count, real.moments.count],
        **paired,
        "real_against_real": samples.real_against_real(real),
    }
    return {**metric, "reading": readings.of_frechet(metric, network.dimensions)}


def _fidelity(perceptual: Perceptual | None, *, small: bool) -> OverDevices:
    """Returns a function from (images, reconstructions) to the measures of each image.

    They are "mse" of images in [0, 1], and "ssim" and "perceptual" where they apply.
    """

    def measure(
        params: Any, x: Float[jax.Array, "b H W c"], y: Float[jax.Array, "b H W c"]
    ) -> dict[str, jax.Array]:
        measured = {"mse": jnp.mean((x - y) ** 2, axis=(1, 2, 3)) / 4}
        if not small:  # Wang et al. 2004, windows within the image, each channel by itself
            measured["ssim"] = jnp.asarray(
                dm_pix.ssim(
                    (x + 1) / 2, (y + 1) / 2, max_val=1.0, filter_size=SSIM_WINDOW, filter_sigma=1.5
                )
            )
        if perceptual:
            measured["perceptual"] = perceptual.distance(params, x, y)
        return measured

    return OverDevices(measure, perceptual.params if perceptual else ())


def _psnr(mse: Float[np.ndarray, " n"]) -> dict[str, Any]:
    """Returns the PSNR of images in [0, 1]: the mean over images, and that of the mean error.

    The latter, of the mean squared error, is the lower one.
    """
    each = -10 * np.log10(np.maximum(mse, PEAK_MSE))
    pooled = scores.mean_with_interval(mse)
    ends = pooled["ci95"] and [
        float(-10 * np.log10(max(end, PEAK_MSE))) for end in reversed(pooled["ci95"])
    ]
    return {
        "psnr": {"name": "PSNR, mean over images, dB", **scores.mean_with_interval(each)},
        "psnr_of_mean_mse": {
            "name": "PSNR of the squared error's mean over all images, dB",
            "value": float(-10 * np.log10(max(pooled["value"], PEAK_MSE))),
            "ci95": ends,
        },
    }


def usage(counts: np.ndarray, scales: Scales) -> dict[str, Any]:
    """Returns the usage of the codes.

    Args:
      counts: the `codebook.code_counts` (K, V) of many images.
    Returns:
      {"scales": one entry per scale, "all": of all tokens together}, each with "tokens" (their
      number), "used" (number of codes in use), "usage" (used / V), "attainable_usage" (used /
      min(V, tokens), as a few tokens cannot use every code) and "perplexity".
    """
    rows = []
    for title, scale_counts in zip(pictures.scale_titles(scales), counts, strict=True):
        rows.append({"scale": title, **_usage(scale_counts)})
    return {"scales": rows, "all": _usage(counts.sum(axis=0))}


def _usage(counts: np.ndarray) -> dict[str, Any]:
    """Returns one entry of `usage`, from counts (V,)."""
    tokens = int(counts.sum())
    used = int(codebook.codes_used(counts))
    return {
        "tokens": tokens,
        "used": used,
        "usage": used / len(counts),
        "attainable_usage": used / min(len(counts), tokens),
        "perplexity": float(codebook.perplexity(counts)),
    }


def picture(model: Pipeline, images: UInt8[np.ndarray, "n h w c"]) -> Image.Image:
    """Returns originals next to their reconstructions.

    These are from the first scale, the first two, ... and all of them.
    """
    by_scale = model.reconstruct(normalize_images(images))
    originals = images / np.float32(255)
    return pictures.reconstruction_strip(originals, by_scale, model.config.tokenizer.scales)
