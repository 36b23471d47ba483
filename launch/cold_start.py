"""Measures the seconds of `var-jax sample` in a process of its own, and of the sampling alone.

  python launch/cold_start.py --model runs/quickstart --json docs/results/generation/cold_start.json

The first run compiles and does not count: later ones find the compiled programs on disk.
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

SAMPLING = """
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
    """Returns the seconds of the command for `num` images and for one, and of sampling alone."""

    def time_command(count: int) -> list[float]:
        command = [sys.executable, "-m", "var_jax", "sample", "--model", str(model)]
        command += ["--labels", "0-9", "--num", str(count), "--out", str(directory / "grid.png")]
        return [seconds(command) for _ in range(repeats + 1)][1:]

    grid, single = time_command(num), time_command(1)
    sampling = subprocess.run(
        [sys.executable, "-c", SAMPLING, str(model), str(num)],
        check=True,
        capture_output=True,
        text=True,
    )
    return {
        "images": num,
        "cores": len(os.sched_getaffinity(0)),
        "device": jax.devices()[0].device_kind,
        "command_seconds": grid,
        "one_image_seconds": single,
        "generation_seconds": float(sampling.stdout),
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
        result = measure(args.model, args.num, args.repeats, Path(directory))
    print(
        f"{args.num} images on {result['cores']} cores: "
        f"{statistics.median(result['command_seconds']):.2f} s, of one "
        f"{statistics.median(result['one_image_seconds']):.2f} s; generation alone "
        f"{result['generation_seconds']:.2f} s"
    )
    if args.json:
        args.json.write_text(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
