"""Seconds of `var-jax sample` from nothing, in processes of their own, and of the generation in it.

  python tests/cold_start.py --model runs/quickstart --json docs/results/generation/cold_start.json

The first run, which compiles, does not count: from the second on compiled programs are on disk.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax

GENERATION = """
import sys, time
import numpy as np
from var_jax import Pipeline
model, num = Pipeline.from_pretrained(sys.argv[1]), int(sys.argv[2])
labels = [i % 10 for i in range(num)]
model.sample(labels, as_uint8=True)
started = time.perf_counter()
model.sample(labels, seed=1, as_uint8=True)
print(time.perf_counter() - started)
"""


def seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started


def measure(model: Path, num: int, repeats: int, directory: Path) -> dict:
    def sample(count: int) -> list[str]:
        return [
            sys.executable,
            "-m",
            "var_jax",
            "sample",
            "--model",
            str(model),
            "--labels",
            "0-9",
            "--num",
            str(count),
            "--out",
            str(directory / "grid.png"),
        ]

    grid, one = ([seconds(sample(count)) for _ in range(repeats + 1)][1:] for count in (num, 1))
    told = subprocess.run(
        [sys.executable, "-c", GENERATION, str(model), str(num)],
        check=True,
        capture_output=True,
        text=True,
    )
    return {
        "images": num,
        "cores": len(os.sched_getaffinity(0)),
        "device": jax.devices()[0].device_kind,
        "command_seconds": grid,
        "one_image_seconds": one,
        "generation_seconds": float(told.stdout),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", type=Path, required=True, help="model directory or training workdir"
    )
    parser.add_argument(
        "--num", type=int, default=100, help="images of the grid (default: %(default)s)"
    )
    parser.add_argument(
        "--repeats", type=int, default=3, help="runs that count (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as directory:
        found = measure(args.model, args.num, args.repeats, Path(directory))
    print(
        f"{args.num} images on {found['cores']} cores: {statistics.median(found['command_seconds']):.2f} s, of one "
        f"{statistics.median(found['one_image_seconds']):.2f} s; generation alone "
        f"{found['generation_seconds']:.2f} s"
    )
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
