"""The images of a study that changes held-out images.

Some held-out images are changed, the others are compared with, and training images serve a
classifier and baselines.
"""

import argparse
import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt8

from var_jax import Pipeline
from var_jax.config.strict import require
from var_jax.data.image_folder import fingerprint
from var_jax.data.model_fingerprint import model_fingerprint
from var_jax.evaluate import classifier, feature_networks, reference_cache
from var_jax.evaluate.features import FeatureNetwork
from var_jax.evaluate.image_sets import Batch, ImageSet, open_images
from var_jax.evaluate.samples import Distance
from var_jax.studies import study_command

PICTURED = 8  # images in the picture of a study


class Split(NamedTuple):
    """A set of images in two parts.

    Attributes:
      chosen: images that are chosen at random by a seed.
      others: all other images.
    """

    chosen: ImageSet
    others: ImageSet


class Labeled(NamedTuple):
    """Images and labels in memory."""

    images: UInt8[np.ndarray, "n H W c"]
    labels: Int[np.ndarray, " n"]


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """The model and the images of a study of held-out images, by its command line.

    Attributes:
      args: the command line.
      model: the model of the study.
      chosen: held-out images that the study changes.
      others: the other held-out images, which changed ones are compared with.
      training: training images.
      network: the network whose features Fréchet distances are computed from.
    """

    args: argparse.Namespace
    model: Pipeline
    chosen: ImageSet
    others: ImageSet
    training: ImageSet
    network: FeatureNetwork

    def describe(self, name: str, changed: str, **settings: Any) -> dict[str, Any]:
        """Returns the settings and inputs that the rows of a study depend on.

        Args:
          name: name of the study.
          changed: the key of the images that are changed.
          settings: settings of only this study.
        """
        return {
            "study": name,
            "model": model_fingerprint(self.model.config, self.model.params),
            "num": self.args.num,
            "seed": self.args.seed,
            "resamples": self.args.resamples,
            **settings,
            changed: self.chosen.described(),
            "reference": self.others.described(),
            "training": self.training.described(),
            "features": self.network.described(),
        }

    def load(self, images: ImageSet) -> Labeled:
        """Returns all images of a set with their labels.

        Raises:
          UserError: the set has no labels, or labels that the model does not have.
        """
        classes = self.model.config.transformer.num_classes
        return Labeled(*classifier.load_all(images, classes))

    def distance_to(self, images: ImageSet) -> Distance:
        """Returns Fréchet distances to a set of real images."""
        stats = reference_cache.read_or_measure(self.network, images, self.args.cache)
        return Distance(stats, self.args.resamples, self.args.seed)


def open_held_out(args: argparse.Namespace, model: Pipeline) -> HeldOut:
    """Opens the reference and the training images, and splits the reference.

    Raises:
      UserError: a data set does not open, or is too small for `--num`.
    """
    shape = model.config.tokenizer.image_shape
    reference, training = (
        open_images(name, shape=shape, **study_command.image_arguments(args))
        for name in (args.reference, study_command.training_name(args))
    )
    chosen, others = split(reference, args.num, args.seed)
    network = feature_networks.load("efficientnet", args.weights)
    return HeldOut(args, model, chosen, others, training, network)


def split(images: ImageSet, num: int, seed: int) -> Split:
    """Returns `num` images, chosen at random by the seed, and all others.

    Raises:
      UserError: fewer than four others would be left.
    """
    require(
        num <= images.count - 4,
        "--num",
        num,
        f"at most {images.count - 4}, so that of the {images.count} images "
        f"of {images.name} at least 4 are left to compare with",
    )
    is_chosen = np.zeros(images.count, bool)
    is_chosen[np.random.default_rng(seed).permutation(images.count)[:num]] = True
    return Split(
        chosen=_subset(images, is_chosen, f"{num} drawn by seed {seed}"),
        others=_subset(images, ~is_chosen, f"without {num} drawn by seed {seed}"),
    )


def _subset(images: ImageSet, rows: Bool[np.ndarray, " n"], description: str) -> ImageSet:
    """Returns the images of a set where `rows` is True."""

    def read(batch_size: int) -> Iterator[Batch]:
        start = 0
        for batch in images.read(batch_size):
            batch_rows = rows[start : start + len(batch.images)]
            start += len(batch.images)
            if batch_rows.any():
                labels = None if batch.labels is None else batch.labels[batch_rows]
                yield Batch(batch.images[batch_rows], labels)

    return dataclasses.replace(
        images,
        name=f"{images.name}, {description}",
        count=int(rows.sum()),
        read=read,
        fingerprint=fingerprint([images.fingerprint, description]),
    )
