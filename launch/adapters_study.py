"""Compares three ways to teach a model a new class from 100 images: LoRA, the class's row alone,
and training all weights.

  python launch/adapters_study.py --runs runs/adapters_study --out docs/results/adapters

The model is trained on Fashion-MNIST without bags, its tokenizer too. Each method learns them under
three seeds, which also choose the 100 images; the learning rate of a method is the one of two
whose samples of bags have the smallest Fréchet distance with the first seed. A row is written to
OUT/ROW.json when it is done and is not made again; a run that a kill ended goes on from its
checkpoint. `--table` prints the rows that there are.
"""

import argparse
import functools
import hashlib
import json
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from PIL import Image

from var_jax import Pipeline
from var_jax.cli import main as cli
from var_jax.data import idx, prepare
from var_jax.data.builders import FASHION_CLASSES
from var_jax.errors import Parser
from var_jax.evaluate import classifier, feature_networks, features, image_sets, reference_cache
from var_jax.evaluate.samples import RESAMPLES, Distance
from var_jax.io.pictures import to_uint8
from var_jax.ops.normalize import normalize_images
from var_jax.studies import study_command

# Names of folders, by Fashion-MNIST's labels. The new class is the last in the order of a folder's
# names, where its row is in the model's table: training all weights then sees the same labels.
CLASSES = tuple({"T-shirt/top": "T-shirt", "Bag": "bag"}.get(n, n) for n in FASHION_CLASSES)
NEW = "bag"
OTHERS = tuple(sorted(name for name in CLASSES if name != NEW))
SHOTS = 100  # images of the new class
HELD_OUT = 20  # test images of each class for a run's own evaluation
JUDGED_NEW, JUDGED_OTHERS = 500, 900  # samples
CLASSIFIER_IMAGES = 20_000  # of the training split
SEEDS = (0, 1, 2)
BATCH = 8
METHODS = {"lora": "LoRA", "class_rows": "row of the class alone", "full": "all weights"}
# optimizer.base_lr; a step's rate at BATCH images is 1/32 of it.
RATES = {"lora": (6.4e-2, 2.56e-1), "class_rows": (3.2e-1, 1.28), "full": (6.4e-3, 2.56e-2)}


class Labeled(NamedTuple):
    """Images of 32 x 32 pixels, and Fashion-MNIST's labels."""

    images: np.ndarray
    labels: np.ndarray

    def of(self, name: str) -> np.ndarray:
        return self.images[self.labels == CLASSES.index(name)]


@functools.cache
def read(split: str) -> Labeled:
    """Reads a split, "train" or "test"."""
    stem = {"train": "train", "test": "t10k"}[split]
    images, labels = (
        idx.read(idx.find(epath.Path(prepare.DEBIAN_FASHION_MNIST), f"{stem}-{kind}-ubyte"), axes)
        for kind, axes in (("images-idx3", 3), ("labels-idx1", 1))
    )
    return Labeled(np.pad(images, ((0, 0), (2, 2), (2, 2)))[..., None], labels)


def write_images(directory: Path, images: np.ndarray):
    """Writes images as they are in the data set; a folder that is there is complete."""
    if directory.exists():
        return
    part = directory.with_name(f".{directory.name}.part")
    part.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image[2:-2, 2:-2, 0]).save(part / f"{i:04}.png", compress_level=1)
    part.rename(directory)


def write_folders(runs: Path):
    """Writes the folder of nine classes, the new class's test images, and each seed's folder."""
    for split in ("train", "test"):
        for name in OTHERS:
            write_images(runs / "images/nine" / split / name, read(split).of(name))
    write_images(runs / "images/new_test" / NEW, read("test").of(NEW))
    for seed in SEEDS:
        folder = runs / f"images/new_{seed}"
        chosen = np.random.RandomState(seed).permutation(len(read("train").of(NEW)))[:SHOTS]
        write_images(folder / "train" / NEW, read("train").of(NEW)[chosen])
        for name in CLASSES:
            write_images(folder / "test" / name, read("test").of(name)[:HELD_OUT])


def train(config: str, runs: Path, name: str, images: str, **settings: Any) -> float:
    """Runs `var-jax train` in RUNS/name, and returns its processor time in seconds."""
    settings = {
        "data.name": "image_folder",
        "data.source_dir": runs / "images" / images,
        "data.data_dir": runs / "data",
        "data.resize": "pad",
        "log_every": 20,
        **settings,
    }
    flags = [f"--config.{key}={value}" for key, value in settings.items()]
    begun = time.process_time()
    if code := cli.main(["train", "--config", config, *flags, "--workdir", str(runs / name)]):
        sys.exit(code)
    return time.process_time() - begun


