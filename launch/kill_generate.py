"""Kills `var-jax generate` again and again, and compares its file with that of a run left alone.

  python launch/kill_generate.py --model runs/fashion/d3 --num 2000 --kills 10

Every start goes on with the images of the earlier ones. It is ended by SIGKILL after a random
number of new files and a random part of a second. At the end both sample files must be equal to the
last byte, and no image may be in them twice.
"""

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np


def generate_command(model: Path, num: int, out: Path) -> list[str]:
    command = [sys.executable, "-m", "var_jax", "generate"]
    return [*command, "--model", str(model), "--num", str(num), "--out", str(out)]


def start_and_kill(command: list[str], out: Path, rng: random.Random) -> tuple[int, int, int]:
    """Returns the finished files before and after the start, and its exit code."""
    partial = out.with_name(f"{out.name}.partial")

    def count_files() -> int:
        return len(list(partial.glob("*.npy")))

    before = count_files()
    target, delay = before + rng.randint(0, 2), rng.random()
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while count_files() < target and process.poll() is None:
            time.sleep(0.01)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        exit_code = process.wait()
    return before, count_files(), exit_code


def compare(model: Path, num: int, kills: int, seed: int, directory: Path) -> bool:
    """Runs both commands, prints every start, and returns whether the files are the same."""
    rng = random.Random(seed)
    uninterrupted, killed = directory / "uninterrupted.npz", directory / "killed.npz"
    subprocess.run(generate_command(model, num, uninterrupted), check=True)
    exit_codes = []
    for index in range(kills):
        before, after, exit_code = start_and_kill(generate_command(model, num, killed), killed, rng)
        exit_codes.append(exit_code)
        print(
            f"{index + 1:3} SIGKILL  files before {before:3}  after {after:3}  exit {exit_code:3}",
            flush=True,
        )
    subprocess.run(generate_command(model, num, killed), check=True)

    with np.load(killed, allow_pickle=False) as arrays:
        images = arrays["arr_0"]
    distinct = len(np.unique(images.reshape(len(images), -1), axis=0))
    same = killed.read_bytes() == uninterrupted.read_bytes()
    landed = exit_codes.count(-signal.SIGKILL)
    print(
        f"{landed} of {kills} ended by the signal; {len(images)} images, {distinct} distinct; "
        f"the same file: {same}"
    )
    return same and landed == kills and len(images) == num == distinct


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="model directory")
    parser.add_argument("--num", type=int, default=2000, help="images (default: %(default)s)")
    parser.add_argument("--kills", type=int, default=10, help="SIGKILLs (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of when the signals are sent")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as directory:
        same = compare(args.model, args.num, args.kills, args.seed, Path(directory))
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
