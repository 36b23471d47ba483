"""What each sampling setting does to samples: one setting varied at a time, all else as in the
preset "fid".

`python -m var_jax.studies.sampling_settings --model D --reference fashion_mnist_idx:test --resize
pad --out DIR` writes `effects.json`, the tables `effects.md` and `effects.png`; rows that are there
already are not measured again. With `--small D2` a smaller model draws the last scales (CoDe, arXiv
2411.17787), beside either model alone. All rows are timed in one process in turn.
"""

import argparse
import collections
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
from matplotlib.figure import Figure
from PIL import Image

from var_jax import Pipeline
from var_jax.config.strict import require
from var_jax.data import fingerprints
from var_jax.errors import Parser, UserError, did_you_mean
from var_jax.evaluate import classifier, features, scores
from var_jax.evaluate.classifier import pixel_classifier
from var_jax.evaluate.features import Collector, FeatureNetwork, FeatureStats
from var_jax.evaluate.image_sets import open_images
from var_jax.evaluate.samples import NEIGHBOUR_ROWS, Distance
from var_jax.io import atomic, pictures
from var_jax.sampling import settings as schedules
from var_jax.sampling import validate
from var_jax.sampling.settings import Ramp, Settings
from var_jax.studies import rows as study

BASE = "fid"
VALUES: dict[str, tuple[Any, ...]] = {
    # Of cfg a number is the published ramp from 0; Ramp(1.5, 1.5) is as strong at every scale.
    "cfg": (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, Ramp(1.5, 1.5)),
    "top_k": (0, 10, 50, 200, 900, Ramp(200, 10), Ramp(10, 200)),
    "top_p": (0.0, 0.5, 0.8, 0.9, 0.96, Ramp(0.99, 0.8), Ramp(0.8, 0.99)),
    "temperature": (0.7, 0.85, 1.0, 1.15, 1.3, Ramp(1.3, 0.85), Ramp(0.85, 1.3)),
    "smooth": (False, True),
}
PRESET, THEN = "preset", "then"
PANELS = (*VALUES, PRESET, THEN)
REAL, SPEED = "real images", "speed"
LAST_SCALES = 3  # that the small model draws at most
PART = 512  # images drawn and classified at once
REPEATS = 3
NOTES = (
    "Every row is of the same labels, each class in turn, and of the same seed: image i of two rows differs by the "
    "settings alone. cfg 1.5 is guidance that rises from 0 at the first scale to 1.5 at the last, 1.5:1.5 is 1.5 at "
    "every scale; of any setting A:B goes from A at the first scale to B at the last. top_k of the vocabulary or more "
    "is off.",
    "'real images' are as many training images against the same reference: what no sampler can be expected to beat. "
    "Its agreement is the classifier's on the reference, as the classifier was fitted on the training images.",
    "Fréchet distances of finite sets are biased upwards, by about as much in every row of as many images.",
)


# (labels, index of the first) -> images
Draw = Callable[[Int[np.ndarray, " n"], int], UInt8[np.ndarray, "n h w c"]]


class Entry(NamedTuple):
    """A row of a table.

    Attributes:
      panel: the setting that is varied.
      label: its value, for readers.
      settings: all of them.
      who: "large", "small", or from which scale the small model goes on.
    """

    panel: str
    label: str
    settings: Settings
    who: str | int = "large"

    @property
    def row(self) -> str:
        """The name of what is measured: entries of the same settings are measured once."""
        told = ", ".join(f"{name} {text(name, value)}" for name, value in self.settings.items())
        return told if self.who == "large" else f"{_drawn_by(self.who)}: {told}"


def text(name: str, value: Any) -> str:
    """A setting's value as the command line takes it, `off` where it does nothing."""
    if isinstance(value, Ramp):
        return f"{value.first:g}:{value.last:g}"
    if isinstance(value, bool):
        return "on" if value else "off"
    return "off" if not value and name != "temperature" else f"{value:g}"


def _drawn_by(who: str | int) -> str:
    return f"{who} alone" if isinstance(who, str) else f"small from scale {who}"


