"""Compares the small full recipe of a tokenizer with the parts of the published one (vaex) that
apply to it.

  python launch/tokenizer_recipe.py --runs runs/recipe --out docs/results/tokenizer/recipe

Every row is a run of configs/fashion_mnist.py:tokenizer1024_full with some keys changed, of equal
length, under one of several seeds, trained by `var-jax train` and measured by `var-jax evaluate` on
the 10,000 test images. A row is written to OUT/ROW.json when it is done and is not made again; a
run that a kill ended goes on from its checkpoint. OUT/table.md has the means and the single values
of the rows that there are; `--table` prints it anew.
"""

import argparse
import itertools
import json
import resource
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

CONFIG = "configs/fashion_mnist.py:tokenizer1024_full"
STEPS = 400
SEEDS = (0, 1, 2)
AUTOENCODER = {
    "tokenizer.dropout": 0.05,
    "tokenizer.init_gain": 0.5,
    "codebook.weight_decay": False,
    "ema_warmup": 2,
}


def discriminator(steps: int) -> dict[str, object]:
    """The keys of the discriminator's parts. Its small recipe warms the adversarial weight up over
    a tenth of the run; as published, the rate warms up over as long, and the blur fades out over
    twice as long."""
    keys = {
        "bcr": 4.0,
        "cutout": 0.2,
        "bcr_cutout": 0.2,
        "bcr_diffaugment": "translation,cutout",
        "hinge": "sum",
        "blur_fade": 0.2,
    }
    optimizer = {"weight_decay": 0.0005, "final_weight_decay": 0.0005, "warmup_steps": steps // 10}
    return {f"adversarial.{key}": value for key, value in keys.items()} | {
        f"discriminator_optimizer.{key}": value for key, value in optimizer.items()
    }


def variants(steps: int) -> dict[str, Mapping[str, object]]:
    """{name: changed keys}, those that are compared first before the parts of them."""
    adversarial = discriminator(steps)
    return {
        "full": {},
        "all": AUTOENCODER | adversarial,
        "autoencoder": AUTOENCODER,
        "discriminator": adversarial,
    }


def run_row(name: str, seed: int, steps: int, changes: Mapping[str, object], runs: Path, out: Path):
    """Trains and measures one row, and writes it.

    Raises:
      CalledProcessError: a command failed; it has said why.
    """
    workdir, report = runs / name, runs / f"{name}.json"
    settings = {
        "steps": steps,
        "seed": seed,
        "eval_every": steps,
        "checkpoint_every": 100,
        **changes,
    }
    flags = [f"--config.{key}={value}" for key, value in settings.items()]
    command = [sys.executable, "-m", "var_jax"]
    subprocess.run(
        [*command, "train", "--config", CONFIG, *flags, "--workdir", workdir], check=True
    )
    subprocess.run(
        [
            *command,
            "evaluate",
            "--model",
            workdir,
            "--reference",
            "fashion_mnist_idx:test",
            "--resize",
            "pad",
            "--json",
            report,
        ],
        check=True,
    )
    measured = json.loads(report.read_text())
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    row = {
        "config": CONFIG,
        "changes": settings,
        "metrics": measured["metrics"],
        "usage": measured["usage"],
        "cpu_seconds_of_this_start": round(spent.ru_utime + spent.ru_stime),
    }
    part = out / f"{name}.json.part"
    part.write_text(json.dumps(row, indent=1) + "\n")
    part.rename(out / f"{name}.json")


def table(out: Path) -> str:
    """The rows that there are, a variant a line: the mean over its seeds, and the values."""
    columns = {
        "PSNR, dB": ("psnr", 2),
        "SSIM": ("ssim", 4),
        "perceptual distance": ("perceptual", 4),
        "Fréchet distance": ("frechet_distance", 1),
    }
    lines = [
        f"| recipe | {' | '.join(columns)} | codes at 1x1 | codes used |",
        "|---" * (len(columns) + 3) + "|",
    ]
    for name in variants(STEPS):
        rows = [json.loads(path.read_text()) for path in sorted(out.glob(f"{name}_*.json"))]
        if not rows:
            continue
        cells = [
            _cell([row["metrics"][key]["value"] for row in rows], digits)
            for key, digits in columns.values()
        ]
        cells.append(_cell([row["usage"]["scales"][0]["used"] for row in rows], 0))
        cells.append(_cell([row["usage"]["all"]["used"] for row in rows], 0))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(values: list[float], digits: int) -> str:
    single = ", ".join(f"{value:.{digits}f}" for value in values)
    return f"{statistics.mean(values):.{digits}f} ({single})"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/recipe"), help="workdirs (default %(default)s)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("docs/results/tokenizer/recipe"),
        help="rows (default %(default)s)",
    )
    parser.add_argument(
        "--steps", type=int, default=STEPS, help="of every run (default %(default)s)"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=tuple(variants(STEPS)),
        default=tuple(variants(STEPS)),
        help="variants (default: all)",
    )
    parser.add_argument(
        "--table", action="store_true", help="print the table of the rows that there are, and end"
    )
    args = parser.parse_args()
    if args.table:
        print(table(args.out))
        return
    for place in (args.runs, args.out):
        place.mkdir(parents=True, exist_ok=True)
    changed = variants(args.steps)
    # Two variants' runs of a seed come one after the other, so that the first rows are compared.
    for pair in (("full", "all"), ("autoencoder", "discriminator")):
        for seed, name in itertools.product(SEEDS, pair):
            if name in args.only and not (args.out / f"{name}_{seed}.json").exists():
                run_row(f"{name}_{seed}", seed, args.steps, changed[name], args.runs, args.out)
                (args.out / "table.md").write_text(table(args.out) + "\n")
    print(table(args.out))


if __name__ == "__main__":
    main()
