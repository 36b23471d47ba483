"""Compares ways to better samples from a trained model of Fashion-MNIST, alone and together.

  python launch/better_samples.py --base runs/long/d4 --tokens runs/long/tokens --hours 2

The base and its token cache are those of configs/fashion_mnist_long.py. A way is a model that is
made of the base, or a setting of sampling, or both:

  base       the model itself
  ssg        scaled spatial guidance (arXiv 2602.05534)
  neon       away from a copy that was tuned on the model's own samples (arXiv 2510.03597)
  refiner    a logit refiner (arXiv 2609.11804)
  decoder    the decoder tuned on own samples by a Fréchet loss (arXiv 2604.28190)
  guidance   guidance learned by an adapter, and sampled in one pass
  longer     trained further, for as many steps as the next two: what these are compared with
  weights    trained further with HMAR's weights of the scales (arXiv 2506.04421)
  flips      trained further on inputs whose coarse tokens were flipped

A way has several settings. One of them is chosen by the Fréchet distance of 2,000 samples from a
part of the training images; what is reported is of 10,000 samples and the test images, with three
seeds of the samples. "together" combines the ways whose distance lies below the base's by more than
the intervals. A row is written to OUT/ROW.json when it is done and is not made again, on whatever
machine; a run that a kill ended goes on from its checkpoint. After --hours no further row is begun.

How long all of it takes was not measured; a row of 10,000 samples takes some ten minutes of a core.
"""

import argparse
import json
import math
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from var_jax.errors import Parser
from var_jax.studies import study_command
from var_jax.studies.command_rows import (
    CommandRows,
    TimeIsUp,
    as_flags,
    seconds_to_make,
    var_jax,
)

CONFIG = "configs/fashion_mnist_long.py"
FEW, MANY = 2_000, 10_000  # samples: those that choose, and those that are reported
OWN = 10_000  # samples that a way is trained on
CHOOSING, REPORTED = "fashion_mnist_idx:train[:10000]", "fashion_mnist_idx:test"
SEEDS = (0, 1, 2)
CFG = (0.5, 1.0, 1.5, 2.5)
SSG = (0.1, 0.3, 0.6)
MERGES = (-0.5, -1.0, -1.5)
FURTHER_STEPS, OWN_STEPS, DECODER_STEPS = 300, 100, 200
SIDES = (1, 2, 3, 4, 5, 6, 8)  # of the token maps

Flags = tuple[str, ...]


class Variant(NamedTuple):
    """A way with one of its settings.

    Attributes:
      way: its name.
      setting: the setting's name, which is part of the row's.
      model: name of the model below --runs; "" for the base.
      flags: of `generate`, without guidance.
      cfg: guidance.
    """

    way: str
    setting: str
    model: str
    flags: Flags
    cfg: float