def entries(panels: Sequence[str], vocab: int, scales: int) -> list[Entry]:
    """Rows of the panels, in order; values of top_k that are off for this vocabulary are."""

    def whole(preset: str, explicit: Mapping[str, Any]) -> Settings:
        found = schedules.settings(preset, explicit)
        return Settings(
            **{**found, "top_k": 0 if _beyond(found["top_k"], vocab) else found["top_k"]}
        )

    rows = []
    for panel in panels:
        if panel == PRESET:
            rows += [Entry(panel, preset, whole(preset, {})) for preset in schedules.PRESETS]
        elif panel == THEN:
            from_scales = reversed(range(max(1, scales - LAST_SCALES), scales))
            rows += [
                Entry(panel, _drawn_by(who), whole(BASE, {}), who)
                for who in ("large", *from_scales, "small")
            ]
        else:
            values = [v for v in VALUES[panel] if panel != "top_k" or not _beyond(v, vocab)]
            rows += [
                Entry(panel, text(panel, value), whole(BASE, {panel: value})) for value in values
            ]
    return rows


def _beyond(top_k: int | Ramp, vocab: int) -> bool:
    return (max(top_k.first, top_k.last) if isinstance(top_k, Ramp) else top_k) >= vocab


class Judge(NamedTuple):
    """What samples are measured by."""

    network: FeatureNetwork
    distance: Distance
    classify: Callable[[np.ndarray], np.ndarray]

    def quality(self, found: FeatureStats, hits: Bool[np.ndarray, " n"]) -> dict[str, Any]:
        """Fréchet distance, precision, recall and, of whether each image is as labelled,
        agreement."""
        real = self.distance.real
        count = min(len(found.rows), len(real.rows), NEIGHBOUR_ROWS)
        require(
            count > scores.NEIGHBOURS,
            "the number of images",
            count,
            f"more than {scores.NEIGHBOURS}",
        )
        return {
            "frechet_distance": self.distance.of(found),
            **scores.precision_recall(found.rows[:count], real.rows[:count]),
            "agreement": scores.share(hits),
        }

    def of_samples(self, draw: Draw, labels: Int[np.ndarray, " n"]) -> dict[str, Any]:
        collector, hits = Collector(self.network), []
        for start in range(0, len(labels), PART):
            asked = labels[start : start + PART]
            images = draw(asked, start)
            collector.add(images)
            hits.append(self.classify(images.astype(np.float32) / 255) == asked)
        return self.quality(collector.finish(), np.concatenate(hits))


def sampler(model: Pipeline, small: Pipeline | None, entry: Entry, seed: int) -> Draw:
    """What draws the images of an entry."""

    def draw(labels: Int[np.ndarray, " n"], first: int) -> UInt8[np.ndarray, "n h w c"]:
        drawn_by = small if entry.who == "small" else model
        assert drawn_by is not None
        then = {"then": small, "from_scale": entry.who} if isinstance(entry.who, int) else {}
        return drawn_by.sample(
            labels, seed=seed, first_index=first, as_uint8=True, **then, **entry.settings
        )

    return draw


def alternating(
    contenders: Mapping[str, Callable[[], Any]], repeats: int
) -> dict[str, list[float]]:
    """Seconds of each one's repeats, after one that does not count: in turn, so that whatever else
    slows the machine slows all of them."""
    for run in contenders.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, run in contenders.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def speed(contenders: Mapping[str, Callable[[], Any]], images: int, first: str) -> dict[str, Any]:
    """Images a second of each contender, the median of its repeats, and how much faster than the
    first."""
    found = alternating(contenders, REPEATS)
    rates = {name: images / statistics.median(seconds) for name, seconds in found.items()}
    device = jax.local_devices()[0]
    return {
        "images": images,
        "device": device.device_kind,
        "devices": jax.local_device_count(),
        "contenders": {
            name: {"seconds": found[name], "images_per_second": rate, "ratio": rate / rates[first]}
            for name, rate in rates.items()
        },
    }


