"""Measures the effect of each sampling setting on samples.

One setting is varied at a time; all others are those of the preset "fid".

`python -m var_jax.studies.sampling_settings --model D --reference fashion_mnist_idx:test --resize
pad --out DIR` writes `effects.json`, the tables `effects.md` and `effects.png`; rows that are
already in the file are not measured again. With `--small D2` a smaller model samples the last
scales (CoDe, arXiv 2411.17787), and is compared with each of the two models. All rows are timed in
one process in turn.
"""

import argparse
import functools
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from jaxtyping import Bool, Int, UInt8

from var_jax import Pipeline
from var_jax.config.strict import require
from var_jax.data.model_fingerprint import model_fingerprint
from var_jax.errors import Parser, UserError, did_you_mean
from var_jax.evaluate import classifier, feature_networks, reference_cache, scores
from var_jax.evaluate.classifier import Classifier, pixel_classifier
from var_jax.evaluate.features import Collector, FeatureNetwork, FeatureStats, features_of
from var_jax.evaluate.image_sets import ImageSet, open_images
from var_jax.evaluate.samples import Distance
from var_jax.sampling import validate
from var_jax.studies import sampling_report, study_command
from var_jax.studies.compared_settings import BASE, PANELS, THEN, Entry, base_row, entries, text
from var_jax.studies.measured_rows import Rows
from var_jax.studies.sampling_report import NOTES, REAL, SPEED

SAMPLED_AT_ONCE = 512  # images that are sampled and classified at once
REPEATS = 3

# (labels, index of the first image) -> images
Sample = Callable[[Int[np.ndarray, " n"], int], UInt8[np.ndarray, "n h w c"]]


class Metrics(NamedTuple):
    """The metrics of samples.

    Attributes:
      network: the network that features are of.
      distance: Fréchet distances to the reference.
      classify: images in [0, 1] to class ids.
    """

    network: FeatureNetwork
    distance: Distance
    classify: Classifier

    def of_features(self, stats: FeatureStats, is_right: Bool[np.ndarray, " n"]) -> dict[str, Any]:
        """Returns Fréchet distance, precision, recall and agreement with the labels of images.

        Args:
          is_right: whether the classifier finds each image's label.
        """
        real = self.distance.real
        count = min(len(stats.rows), len(real.rows), scores.MAX_NEIGHBOR_ROWS)
        require(
            count > scores.NEIGHBORS,
            "the number of images",
            count,
            f"more than {scores.NEIGHBORS}",
        )
        return {
            "frechet_distance": self.distance.of(stats),
            **scores.precision_recall(stats.rows[:count], real.rows[:count]),
            "agreement": scores.share(is_right),
        }

    def of_samples(self, sample: Sample, labels: Int[np.ndarray, " n"]) -> dict[str, Any]:
        """Returns the metrics of samples of these labels."""
        collector = Collector(self.network)
        is_right = []
        for start in range(0, len(labels), SAMPLED_AT_ONCE):
            part_labels = labels[start : start + SAMPLED_AT_ONCE]
            images = sample(part_labels, start)
            collector.add(images)
            is_right.append(self.classify(images.astype(np.float32) / 255) == part_labels)
        return self.of_features(collector.finish(), np.concatenate(is_right))


def sampler(model: Pipeline, small: Pipeline | None, entry: Entry, seed: int) -> Sample:
    """Returns the function that samples the images of an entry."""

    def sample(labels: Int[np.ndarray, " n"], first_index: int) -> UInt8[np.ndarray, "n h w c"]:
        first_model = small if entry.sampler == "small" else model
        assert first_model is not None
        then = {}
        if isinstance(entry.sampler, int):
            then = {"then": small, "keep_scales": entry.sampler}
        return first_model.sample(
            labels, seed=seed, first_index=first_index, as_uint8=True, **then, **entry.settings
        )

    return sample


def time_in_turn(
    contenders: Mapping[str, Callable[[], Any]], repeats: int
) -> dict[str, list[float]]:
    """Returns the seconds of each contender's repeats, after one that does not count.

    They run in turn, so that whatever else slows the machine slows all of them.
    """
    for run_once in contenders.values():
        run_once()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, run_once in contenders.items():
            started = time.perf_counter()
            run_once()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def speed(contenders: Mapping[str, Callable[[], Any]], images: int, base: str) -> dict[str, Any]:
    """Returns each contender's images per second, a median, and the ratio to the base's.

    Args:
      images: number of images of one run.
      base: the contender that the others are compared with.
    """
    seconds = time_in_turn(contenders, REPEATS)
    rates = {name: images / statistics.median(repeats) for name, repeats in seconds.items()}
    return {
        "images": images,
        "device": jax.local_devices()[0].device_kind,
        "devices": jax.local_device_count(),
        "contenders": {
            name: {"seconds": seconds[name], "images_per_second": rate, "ratio": rate / rates[base]}
            for name, rate in rates.items()
        },
    }