def train_base(runs: Path, steps: int):
    """Trains the tokenizer and the model of nine classes."""
    train(
        "configs/fashion_mnist.py:tokenizer",
        runs,
        "tokenizer",
        "nine",
        **{
            "tokenizer.channels": 16,
            "batch_size": 32,
            "optimizer.base_lr": 8e-3,
            "steps": 500,
            "eval_every": 500,
            "eval_images": 500,
            "checkpoint_every": 200,
        },
    )
    train(
        "configs/fashion_mnist.py:d2",
        runs,
        "base",
        "nine",
        **{
            "tokenizer_dir": runs / "tokenizer",
            "batch_size": 32,
            "optimizer.base_lr": 1.2e-2,
            "steps": steps,
            "eval_every": steps,
            "eval_images": 500,
            "checkpoint_every": 100,
        },
    )


def train_method(runs: Path, method: str, rate: float, seed: int, steps: int) -> float:
    """Teaches the new class by one method, and returns the seconds of processor time."""
    settings = {
        "optimizer.base_lr": rate,
        "seed": seed,
        "steps": steps,
        "eval_every": steps,
        "checkpoint_every": steps,
    }
    if method == "full":
        config = "configs/fashion_mnist.py:d2"
        settings |= {
            "init_from": runs / "grown",
            "tokenizer_dir": runs / "tokenizer",
            "batch_size": BATCH,
            "ema": 0.98,
            "optimizer.schedule": "constant",
            "optimizer.warmup_steps": 20,
            "optimizer.weight_decay": 0.0,
            "optimizer.final_weight_decay": 0.0,
            "optimizer.clip": 1.0,
        }
    else:
        config = "configs/adapters.py" + (":class_rows" if method == "class_rows" else "")
        settings |= {"adapter.base": runs / "base", "adapter.classes": NEW}
    return train(config, runs, row_name(method, rate, seed), f"new_{seed}", **settings)


def row_name(method: str, rate: float, seed: int) -> str:
    return f"{method}_{rate:g}_{seed}"


def write_grown(runs: Path):
    """Writes the base with a row for the new class, the mean of the others."""
    rate = RATES["class_rows"][0]
    train_method(runs, "class_rows", rate, SEEDS[0], steps=1)
    adapter = runs / row_name("class_rows", rate, SEEDS[0])
    Pipeline.from_pretrained(runs / "base").with_adapter(adapter, 0).save(runs / "grown")
    shutil.rmtree(adapter)


class Measures:
    """Measures samples by a classifier of all ten classes and by the Fréchet distance."""

    def __init__(self, runs: Path):
        chosen = np.random.RandomState(0).permutation(len(read("train").labels))
        chosen = chosen[:CLASSIFIER_IMAGES]
        images, labels = (array[chosen] for array in read("train"))
        self._classify = classifier.pixel_classifier(images.astype(np.float32) / 255, labels)
        self._network = feature_networks.load("efficientnet")
        self._known: dict[str, dict[str, Any]] = {}  # figures by a digest of the images
        self._distances = {
            key: Distance(self._reference(runs / "images" / folder, runs), RESAMPLES, 0)
            for key, folder in (("new", "new_test"), ("others", "nine/test"))
        }

    def _reference(self, folder: Path, runs: Path):
        images = image_sets.open_images(str(folder), shape=(32, 32, 1), resize="pad")
        return reference_cache.read_or_measure(self._network, images, str(runs / "features"))

    def of(self, key: str, images: np.ndarray, names: list[str]) -> dict[str, Any]:
        """Returns the figures of uint8 images that should show classes by these names."""
        digest = hashlib.sha256(images.tobytes()).hexdigest()
        if digest not in self._known:  # a method may leave the images of other classes as they are
            self._known[digest] = self._measured(key, images, names)
        return self._known[digest]

    def _measured(self, key: str, images: np.ndarray, names: list[str]) -> dict[str, Any]:
        labels = np.array([CLASSES.index(name) for name in names])
        pixels, stats = images.astype(np.float32) / 255, features.features_of(self._network, images)
        return {
            "agreement": classifier.agreement(self._classify, pixels, labels),
            "frechet_distance": self._distances[key].of(stats),
        }

    def of_model(self, model: Pipeline) -> dict[str, Any]:
        """Returns the figures of a model's samples."""
        others = [OTHERS[i % len(OTHERS)] for i in range(JUDGED_OTHERS)]
        return {
            key: self.of(key, model.sample(names, seed=1, as_uint8=True), names)
            for key, names in (("new", [NEW] * JUDGED_NEW), ("others", others))
        }

    def of_real(self, tokenizer: Pipeline) -> dict[str, Any]:
        """Returns the figures of real images, and of these through the tokenizer.

        Training images take the place of samples.
        """
        figures: dict[str, Any] = {}
        per_class = JUDGED_OTHERS // len(OTHERS)
        for key, names, count in (("new", (NEW,), JUDGED_NEW), ("others", OTHERS, per_class)):
            images = np.concatenate([read("train").of(name)[:count] for name in names])
            labels = [name for name in names for _ in range(count)]
            decoded = tokenizer.decode(tokenizer.encode(normalize_images(images)))
            through = to_uint8((np.asarray(decoded) + 1) / 2)
            figures |= {
                f"{key}_real": self.of(key, images, labels),
                f"{key}_through_tokenizer": self.of(key, through, labels),
            }
        return figures