def run(args: argparse.Namespace):
    study.check_arguments(args)
    panels = _panels(args)
    require(args.speed_images >= 1, "--speed-images", args.speed_images, "at least 1")
    model = Pipeline.from_pretrained(args.model)
    small = Pipeline.from_pretrained(args.small) if args.small else None
    for one in filter(None, (model, small)):
        validate.transformer(one.config)
    shape, classes = (
        model.config.tokenizer.image_shape,
        validate.transformer(model.config).num_classes,
    )
    reference = open_images(args.reference, shape=shape, **study.image_arguments(args))
    training = open_images(study.training_name(args), shape=shape, **study.image_arguments(args))
    require(
        args.num <= training.count,
        "--num",
        args.num,
        f"at most that of the training images, {training.count}",
    )
    network = features.load("efficientnet", args.weights)
    about = {
        "study": "effects",
        "model": fingerprints.model_fingerprint(model.config, model.params),
        "small": fingerprints.model_fingerprint(small.config, small.params) if small else None,
        "num": args.num,
        "seed": args.seed,
        "resamples": args.resamples,
        "base": BASE,
        "reference": reference.described(),
        "training": training.described(),
        "features": network.described(),
    }
    rows = study.Rows(epath.Path(args.out) / "effects.json", about, NOTES)
    vocab, scales = model.config.transformer.vocab_size, len(model.config.tokenizer.scales)
    wanted = {entry.row: entry for entry in entries(panels, vocab, scales)}
    base = _base(vocab, scales)
    before = rows[SPEED]["contenders"] if SPEED in rows else {}
    timed = {
        entry.row: entry
        for entry in entries(PANELS, vocab, scales)  # again, with what is new: in one process
        if entry.row in {base, *wanted, *before} and (small or entry.who == "large")
    }
    missing = rows.missing([REAL, *wanted]) + [SPEED] * bool(timed.keys() - before.keys())
    if missing:
        if small is not None:  # before hours of rows: whether it fits
            model.sample([0], then=small, from_scale=scales - 1)
        (pixels, labels), (held, theirs) = (
            classifier.load_all(images, classes) for images in (training, reference)
        )
        real = Distance(
            features.of_reference(network, reference, args.cache), args.resamples, args.seed
        )
        judge = Judge(network, real, pixel_classifier(pixels.astype(np.float32) / 255, labels))
        pair = model.spread(), small.spread() if small else None
        asked = np.arange(max(args.num, args.speed_images), dtype=np.int32) % classes
        with features.progress(len(missing), "rows", " rows") as bar:
            for name in missing:
                bar.set_description(name[:40])
                if name == REAL:
                    some = np.sort(
                        np.random.default_rng(args.seed).permutation(len(pixels))[: args.num]
                    )
                    row = judge.quality(
                        study.features_of(network, pixels[some]),
                        judge.classify(held.astype(np.float32) / 255) == theirs,
                    )
                elif name == SPEED:
                    some = asked[: args.speed_images]
                    row = speed(
                        {
                            name: functools.partial(sampler(*pair, entry, args.seed), some, 0)
                            for name, entry in timed.items()
                        },
                        len(some),
                        base,
                    )
                else:
                    row = {
                        "settings": {
                            key: text(key, value) for key, value in wanted[name].settings.items()
                        },
                        **judge.of_samples(
                            sampler(*pair, wanted[name], args.seed), asked[: args.num]
                        ),
                    }
                rows.add(name, row)
                bar.update()
    finish(rows, vocab, scales, epath.Path(args.out))


def _panels(args: argparse.Namespace) -> list[str]:
    panels = (
        args.what.split(",")
        if args.what
        else [panel for panel in PANELS if panel != THEN or args.small]
    )
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


def finish(rows: study.Rows, vocab: int, scales: int, out: epath.Path):
    """Tables and picture of all that is measured so far."""
    measured = [entry for entry in entries(PANELS, vocab, scales) if entry.row in rows]
    # A panel of which nothing is measured but the base, which is in all, would say nothing.
    counts = collections.Counter(entry.panel for entry in measured)
    measured = [entry for entry in measured if counts[entry.panel] > 1]
    base = _base(vocab, scales)
    atomic.save(out / "effects.md", markdown(rows, measured, base), "the tables")
    pictures.save_png(out / "effects.png", picture(rows, measured, base))


def _base(vocab: int, scales: int) -> str:
    """The row of the preset that every panel varies."""
    return entries([PRESET], vocab, scales)[list(schedules.PRESETS).index(BASE)].row


