"""The command line of the studies, and their rows of measurements.

Rows are saved as soon as they are measured, so that a killed run resumes where it was.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

import numpy as np
from etils import epath
from jaxtyping import UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from var_jax.config.sections import Resize, current_resize_name
from var_jax.config.strict import differences, require
from var_jax.errors import USER_ERROR_EXIT_CODE, Parser, UserError
from var_jax.evaluate import features, image_sets, samples
from var_jax.evaluate.features import Collector, FeatureNetwork, FeatureStats
from var_jax.io import atomic
from var_jax.io.json import read_object

ROWS_FORMAT = 1
PICTURED = 8  # images in the picture of a study


def command(
    parser: Parser, run: Callable[[argparse.Namespace], None], argv: Sequence[str] | None = None
) -> int:
    """Runs a study as a command.

    Returns:
      The exit code: 0 done, 2 the user's mistake (one line on stderr), 130 interrupted.
    """
    try:
        run(parser.parse_args(argv))
    except UserError as error:
        print(f"{parser.prog}: {' '.join(str(error).split())}", file=sys.stderr)
        return USER_ERROR_EXIT_CODE
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def add_arguments(parser: Parser):
    """Adds the options that all studies of a model have."""
    parser.add_argument(
        "--model", required=True, metavar="DIR", help="model directory or training workdir"
    )
    parser.add_argument(
        "--reference", required=True, metavar="DATASET:SPLIT", help="held-out images"
    )
    parser.add_argument(
        "--training",
        default="",
        metavar="DATASET:SPLIT",
        help="training images, with labels (default: the reference's data set, split train)",
    )
    parser.add_argument(
        "--resize",
        type=current_resize_name,
        choices=get_args(Resize),
        default="crop",
        help="how images are brought to the model's size, as in training (default crop)",
    )
    parser.add_argument(
        "--data-dir",
        default="",
        metavar="DIR",
        help="directory of prepared data sets, as data.data_dir",
    )
    parser.add_argument(
        "--source-dir",
        default="",
        metavar="DIR",
        help="raw files of a data set, as data.source_dir",
    )
    parser.add_argument("--num", type=int, default=2000, help="images per row (default 2000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--resamples",
        type=int,
        default=samples.RESAMPLES,
        help=f"bootstrap resamples for intervals, 0 for none (default {samples.RESAMPLES})",
    )
    parser.add_argument(
        "--weights",
        default="",
        metavar="PATH",
        help="weights of EfficientNet-Lite0 (default: those in the package)",
    )
    parser.add_argument(
        "--cache",
        metavar="DIR",
        help="cache of the reference's features, '' for none (default ~/.cache/var_jax/features)",
    )
    parser.add_argument(
        "--out",
        required=True,
        metavar="DIR",
        help="directory of the JSON, the tables and the picture; rows that are there are kept",
    )


def check_arguments(args: argparse.Namespace):
    """Checks options before anything is loaded.

    Raises:
      UserError: a number is out of range.
    """
    require(args.num >= 4, "--num", args.num, "at least 4")
    require(0 <= args.seed < 2**32, "--seed", args.seed, "from 0 to 4294967295")
    require(
        args.resamples == 0 or args.resamples >= 2,
        "--resamples",
        args.resamples,
        "0, for no intervals, or at least 2",
    )


def image_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Returns keyword arguments of `open_images`, for the reference and the training images."""
    return {"resize": args.resize, "data_dir": args.data_dir, "source_dir": args.source_dir}


def training_name(args: argparse.Namespace) -> str:
    """Returns `--training`, or the training split of the reference's data set.

    Raises:
      UserError: `--training` is not given, and the reference is not of a data set.
    """
    if args.training:
        return args.training
    name, colon, _ = args.reference.partition(":")
    require(
        bool(colon) and "/" not in name,
        "--training",
        f"not given, and {args.reference} of no data set",
        "given, as DATASET:SPLIT",
    )
    return f"{name}:train"