class Study:
    """The rows of all ways, made by commands.

    Args:
      args: the command line.
      rows: where the rows are.
    """

    def __init__(self, args: argparse.Namespace, rows: CommandRows):
        self._args, self._rows = args, rows

    def run(self):
        """Asks for every row, in an order that depends on the rows before."""
        base = self._best(Variant("base", f"cfg{cfg:g}", "", (), cfg) for cfg in CFG)
        first = [self._row(base, MANY, SEEDS[0])]
        ways = (self._ssg, self._decoder, self._refiner, self._neon, self._guidance)
        better = [
            best
            for best in (self._best(way(base.cfg)) for way in ways)
            if _is_below([self._row(best, MANY, SEEDS[0])], first)
        ]
        for best in map(self._best, self._further(base.cfg)):
            self._row(best, MANY, SEEDS[0])

        # Whatever is called better is so with every seed
        reported = [self._row(base, MANY, seed) for seed in SEEDS]
        better = [
            best
            for best in better
            if _is_below([self._row(best, MANY, seed) for seed in SEEDS], reported)
        ]
        together = self._together(base, better)
        if together is not None:
            for seed in SEEDS:
                self._row(together, MANY, seed)

    def _row(self, variant: Variant, num: int, seed: int) -> dict[str, Any]:
        name = f"{variant.way}_{variant.setting}_{num}_seed{seed}"
        return self._rows.get(name, lambda: self._measure(variant, num, seed, name))

    def _best(self, variants: Iterable[Variant]) -> Variant:
        """Returns the variant with the smallest distance to the images that choose."""
        return min(variants, key=lambda variant: _distance(self._row(variant, FEW, SEEDS[0])))

    def _measure(self, variant: Variant, num: int, seed: int, name: str) -> dict[str, Any]:
        """Samples and measures."""
        model, samples = self._path(variant.model), self._args.runs / f"{name}.npz"
        report = samples.with_suffix(".evaluation.json")
        generate = (
            *("generate", "--model", model, "--num", num, "--seed", seed, "--cfg", variant.cfg),
            *(*variant.flags, "--out", samples),
        )
        seconds = seconds_to_make(samples, lambda: var_jax(*generate))
        var_jax(
            *("evaluate", "--samples", samples, "--json", report, "--resize", "pad"),
            *("--reference", REPORTED if num == MANY else CHOOSING),
            *("--agreement", "fashion_mnist_idx:train"),
            *(("--features", *self._args.features) if num == MANY else ()),
        )
        return {
            **variant._asdict(),
            "num": num,
            "seed": seed,
            "generation_cpu_seconds": seconds,
            "training_flops": self._training_flops(variant),
            "evaluation": json.loads(report.read_text()),
        }

    def _path(self, model: str) -> Path:
        return self._args.runs / model if model else self._args.base

    def _training_flops(self, variant: Variant) -> float:
        """Returns the FLOPs of the runs that a variant has beyond the base's, from meta.json."""
        total = 0.0
        for run in RUNS.get(variant.way, ()):
            meta, config = (
                json.loads((self._args.runs / run / f"{name}.json").read_text())
                for name in ("meta", "config")
            )
            total += meta["flops_per_step"]["exact"] * config["steps"]
        return total

    def _train(self, run: str, config: str, values: dict[str, Any]):
        """Trains a run unless it is done."""
        values = {"eval_every": values["steps"], "checkpoint_every": 50} | values
        command = ("train", "--config", config, *as_flags(values))
        var_jax(*command, "--workdir", self._args.runs / run)

    def _own(self, cfg: float) -> Path:
        """Returns the token cache of the base's own samples."""
        samples = self._args.runs / "own.npz"
        tokens = self._args.runs / "own_tokens"
        if not (tokens / "manifest.json").exists():
            var_jax(
                *("generate", "--model", self._args.base, "--num", OWN, "--cfg", cfg, "--seed", 7),
                *("--out", samples, "--tokens-out", tokens),
            )
        return tokens

    def _ssg(self, cfg: float) -> list[Variant]:
        return [Variant("ssg", f"{beta:g}", "", ("--ssg", f"{beta:g}"), cfg) for beta in SSG]

    def _neon(self, cfg: float) -> list[Variant]:
        tokens = self._own(cfg)
        base = ("--config", CONFIG, "--model", self._args.base)
        var_jax("tokenize", *base, "--splits", "test", "--out", tokens)
        values = {"steps": OWN_STEPS, "optimizer.base_lr": 1e-3, "optimizer.warmup_steps": 10}
        values |= {"data.tokens_dir": tokens, "init_from": self._args.base}
        self._train("tuned_on_own", CONFIG, values)
        for weight in MERGES:
            self._merge("tuned_on_own", weight, f"neon{weight:g}")
        return [Variant("neon", f"{w:g}", f"neon{w:g}", (), cfg) for w in MERGES]

    def _merge(self, tuned: str, weight: float, out: str):
        if not (self._args.runs / out / "model.json").exists():
            var_jax(
                *("merge", "--base", self._args.base, "--tuned", self._args.runs / tuned),
                *("--weight", weight, "--out", self._args.runs / out),
            )

    def _decoder(self, cfg: float) -> list[Variant]:
        values = {"init_from": self._args.base / "tokenizer", "alignment.tokens": self._own(cfg)}
        config = "configs/fashion_mnist.py:tokenizer1024_aligned"
        self._train("aligned", config, values | {"steps": DECODER_STEPS})
        self._merge("aligned", 1, "decoder")
        return [Variant("decoder", "tuned", "decoder", (), cfg)]

    def _refiner(self, cfg: float) -> list[Variant]:
        values = {"refiner.base": self._args.base, "data.name": "fashion_mnist_idx"}
        values |= {"data.resize": "pad", "data.tokens_dir": self._args.tokens, "batch_size": 32}
        self._train("refiner", "configs/refiner.py", values | {"steps": FURTHER_STEPS})
        flags = ("--refiner", str(self._args.runs / "refiner"))
        return [Variant("refiner", f"cfg{c:g}", "", flags, c) for c in (cfg, cfg / 2)]

    def _guidance(self, cfg: float) -> list[Variant]:
        values = {"adapter.base": self._args.base, "adapter.cfg": cfg, "batch_size": 32}
        values |= {"data.name": "fashion_mnist_idx", "data.resize": "pad"}
        values |= {"data.tokens_dir": self._args.tokens, "steps": FURTHER_STEPS}
        self._train("guided", "configs/adapters.py", values)
        flags = ("--adapter", str(self._args.runs / "guided"))
        return [Variant("guidance", "one_pass", "", flags, 0.0)]

    def _further(self, cfg: float) -> Iterable[list[Variant]]:
        """Yields the variants of each way that trains the base further."""
        ways: dict[str, dict[str, Any]] = {
            "longer": {},
            "weights": {"transformer.scale_weights": scale_weights(SIDES)},
            "flips": {"transformer.flip_share": 0.2},
        }
        for way, changes in ways.items():
            values = {"data.tokens_dir": self._args.tokens, "init_from": self._args.base}
            values |= {"optimizer.base_lr": 2e-3, "optimizer.warmup_steps": 20}
            self._train(way, CONFIG, values | changes | {"steps": FURTHER_STEPS})
            yield [Variant(way, f"cfg{c:g}", way, (), c) for c in (cfg, cfg / 2)]

    def _together(self, base: Variant, better: list[Variant]) -> Variant | None:
        """Returns the combination of ways that helped alone; None if fewer than two combine.

        The refiner goes with no spatial guidance, and an adapter of guidance with neither.
        """
        by_way = {variant.way: variant for variant in better}
        model, flags = "", ()
        used = [way for way in ("neon", "decoder") if way in by_way]
        if used == ["neon", "decoder"]:
            model = "neon_decoder"
            if not (self._args.runs / model / "model.json").exists():
                var_jax(
                    *("merge", "--base", self._args.runs / by_way["neon"].model),
                    *("--tuned", self._args.runs / "aligned", "--weight", 1),
                    *("--out", self._args.runs / model),
                )
        elif used:
            model = by_way[used[0]].model
        # A refiner is of one model, so that it goes with no other.
        if "ssg" in by_way:
            flags, used = by_way["ssg"].flags, [*used, "ssg"]
        if len(used) < 2:
            return None
        return Variant("together", "_".join(used), model, flags, base.cfg)


