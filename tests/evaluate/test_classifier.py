"""Classifiers for rejection and for the agreement of samples with their labels."""

import numpy as np
import pytest

from helpers import toy_network
from var_jax.errors import UserError
from var_jax.evaluate import classifier
from var_jax.evaluate.image_sets import Batch, ImageSet

RANDOM = np.random.default_rng(0)
LABELS = RANDOM.integers(0, 2, 80) * 3  # classes 0 and 3: dark on the left, dark on the right
PIXELS = RANDOM.integers(100, 256, (80, 4, 4, 1), dtype=np.uint8)
for pixels, label in zip(PIXELS, LABELS, strict=True):
    pixels[:, 2:] //= 4 if label else 1
    pixels[:, :2] //= 1 if label else 4


def labeled(pixels=PIXELS, labels=LABELS, names=("a", "b", "c", "d")):
    return ImageSet(
        "real",
        "content",
        (4, 4, 1),
        "none",
        len(pixels),
        names,
        lambda size: iter(
            [Batch(pixels[i : i + size], labels[i : i + size]) for i in range(0, len(pixels), size)]
        ),
    )


def test_label_scorer_prefers_images_of_the_label():
    """Real images score higher by their own label than by the other, and the two probabilities sum
    to 1."""
    score = classifier.label_scorer(toy_network.network(), labeled(), [0, 3])
    asked, swapped = score(PIXELS, LABELS), score(PIXELS, 3 - LABELS)
    assert (asked > swapped).all()
    np.testing.assert_allclose(
        np.exp(asked) + np.exp(swapped), 1, atol=1e-6
    )  # two classes share all
    again = classifier.label_scorer(toy_network.network(), labeled(), [0])
    np.testing.assert_array_equal(again(PIXELS, LABELS), asked)


def test_label_scorer_names_what_it_cannot_be_fitted_on():
    """A reference without labels, without an expected class, or of a single class is refused, and
    the message says which of these it is."""
    for reference, expected, message in (
        (labeled(names=()), [0], "without labels"),
        (labeled(), [0, 1], r"without an image of class \[1\]"),
        (labeled(PIXELS[LABELS == 3], LABELS[LABELS == 3]), [3], "is of one class"),
    ):
        with pytest.raises(UserError, match=message):
            classifier.label_scorer(toy_network.network(), reference, expected)


def test_agreement_is_the_share_of_images_that_show_their_label():
    """With 20 of 80 labels swapped it is 0.75, within its interval."""
    classify = classifier.pixel_classifier(PIXELS / 255, LABELS)
    wrong = np.where(np.arange(80) < 20, 3 - LABELS, LABELS)
    result = classifier.agreement(classify, PIXELS / 255, wrong)
    assert (
        result["value"] == 0.75
        and result["count"] == 80
        and result["ci95"][0] < 0.75 < result["ci95"][1]
    )