class Study:
    """Measures rows by name.

    Args:
      entries: the entries of rows.
      timed: the entries of the row of speeds.
      base: the row of the base.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        model: Pipeline,
        small: Pipeline | None,
        *,
        entries: Mapping[str, Entry],
        timed: Mapping[str, Entry],
        base: str,
        reference: ImageSet,
        training: ImageSet,
        network: FeatureNetwork,
    ):
        self.args, self.entries, self.timed, self.base = args, entries, timed, base
        classes = model.config.transformer.num_classes
        self._training, labels = classifier.load_all(training, classes)
        self._reference, self._reference_labels = classifier.load_all(reference, classes)
        stats = reference_cache.read_or_measure(network, reference, args.cache)
        self._metrics = Metrics(
            network,
            Distance(stats, args.resamples, args.seed),
            pixel_classifier(self._training.astype(np.float32) / 255, labels),
        )
        self._model, self._small = model.spread(), small.spread() if small else None
        self._labels = np.arange(max(args.num, args.speed_images), dtype=np.int32) % classes

    def measure(self, name: str) -> dict[str, Any]:
        """Returns a row."""
        if name == REAL:
            return self._measure_real()
        if name == SPEED:
            return self._measure_speed()
        entry = self.entries[name]
        settings = {key: text(key, value) for key, value in entry.settings.items()}
        labels = self._labels[: self.args.num]
        return {"settings": settings, **self._metrics.of_samples(self._sampler(entry), labels)}

    def _measure_real(self) -> dict[str, Any]:
        """Returns the row of real images, with the classifier's agreement on the reference."""
        order = np.random.default_rng(self.args.seed).permutation(len(self._training))
        images = self._training[np.sort(order[: self.args.num])]
        predicted = self._metrics.classify(self._reference.astype(np.float32) / 255)
        stats = features_of(self._metrics.network, images)
        return self._metrics.of_features(stats, predicted == self._reference_labels)

    def _measure_speed(self) -> dict[str, Any]:
        """Returns the row of speeds."""
        labels = self._labels[: self.args.speed_images]
        contenders = {
            name: functools.partial(self._sampler(entry), labels, 0)
            for name, entry in self.timed.items()
        }
        return speed(contenders, len(labels), self.base)

    def _sampler(self, entry: Entry) -> Sample:
        return sampler(self._model, self._small, entry, self.args.seed)


def run(args: argparse.Namespace):
    """Measures the rows that are missing, and writes the tables and the picture."""
    # Everything is checked and opened before hours of rows.
    study_command.check_arguments(args)
    panels = _panels(args)
    require(args.speed_images >= 1, "--speed-images", args.speed_images, "at least 1")
    model = Pipeline.from_pretrained(args.model)
    small = Pipeline.from_pretrained(args.small) if args.small else None
    transformer = validate.transformer(model.config)
    if small is not None:
        validate.transformer(small.config)
    shape = model.config.tokenizer.image_shape
    reference = open_images(args.reference, shape=shape, **study_command.image_arguments(args))
    training = open_images(
        study_command.training_name(args), shape=shape, **study_command.image_arguments(args)
    )
    require(
        args.num <= training.count,
        "--num",
        args.num,
        f"at most that of the training images, {training.count}",
    )
    network = feature_networks.load("efficientnet", args.weights)
    about = {
        "study": "effects",
        "model": model_fingerprint(model.config, model.params),
        "small": model_fingerprint(small.config, small.params) if small else None,
        "num": args.num,
        "seed": args.seed,
        "resamples": args.resamples,
        "base": BASE,
        "reference": reference.described(),
        "training": training.described(),
        "features": network.described(),
    }
    rows = Rows(epath.Path(args.out) / "effects.json", about, NOTES)

    # Speeds are compared within one process: when a row is new, all are timed again.
    vocab, scales = transformer.vocab_size, len(model.config.tokenizer.scales)
    requested = {entry.row: entry for entry in entries(panels, vocab, scales)}
    base = base_row(vocab, scales)
    timed_before = rows[SPEED]["contenders"] if SPEED in rows else {}
    timed = {
        entry.row: entry
        for entry in entries(PANELS, vocab, scales)
        if entry.row in {base, *requested, *timed_before} and (small or entry.sampler == "large")
    }
    missing = rows.missing([REAL, *requested])
    if timed.keys() - timed_before.keys():
        missing.append(SPEED)

    if missing:
        if small is not None:
            model.sample(
                [0], then=small, keep_scales=scales - 1
            )  # refuses a model that does not fit
        measured = Study(
            args,
            model,
            small,
            entries=requested,
            timed=timed,
            base=base,
            reference=reference,
            training=training,
            network=network,
        )
        rows.fill(missing, measured.measure)
    sampling_report.write(rows, vocab, scales, epath.Path(args.out))


def _panels(args: argparse.Namespace) -> list[str]:
    """Returns the panels of `--what`, by default all that the given models allow."""
    panels = [panel for panel in PANELS if panel != THEN or args.small]
    if args.what:
        panels = args.what.split(",")
    for panel in panels:
        if panel not in PANELS:
            raise UserError(f"unknown setting {panel!r} in --what{did_you_mean(panel, PANELS)}")
    require(
        THEN not in panels or bool(args.small),
        "--small",
        "not given",
        "a model directory, for --what then",
    )
    return panels


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(
        prog="python -m var_jax.studies.sampling_settings",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    study_command.add_arguments(parser)
    parser.add_argument(
        "--small", metavar="DIR", help="a smaller model of the same tokenizer, for the last scales"
    )
    parser.add_argument(
        "--what",
        default="",
        metavar="A,B",
        help=f"settings to vary, of {', '.join(PANELS)} (default: all that apply)",
    )
    parser.add_argument(
        "--speed-images", type=int, default=64, help="images of a timed run (default 64)"
    )
    return study_command.command(parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