# Runs whose training a way has beyond the base's
RUNS = {
    "neon": ("tuned_on_own",),
    "refiner": ("refiner",),
    "decoder": ("aligned",),
    "guidance": ("guided",),
    "longer": ("longer",),
    "weights": ("weights",),
    "flips": ("flips",),
    "together": ("tuned_on_own", "aligned"),
}


def scale_weights(sides: Sequence[int]) -> tuple[float, ...]:
    """Returns HMAR's weight of a token of each scale, relative to that of the first scale.

    A scale has exp(-z^2 / 2) over all of its tokens, where z is its place among the standardized
    side lengths in reversed order (arXiv 2506.04421, `lognorm` in its code).
    """
    mean, deviation = statistics.mean(sides), statistics.stdev(sides)
    of_scale = [math.exp(-(((side - mean) / deviation) ** 2) / 2) for side in reversed(sides)]
    of_token = [weight / side**2 for weight, side in zip(of_scale, sides, strict=True)]
    return tuple(round(weight / of_token[0], 4) for weight in of_token)


def _distance(row: dict[str, Any]) -> float:
    return row["evaluation"]["metrics"]["frechet_distance"]["value"]


def _is_below(rows: list[dict[str, Any]], others: list[dict[str, Any]]) -> bool:
    """Returns whether all of the rows' intervals are below all of the others'."""
    highest = max(row["evaluation"]["metrics"]["frechet_distance"]["ci95"][1] for row in rows)
    lowest = min(row["evaluation"]["metrics"]["frechet_distance"]["ci95"][0] for row in others)
    return highest < lowest


def table(out: Path) -> str:
    """Returns the reported rows as a table in Markdown, a line per way and seed."""
    lines = [
        "| way | setting | seed | Fréchet distance | further distances | precision | recall | as "
        "labeled | training FLOPs | generation, processor seconds |",
        "|" + "---|" * 10,
    ]
    rows = [json.loads(path.read_text()) for path in sorted(out.glob(f"*_{MANY}_seed*.json"))]
    for row in rows:
        metrics = row["evaluation"]["metrics"]
        distance, seconds = metrics["frechet_distance"], row["generation_cpu_seconds"]
        further = [
            f"{name} {metric['value']:.0f}"
            for name, metric in metrics.items()
            if name.startswith("fd_") and metric
        ]
        shares = [f"{metrics[name]['value']:.3f}" for name in ("precision", "recall", "agreement")]
        cells = [
            *(row["way"], row["setting"], str(row["seed"])),
            f"{distance['value']:.0f} ({distance['ci95'][0]:.0f} to {distance['ci95'][1]:.0f})",
            *(", ".join(further), *shares, f"{row['training_flops']:.2g}"),
            "not known" if seconds is None else f"{seconds:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def run(args: argparse.Namespace):
    """Makes the rows that are missing, as long as there is time, and prints the table."""
    rows = CommandRows(args.out, 0.0 if args.table else args.hours)
    args.runs.mkdir(parents=True, exist_ok=True)
    try:
        Study(args, rows).run()
    except TimeIsUp as row:
        print(f"next: {row}")
    print(table(args.out))


def main() -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, what in (("--base", "workdir of the transformer"), ("--tokens", "its token cache")):
        parser.add_argument(name, type=Path, required=True, metavar="DIR", help=what)
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/better_samples"), help="default: %(default)s"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("docs/results/better_samples"),
        help="rows (%(default)s)",
    )
    parser.add_argument(
        "--features",
        nargs="+",
        default=["efficientnet", "efficientnet_lite2"],
        metavar="NETWORK[:FILE]",
        help="networks of the reported rows, as for `var-jax evaluate` (default: %(default)s)",
    )
    parser.add_argument(
        "--hours", type=float, default=24.0, help="after which no row is begun (%(default)s)"
    )
    parser.add_argument(
        "--table", action="store_true", help="print the table of the rows that there are, and end"
    )
    return study_command.command(parser, run)


if __name__ == "__main__":
    sys.exit(main())
