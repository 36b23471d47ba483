"""`var-jax generate` killed again and again, beside one that is not.

  python tests/generate_kills.py --model runs/fashion/d3 --num 2000 --kills 10

Every life goes on with what the earlier ones drew, and is ended by SIGKILL after a random number of
new files and a random share of a second. At the end both files must be the same to the last byte,
and no image be there twice.
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


def command(model: Path, num: int, out: Path) -> list[str]:
    return [
        sys.executable,
        "-m",
        "var_jax",
        "generate",
        "--model",
        str(model),
        "--num",
        str(num),
        "--out",
        str(out),
    ]


def one_life(run: list[str], out: Path, draw: random.Random) -> tuple[int, int, int]:
    """(files before, files at its end, exit code)."""
    partial = out.with_name(f"{out.name}.partial")

    def drawn() -> int:
        return len(list(partial.glob("*.npy")))

    before = drawn()
    wanted, late = before + draw.randint(0, 2), draw.random()
    with subprocess.Popen(run, stderr=subprocess.DEVNULL) as process:
        while drawn() < wanted and process.poll() is None:
            time.sleep(0.01)
        time.sleep(late)
        process.send_signal(signal.SIGKILL)
        code = process.wait()
    return before, drawn(), code


def report(model: Path, num: int, kills: int, seed: int, directory: Path) -> bool:
    """Runs both, prints every life, and says whether the files are the same."""
    draw, whole, killed = random.Random(seed), directory / "whole.npz", directory / "killed.npz"
    subprocess.run(command(model, num, whole), check=True)
    codes = []
    for index in range(kills):
        before, after, code = one_life(command(model, num, killed), killed, draw)
        codes.append(code)
        print(
            f"{index + 1:3} SIGKILL  files before {before:3}  after {after:3}  exit {code:3}",
            flush=True,
        )
    subprocess.run(command(model, num, killed), check=True)
    with np.load(killed, allow_pickle=False) as arrays:
        images = arrays["arr_0"]
    distinct = len(np.unique(images.reshape(len(images), -1), axis=0))
    same = killed.read_bytes() == whole.read_bytes()
    landed = codes.count(-signal.SIGKILL)
    print(
        f"{landed} of {kills} ended by the signal; {len(images)} images, {distinct} distinct; the same file: {same}"
    )
    return same and landed == kills and len(images) == num == distinct


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="model directory")
    parser.add_argument("--num", type=int, default=2000, help="images (default: %(default)s)")
    parser.add_argument("--kills", type=int, default=10, help="SIGKILLs (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of when they come")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as directory:
        return 0 if report(args.model, args.num, args.kills, args.seed, Path(directory)) else 1


if __name__ == "__main__":
    sys.exit(main())
