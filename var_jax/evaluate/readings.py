"""Explains each figure of a report in one line, by the metric and the number of images."""

from collections.abc import Mapping
from typing import Any

FIXED = {
    "sfid": (
        "lower is better; of features that keep their places, so that it also sees where things are"
    ),
    "inception_score": (
        "higher is better, from 1 to the number of classes; it does not look at the reference"
    ),
    "precision": (
        "higher is better, 0 to 1: the share of samples that look like some reference image"
    ),
    "recall": "higher is better, 0 to 1: the share of reference images that some sample looks like",
    "density": (
        "higher is better, about 1 for equal distributions, and more if samples crowd where real "
        "images are dense: read it with coverage"
    ),
    "coverage": "higher is better, 0 to 1: the share of real images with a sample close by",
    "cmmd": (
        "lower is better; 0 for equal sets; few images suffice, but it falls with their number: "
        "compare it with what real images score"
    ),
    "psnr": "higher is better; 6 dB more are half the error",
    "psnr_of_mean_mse": (
        "higher is better, and at most the mean over images: the worst images count most"
    ),
    "ssim": "higher is better; 1 for equal images",
    "perceptual": "lower is better; 0 for equal images",
}


def add(metrics: Mapping[str, dict[str, Any] | None], dimensions: int):
    """Writes "reading" into every metric that was measured.

    Args:
      dimensions: number of dimensions of the features.
    """
    for name, metric in metrics.items():
        if metric is None or "reading" in metric:
            continue
        if name == "frechet_distance":
            metric["reading"] = of_frechet(metric, dimensions)
        elif name == "kid":
            metric["reading"] = _kid(metric)
        else:
            metric["reading"] = FIXED[name]


def of_agreement(metric: Mapping[str, Any], classes: int) -> str:
    """Returns the explanation of the share of samples that show their class.

    The text compares it with chance and with the share of real images.
    """
    best = metric.get("on_reference")
    ceiling = "" if best is None else f", and real images score {best['value']:.3g}"
    return f"higher is better; guessing gives {1 / classes:.3g}{ceiling}"


def of_frechet(metric: Mapping[str, Any], dimensions: int) -> str:
    """Returns the explanation of a Fréchet distance of features of so many dimensions."""
    fewest = min(count for count in metric["counts"] if count is not None)
    paired = "floor" not in metric
    if fewest > dimensions:
        if paired:
            beside = "0 for perfect reconstructions"
        elif metric["floor"] is None:
            beside = "--floor names real images, for what they score"
        else:
            beside = "the floor is what real images score"
        return (
            f"lower is better; {beside}; it falls with the number of images: compare figures of "
            "as many alone"
        )
    if paired:
        instead = "PSNR, SSIM and the perceptual distance, which are means over images"
    elif "against" in metric:
        instead = "the distance of more samples"
    else:
        instead = "KID, which has no bias, beside what real images score, and precision with recall"
    return (
        f"lower is better, but not to be trusted here: {fewest} images do not determine "
        f"{dimensions} features, and the distance comes out far too large; read {instead}"
    )


def _kid(metric: Mapping[str, Any]) -> str:
    floor = metric.get("floor")
    if floor is None:
        scale = "too few reference images to tell what real images score"
    else:
        low, high = floor["ci95"]
        scale = f"real images score {floor['value']:.3g} ({low:.3g} to {high:.3g})"
    return (
        "lower is better; 0 where both sets are alike, whatever their number, and below 0 by "
        f"chance alone; for scale, {scale}"
    )