def adapted(runs: Path, method: str, name: str) -> Pipeline:
    """Returns the model that a run has taught the new class."""
    if method == "full":
        return Pipeline.from_pretrained(runs / name)
    return Pipeline.from_pretrained(runs / "base").with_adapter(runs / name)


def stored_bytes(runs: Path, method: str, name: str, model: Pipeline) -> int:
    """Returns the size of the file that a method adds to the base's."""
    if method != "full":
        return (runs / name / "adapter.safetensors").stat().st_size
    model.save(runs / f"{name}_saved")
    return (runs / f"{name}_saved/transformer.safetensors").stat().st_size


def write(path: Path, row: dict[str, Any]):
    part = path.with_suffix(".part")
    part.write_text(json.dumps(row, indent=1) + "\n")
    part.rename(path)


def run_row(
    runs: Path, out: Path, measures: Measures, method: str, rate: float, seed: int, *, steps: int
):
    """Trains and measures one row, unless it is there."""
    name = row_name(method, rate, seed)
    if (out / f"{name}.json").exists():
        return
    started = time.time()
    seconds = train_method(runs, method, rate, seed, steps)
    spent = time.time() - started
    model = adapted(runs, method, name)
    row = {
        "method": method,
        "base_lr": rate,
        "rate": rate * BATCH / 256,
        "seed": seed,
        "steps": steps,
        "batch_size": BATCH,
        "cpu_seconds_of_training": round(seconds, 1),
        "seconds_of_training": round(spent, 1),
        "bytes": stored_bytes(runs, method, name, model),
        **measures.of_model(model),
    }
    write(out / f"{name}.json", row)
    print(table(out), flush=True)


def rows_of(out: Path, method: str) -> list[dict[str, Any]]:
    rows = [json.loads(path.read_text()) for path in out.glob(f"{method}_*.json")]
    return sorted(rows, key=lambda row: (row["base_lr"], row["seed"]))


def best_rate(out: Path, method: str) -> float:
    """Returns the rate whose samples of the new class are the nearest with the first seed."""
    tried = [row for row in rows_of(out, method) if row["seed"] == SEEDS[0]]
    return min(tried, key=lambda row: row["new"]["frechet_distance"]["value"])["base_lr"]


def table(out: Path) -> str:
    """The rows that there are: the mean over the seeds of a rate, and the values."""
    lines = [
        "| method | rate | new class, as labeled | new class, Fréchet distance | others, as "
        "labeled | others, Fréchet distance | bytes | steps | processor time, s |",
        "|---" * 9 + "|",
    ]
    for method, title in METHODS.items():
        rows = rows_of(out, method)
        for rate in sorted({row["base_lr"] for row in rows}):
            of_rate = [row for row in rows if row["base_lr"] == rate]
            cells = [
                _cell([row[key][metric]["value"] for row in of_rate], digits)
                for key in ("new", "others")
                for metric, digits in (("agreement", 3), ("frechet_distance", 0))
            ]
            first = of_rate[0]
            seconds = _cell([row["cpu_seconds_of_training"] for row in of_rate], 0)
            lines.append(
                f"| {title} | {first['rate']:g} | {' | '.join(cells)} | {first['bytes']:,} | "
                f"{first['steps']} | {seconds} |"
            )
    return "\n".join(lines)


def _cell(values: list[float], digits: int) -> str:
    mean = f"{statistics.mean(values):.{digits}f}"
    single = ", ".join(f"{value:.{digits}f}" for value in values)
    return f"{mean} ({single})" if len(values) > 1 else mean


def main() -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/adapters_study"), help="default: %(default)s"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("docs/results/adapters"), help="rows (%(default)s)"
    )
    parser.add_argument(
        "--base-steps", type=int, default=600, help="of the model of nine classes (%(default)s)"
    )
    parser.add_argument(
        "--steps", type=int, default=200, help="of each method (default: %(default)s)"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=tuple(METHODS),
        default=tuple(METHODS),
        help="methods (default: all)",
    )
    parser.add_argument(
        "--table", action="store_true", help="print the table of the rows that there are, and end"
    )
    return study_command.command(parser, run)


def run(args: argparse.Namespace):
    """Trains and judges the rows that are missing, and prints the table."""
    runs, out = args.runs, args.out
    if args.table:
        print(table(out))
        return
    out.mkdir(parents=True, exist_ok=True)
    write_folders(runs)
    if not (runs / "grown/model.json").exists():
        train_base(runs, args.base_steps)
        write_grown(runs)
    measures = Measures(runs)
    if not (out / "before.json").exists():
        grown = Pipeline.from_pretrained(runs / "grown")
        real = measures.of_real(Pipeline.from_pretrained(runs / "tokenizer"))
        write(out / "before.json", {**measures.of_model(grown), **real})
    for place in (0, 1):
        for method in args.only:
            rate = RATES[method][place]
            run_row(runs, out, measures, method, rate, SEEDS[0], steps=args.steps)
    for seed in SEEDS[1:]:
        for method in args.only:
            rate = best_rate(out, method)
            run_row(runs, out, measures, method, rate, seed, steps=args.steps)
    print(table(out))


if __name__ == "__main__":
    sys.exit(main())
