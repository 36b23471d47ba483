"""Classifiers fitted on real images, which say whether samples show their labels."""

from collections.abc import Callable, Collection
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from var_jax.config.strict import require
from var_jax.devices.batched import OverDevices
from var_jax.evaluate import features, scores
from var_jax.evaluate.features import FeatureNetwork
from var_jax.evaluate.image_sets import LABELED, ImageSet
from var_jax.ops.resize import matrix

IMAGES_AT_ONCE = 256  # images read at once
PIXELS_SIDE = 16  # largest side of the images that the classifier of pixels sees
Classifier = Callable[[Float[np.ndarray, "n h w c"]], Int[np.ndarray, " n"]]
Scorer = Callable[[UInt8[np.ndarray, "n h w c"], Int[np.ndarray, " n"]], Float[np.ndarray, " n"]]


def shrink(images: Float[np.ndarray, "n h w c"], side: int) -> Float[np.ndarray, "n d"]:
    """Returns images as rows (N, side * side * C), reduced by area means if they are larger."""
    rows, columns = (matrix(n, min(n, side), "area") for n in images.shape[1:3])
    return np.einsum("Hh,nhwc,Ww->nHWc", rows, images, columns, optimize=True).reshape(
        len(images), -1
    )


def pixel_classifier(
    images: Float[np.ndarray, "n h w c"], labels: Int[np.ndarray, " n"]
) -> Classifier:
    """Returns a fitted function from images in [0, 1] to labels.

    It is a support vector machine on the principal components of small images.
    """
    from sklearn.decomposition import PCA
    from sklearn.pipeline import make_pipeline
    from sklearn.svm import SVC

    pixels = shrink(images, PIXELS_SIDE)
    model = make_pipeline(PCA(min(50, *pixels.shape), random_state=0), SVC(C=10)).fit(
        pixels, labels
    )
    return lambda x: model.predict(shrink(x, PIXELS_SIDE))


def agreement(
    classify: Classifier, images: Float[np.ndarray, "n h w c"], labels: Int[np.ndarray, " n"]
) -> dict[str, Any]:
    """Returns the share of images whose label a classifier predicts, and its 95 % interval."""
    return scores.share(classify(images) == labels)


def label_scorer(network: FeatureNetwork, reference: ImageSet, classes: Collection[int]) -> Scorer:
    """Returns a function that computes the log probability of each image's label.

    The function takes uint8 images and labels. It is a logistic regression on standardized features
    of the reference, with scikit-learn's default regularization; fitting it is deterministic.

    Args:
      network: the network of the features.
      reference: labeled images to fit on.
      classes: labels that the reference has to contain.
    Raises:
      UserError: the reference has no labels, or lacks one of `classes`.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    require(
        bool(reference.class_names),
        "--reject-reference",
        f"{reference.name}, without labels",
        LABELED,
    )
    run = OverDevices(network.apply, network.params)
    batch_features, batch_labels = [], []
    with features.progress(reference.count, f"features of {reference.name}") as bar:
        for batch in reference.read(run.batch):
            assert batch.labels is not None
            batch_features.append(run(batch.images)[0])
            batch_labels.append(batch.labels)
            bar.update(len(batch.images))
    rows, labels = np.concatenate(batch_features), np.concatenate(batch_labels)
    missing = sorted(set(classes) - set(labels.tolist()))
    require(
        not missing,
        reference.name,
        f"without an image of class {missing[:1]}",
        "of every class that is drawn",
    )
    require(
        len(set(labels.tolist())) > 1,
        reference.name,
        "of one class",
        "of at least two, to tell them apart",
    )
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(rows, labels)

    def score(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        parts = [
            run(images[start : start + run.batch])[0] for start in range(0, len(images), run.batch)
        ]
        columns = np.searchsorted(model.classes_, labels)
        return model.predict_log_proba(np.concatenate(parts))[np.arange(len(labels)), columns]

    return score


def load_all(
    images: ImageSet, classes: int
) -> tuple[UInt8[np.ndarray, "n h w c"], Int[np.ndarray, " n"]]:
    """Returns all images of a set and their labels.

    Raises:
      UserError: the set has no labels, has one that the model does not have, or has only one.
    """
    require(bool(images.class_names), images.name, "without labels", LABELED)
    batches = list(images.read(IMAGES_AT_ONCE))
    pixels, labels = (
        np.concatenate([b.images for b in batches]),
        np.concatenate([b.labels for b in batches]),
    )
    require(
        int(labels.max()) < classes,
        f"a label of {images.name}",
        int(labels.max()),
        f"below the number of the model's classes, {classes}",
    )
    require(
        len(np.unique(labels)) > 1,
        images.name,
        "of one class",
        "of at least two, to tell them apart",
    )
    return pixels, labels