class Rows:
    """The measured rows of a study by name, in a file that is written anew after each row.

    Args:
      path: the file; its directory is made.
      about: the settings and inputs that the rows depend on. A value of None is not known in this
        run (or was not in an earlier one), and fits any other.
      notes: remarks for a reader of the file.
    Raises:
      UserError: the file holds rows of another study or of other settings, or no rows at all; or it
        cannot be written.
    """

    def __init__(self, path: epath.PathLike, about: Mapping[str, Any], notes: Sequence[str] = ()):
        self.path, self.notes = epath.Path(path), list(notes)
        _make_directory(self.path.parent)
        self.about: dict[str, Any] = json.loads(json.dumps(about))
        self.rows: dict[str, dict[str, Any]] = {}
        if self.path.exists():
            self._read()

    def _read(self):
        """Reads the rows of an earlier run.

        Raises:
          UserError: they are not rows of this study and these settings.
        """
        content = read_object(self.path)
        file_about, rows = content.get("about"), content.get("rows")
        if (
            content.get("format") != ROWS_FORMAT
            or not isinstance(file_about, dict)
            or not isinstance(rows, dict)
        ):
            raise UserError(
                f"{self.path} holds no rows of a study; remove it, or give another --out"
            )
        unknown = {
            key
            for key in self.about.keys() & file_about.keys()
            if None in (self.about[key], file_about[key])
        }
        known_here, known_there = (
            {key: _in_words_of_today(value) for key, value in about.items() if key not in unknown}
            for about in (self.about, file_about)
        )
        # The shortest first: a fingerprint that differs says less than the seed that made it.
        different = sorted(differences(known_here, known_there), key=len)
        if different:
            raise UserError(
                f"{self.path} is of other settings: {'; '.join(different[:4])}; remove it, or give "
                "another --out"
            )
        for key in unknown:
            if file_about[key] is not None:
                self.about[key] = file_about[key]
        self.rows = rows

    def __contains__(self, name: str) -> bool:
        return name in self.rows

    def __getitem__(self, name: str) -> dict[str, Any]:
        return self.rows[name]

    def missing(self, names: Sequence[str]) -> list[str]:
        """Returns the names that are not measured yet, each once, in order."""
        return [name for name in dict.fromkeys(names) if name not in self.rows]

    def fill(self, names: Sequence[str], measure: Callable[[str], Mapping[str, Any]]):
        """Measures rows by name, with a progress bar, and keeps each as soon as it is measured.

        Raises:
          UserError: the file cannot be written.
        """
        with features.progress(len(names), "rows", " rows") as bar:
            for name in names:
                bar.set_description(name[:40])
                self.add(name, measure(name))
                bar.update()

    def add(self, name: str, row: Mapping[str, Any]):
        """Keeps a row, in the file too.

        Raises:
          UserError: the file cannot be written.
        """
        self.rows[name] = json.loads(json.dumps(row))
        content = {
            "format": ROWS_FORMAT,
            "about": self.about,
            "notes": self.notes,
            "rows": self.rows,
        }
        atomic.save(self.path, json.dumps(content, indent=1, ensure_ascii=False), "the study")


def _in_words_of_today(value: Any) -> Any:
    """Returns a value of `about` with its text on resizing as this version writes it."""
    if not isinstance(value, Mapping) or not isinstance(value.get("resize"), str):
        return value
    return {**value, "resize": image_sets.current_text(value["resize"])}


def _make_directory(path: epath.Path):
    """Makes a directory, and checks that files can be written there before hours of work."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot write to {path}: {error.strerror or error}; give another --out"
        ) from error
    if "://" not in str(path) and not os.access(path, os.W_OK | os.X_OK):
        raise UserError(f"cannot write to {path}: no permission; give another --out")


def features_of(network: FeatureNetwork, images: UInt8[np.ndarray, "n h w c"]) -> FeatureStats:
    """Returns the features of images in memory."""
    collector = Collector(network)
    collector.add(images)
    return collector.finish()


def image_of(figure: Figure) -> Image.Image:
    """Returns a matplotlib figure as a picture."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])


def format_metric(metric: Mapping[str, Any], digits: int = 1) -> str:
    """Returns a value with its interval, as tables show them."""
    value = f"{metric['value']:.{digits}f}"
    ends = metric.get("ci95")
    return value if ends is None else f"{value} ({ends[0]:.{digits}f} to {ends[1]:.{digits}f})"
