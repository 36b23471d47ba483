"""Measures the images per second of the input pipeline, beside what TPU hosts need.

  python launch/input_pipeline.py --json docs/results/bench/input_pipeline.json

It makes JPEG files of the size of ImageNet's photographs, prepares them as an image folder, and
reads training batches of ImageNet's recipe (Lanczos resize, random crop to 256 pixels) with threads
and with 1 and 2 worker processes; then a token cache of 680 tokens per image. A row's rate is the
number of images per second of processor time, of this process and its workers together: what one
core delivers, whatever else runs on the machine. The files stay in the page cache, so that the
rates are those of the processor and not of a disk. Processor time is read from /proc (Linux).

What a host needs is the bound of images per second in the reports of `launch/aot_table.sh`: images
per step over the step's shortest time, per chip, times the chips per host. Needs and rates are
compared as cores.
"""

import argparse
import dataclasses
import io
import json
import multiprocessing
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from var_jax.config.scales import Scales
from var_jax.config.sections import DataConfig
from var_jax.data import loader, token_cache, token_manifest, transforms
from var_jax.io import atomic
from var_jax.perf import machine
from var_jax.train import token_shards

ROOT = Path(__file__).resolve().parents[1]
IMAGE_SHAPE = (256, 256, 3)
SIZES = ((375, 500), (500, 375), (333, 500))  # of ImageNet's photographs, height and width
PHOTOS, QUALITY = 48, 90  # different pictures, and the quality of their files
FILES = 1200  # so many resized images that the loader does not cache them
SCALES = Scales.parse("1,2,3,4,5,6,8,10,13,16")
CACHED, VOCABULARY = 8192, 4096
BATCH, WARM_UP = 64, 4
CHIPS_PER_HOST = 8  # of v5e
DEPTHS = ("d16", "d20", "d24", "d30")


def photo(height: int, width: int, random: np.random.Generator) -> bytes:
    """Returns a JPEG file of noise whose amplitude falls with the frequency, as photographs'."""
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    amplitude = 1 / np.maximum(np.hypot(rows, columns), 1 / width)
    gray, *chroma = (
        np.fft.irfft2(
            np.fft.rfft2(random.standard_normal((height, width))) * amplitude, (height, width)
        )
        for _ in range(3)
    )
    channels = [gray / gray.std(), *(0.4 * one / one.std() for one in chroma)]
    values = np.stack([channels[0], channels[0] + channels[1], channels[0] + channels[2]], axis=-1)
    pixels = np.clip(128 + 55 * values, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def write_folder(directory: Path, files: int) -> list[bytes]:
    """Writes an image folder of two classes, and returns its different files."""
    random = np.random.default_rng(0)
    photos = [photo(*SIZES[i % len(SIZES)], random) for i in range(min(PHOTOS, files))]
    for split, count in (("train", files), ("val", 2)):
        for i in range(count):
            folder = directory / split / f"class{i % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{i:05d}.jpg").write_bytes(photos[i % len(photos)])
    return photos


def write_cache(directory: epath.Path, images: int) -> token_cache.Cache:
    """Writes a token cache of random tokens, as `var-jax tokenize` would, and opens it."""
    info = token_manifest.SplitInfo("train", images, views=1)
    classes = tuple(map(str, range(10)))
    manifest = token_manifest.Manifest(
        "random", "random", "crop", IMAGE_SHAPE, SCALES, VOCABULARY, classes, 0, train=info
    )
    token_shards.claim(directory, manifest, is_first_host=True)
    parts = token_shards.parts_of_split("train", info, shard_images=4096)
    random = np.random.default_rng(0)
    for part in parts:
        tokens = random.integers(VOCABULARY, size=(part.stop - part.start, SCALES.total))
        records = [
            token_manifest.record(i % len(classes), row, VOCABULARY) for i, row in enumerate(tokens)
        ]
        token_shards.write(directory, manifest, part, records)
    token_shards.complete(directory, manifest, {"train": parts})
    return token_cache.open_cache(directory)


def processor_seconds() -> float:
    """Returns the processor time of this process and of the workers that it has now."""
    ticks = os.sysconf("SC_CLK_TCK")
    total = time.process_time()
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / ticks  # user and system
    return total