def markdown(rows: study.Rows, measured: Sequence[Entry], base: str) -> str:
    """A table a panel; the base is bold."""
    about, real = rows.about, rows[REAL]
    out = [
        f"{about['num']} samples a row against {about['reference']['count']} images of {about['reference']['name']} "
        f"(95 % intervals), {about['features']['network']}. As many training images: Fréchet distance "
        f"{study.told(real['frechet_distance'])}, precision {real['precision']['value']:.3f}, recall "
        f"{real['recall']['value']:.3f}; the classifier is right on {real['agreement']['value']:.3f} of the "
        "reference. Bold: the base, preset fid."
    ]
    times = rows[SPEED]["contenders"] if SPEED in rows else {}
    for panel in dict.fromkeys(entry.panel for entry in measured):
        heads = [
            "drawn by" if panel == THEN else panel,
            "Fréchet distance",
            "precision",
            "recall",
            "as labelled",
            *(["images a second", "of the base's"] if times else []),
        ]
        out += ["", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        for entry in (e for e in measured if e.panel == panel):
            row = rows[entry.row]
            cells = [
                f"**{entry.label}**" if entry.row == base else entry.label,
                study.told(row["frechet_distance"]),
                *(f"{row[name]['value']:.3f}" for name in ("precision", "recall", "agreement")),
            ]
            if times:
                found = times.get(entry.row)
                cells += (
                    [f"{found['images_per_second']:.1f}", f"{found['ratio']:.2f}"]
                    if found
                    else ["", ""]
                )
            out.append(f"| {' | '.join(cells)} |")
    return "\n".join(out) + "\n"


def picture(rows: study.Rows, measured: Sequence[Entry], base: str) -> Image.Image:
    """A panel a setting: Fréchet distance with its interval above, on an axis of the panel's own,
    agreement with the label below; the base is a star, the classifier's agreement on real images a
    dotted line."""
    panels = list(dict.fromkeys(entry.panel for entry in measured))
    columns = min(4, len(panels))
    bands = -(-len(panels) // columns)
    figure = Figure(figsize=(3.4 * columns, 4.4 * bands), dpi=110, layout="constrained")
    axes = figure.subplots(2 * bands, columns, squeeze=False, height_ratios=(2, 1) * bands)
    measures = ("frechet_distance", "agreement")
    shares = [
        end for row in (REAL, *(e.row for e in measured)) for end in _ends(rows[row]["agreement"])
    ]
    for i, panel in enumerate(panels):
        chosen = [entry for entry in measured if entry.panel == panel]
        for half, (name, told) in enumerate(
            zip(measures, ("Fréchet distance", "as labelled"), strict=True)
        ):
            ax = axes[2 * (i // columns) + half, i % columns]
            if half:
                ax.axhline(rows[REAL][name]["value"], color="tab:grey", ls=":", lw=1)
            for x, entry in enumerate(chosen):
                found = rows[entry.row][name]
                low, high = _ends(found)
                is_base = entry.row == base
                ax.errorbar(
                    x,
                    found["value"],
                    [[found["value"] - low], [high - found["value"]]],
                    capsize=3,
                    color="tab:red" if is_base else "tab:blue",
                    marker="*" if is_base else "o",
                    ms=11 if is_base else 5,
                )
            labels = [entry.label for entry in chosen]
            tilt = (
                {"rotation": 30, "ha": "right"}
                if max(map(len, labels)) > 8 or sum(map(len, labels)) > 28
                else {}
            )
            ax.set_xticks(
                range(len(chosen)), labels if half else [""] * len(chosen), fontsize=8, **tilt
            )
            ax.set_xlim(-0.5, len(chosen) - 0.5)
            if half:
                ax.set_ylim(min(shares) - 0.02, max(shares) + 0.02)
            else:
                ax.set_title("drawn by" if panel == THEN else panel, fontsize=10)
            if i % columns == 0:
                ax.set_ylabel(told, fontsize=9)
    for i in range(len(panels), columns * bands):
        axes[2 * (i // columns), i % columns].set_axis_off()
        axes[2 * (i // columns) + 1, i % columns].set_axis_off()
    figure.suptitle(
        f"{rows.about['features']['network']}, {rows.about['num']} samples a row; star: the base, preset "
        f"{BASE}; as many real images: Fréchet distance {rows[REAL]['frechet_distance']['value']:.1f}, "
        "agreement dotted",
        fontsize=10,
    )
    return study.image_of(figure)


def _ends(metric: Mapping[str, Any]) -> tuple[float, float]:
    low, high = metric["ci95"] or (metric["value"],) * 2
    return min(low, metric["value"]), max(high, metric["value"])


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(
        prog="python -m var_jax.studies.sampling_settings",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    study.add_arguments(parser)
    parser.add_argument(
        "--small", metavar="DIR", help="a smaller model of the same tokenizer, for the last scales"
    )
    parser.add_argument(
        "--what",
        default="",
        metavar="A,B",
        help=f"of {', '.join(PANELS)} (default: all that apply)",
    )
    parser.add_argument(
        "--speed-images", type=int, default=64, help="images of a timed draw (default 64)"
    )
    return study.command(parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