def rate(batches: Iterator[dict[str, np.ndarray]], count: int) -> dict[str, float]:
    """Returns the rate of some batches, after others that start the workers and fill buffers."""
    for _ in range(WARM_UP):
        next(batches)
    cpu, clock = processor_seconds(), time.perf_counter()
    images = sum(len(next(batches)["label"]) for _ in range(count))
    cpu, clock = processor_seconds() - cpu, time.perf_counter() - clock
    batches.close()  # pyright: ignore[reportAttributeAccessIssue]
    return {
        "images": images,
        "cpu_seconds": cpu,
        "seconds": clock,
        "images_per_cpu_second": images / cpu,
        "images_per_second": images / clock,
    }


def milliseconds(work: Callable[[Any], Any], items: list[Any]) -> float:
    """Returns the processor time of a function per item."""
    before = time.process_time()
    for item in items:
        work(item)
    return 1e3 * (time.process_time() - before) / len(items)


def required_rates(directory: Path) -> dict[str, float]:
    """Returns the images per second of a v5e host at the bound of each report, by depth."""
    result = {}
    for depth in DEPTHS:
        report = json.loads((directory / f"{depth}_v5e-16x16.json").read_text())
        chips = report["devices"]
        result[depth] = CHIPS_PER_HOST * report["images"] / report["step_seconds"] / chips
    return result


def measure(directory: Path, batches: int, files: int, cached: int) -> dict[str, Any]:
    """Returns the rates of all rows, with the files that they read in a directory."""
    photos = write_folder(directory / "photos", files)
    decoded = [transforms.decode(content, "photo") for content in photos]
    data = DataConfig(
        "image_folder",
        data_dir=str(directory / "tfds"),
        source_dir=str(directory / "photos"),
        eval_split="val",
    )
    rows: dict[str, dict[str, float]] = {}
    for workers in (0, 1, 2):
        some = dataclasses.replace(data, workers=workers)
        rows[f"jpeg_{workers}_workers"] = rate(
            loader.train_batches(some, IMAGE_SHAPE, BATCH, seed=0), batches
        )
    cache = write_cache(epath.Path(directory / "cache"), cached)
    for workers in (0, 1, 2):
        rows[f"tokens_{workers}_workers"] = rate(
            token_cache.train_batches(cache, BATCH, seed=0, workers=workers), 8 * batches
        )
    return {
        "mean_file_bytes": round(sum(map(len, photos)) / len(photos)),
        "decode_ms": milliseconds(lambda content: transforms.decode(content, "photo"), photos),
        "resize_ms": milliseconds(lambda x: transforms.fit(x, IMAGE_SHAPE, "crop"), decoded),
        "rows": rows,
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batches", type=int, default=24, help="batches of 64 images per row")
    parser.add_argument("--files", type=int, default=FILES, help="JPEG files (default %(default)s)")
    parser.add_argument("--cached", type=int, default=CACHED, help="images of the token cache")
    parser.add_argument("--reports", type=Path, default=ROOT / "docs" / "results" / "aot")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as directory:
        result = measure(Path(directory), args.batches, args.files, args.cached)
    jpeg = result["rows"]["jpeg_2_workers"]["images_per_cpu_second"]
    result = {
        "command": shlex.join(["python", "launch/input_pipeline.py", *(argv or sys.argv[1:])]),
        **machine.describe(),
        **result,
        "host_chips": CHIPS_PER_HOST,
        "required": {
            depth: {"images_per_second": need, "cores_for_jpegs": need / jpeg}
            for depth, need in required_rates(args.reports).items()
        },
    }
    for name, row in result["rows"].items():
        print(f"{name}: {row['images_per_cpu_second']:.0f} images per second of a core")
    for depth, need in result["required"].items():
        print(
            f"{depth}: {need['images_per_second']:.0f} images per second of a host, "
            f"{need['cores_for_jpegs']:.1f} cores for JPEGs"
        )
    if args.json:
        atomic.save(epath.Path(args.json), json.dumps(result, indent=1), "the figures")
    return 0


if __name__ == "__main__":
    sys.exit(main())
