"""Compares next-scale prediction with its rivals on Fashion-MNIST at equal training compute.

  python launch/rivals_study.py --runs runs/rivals_study --hours 2
  var-jax compare docs/results/rivals/study/rows.csv --out docs/results/rivals/study

Tokenizers are of one family, with 64 finest tokens. All of them, and all models, are trained on the
first 55,000 training images. The other 5,000 choose: each objective gets its own learning rate, by
the held-out loss at a third of the compute, where the grid grows until its best value is inside;
then its own sampler, by the Fréchet distance of 2,000 samples of that run; and next-token
prediction its order, with all of the compute. What is reported is of the 10,000 test images, by
10,000 samples: every objective and order with all of the compute, the chosen ones under three
seeds, and three smaller sizes for a law. A row is written to OUT/ROW.json when it is done and is
not made again, on whatever machine; a run that a kill ended goes on from its checkpoint. After
--hours no further row is begun. `--table` writes OUT/rows.csv from the rows that there are.
Objectives share nothing but tokenizers, so --objectives divides the study among machines.

How long the whole study takes was not measured; by its FLOPs it is some ten hours of one core.
"""

import argparse
import csv
import json
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

from etils import epath

from var_jax.cli.args import read_config
from var_jax.errors import Parser
from var_jax.io import model_directory, run_records
from var_jax.models import flops
from var_jax.sampling import sampler_registry
from var_jax.studies import study_command
from var_jax.studies.command_rows import (
    CommandRows,
    TimeIsUp,
    as_flags,
    seconds_to_make,
    var_jax,
)

FLOPS = 3e13  # exact training FLOPs of a run
SHARE = 1 / 3  # of them in the runs that choose rates and samplers
SEEDS = (0, 1, 2)
FEW, MANY = 2_000, 10_000  # samples: those that choose, and those that are reported
CHOOSING, REPORTED = "fashion_mnist_idx:train[55000:]", "fashion_mnist_idx:test"
SPLITS = {"data.train_split": "train[:55000]", "data.eval_split": "train[55000:]"}
WARMUP = 1 / 15  # share of a run's steps
FACTORS = (0.5, 1.0, 2.0)  # on the rate of configs/rivals.py, before the grid grows
ARGS = {  # arguments of configs/rivals.py by objective
    "next_scale": ("next_scale",),
    "next_token": ("next_token", "next_token_zcurve", "next_token_spiral"),
    "masked": ("masked",),
    "diffusion": ("diffusion",),
}
# Settings of sampling; at most 50 passes of diffusion, those of guidance included.
SAMPLERS: dict[str, dict[str, dict[str, Any]]] = {
    "next_scale": {f"cfg{t:g}": {"cfg": t} for t in (0.0, 0.75, 1.5, 3.0)},
    "next_token": {f"cfg{t:g}": {"cfg": t} for t in (0.0, 0.5, 1.0, 2.0)},
    "masked": {
        f"steps{n}_cfg{t:g}": {"steps": n, "cfg": t}
        for n, t in ((8, 0.0), (8, 1.0), (16, 0.0), (16, 1.0), (16, 2.0), (32, 1.0))
    }
    | {  # by default the noise is 4.5
        f"steps16_cfg1_noise{x:g}": {"steps": 16, "cfg": 1.0, "noise": x} for x in (9.0, 18.0)
    },
    "diffusion": {
        "heun25_cfg0": {"solver": "heun", "steps": 25, "cfg": 0.0},
        "heun13_cfg0.5": {"solver": "heun", "steps": 13, "cfg": 0.5},
        "heun13_cfg1": {"solver": "heun", "steps": 13, "cfg": 1.0},
        "euler25_cfg0.5": {"solver": "euler", "steps": 25, "cfg": 0.5},
    },
}
TOKENIZERS = {"maps": "1,2,3,4,5,6,8", "map": "8"}  # {name: scales}, of one recipe
OF_ONE_MAP = ("next_token", "masked")  # objectives; the others have `maps`
CODES = 1024  # of tokenizer1024_full
PASSES = (2, 4, 8, 16, 25)  # steps of Euler: the curve of diffusion over its passes
COSTS = ("train_flops", "images_seen", "generation_flops", "passes", "params")  # of a row
SMALLER = {1: (1, 64, 1e12), 2: (1, 128, 3e12), 3: (2, 128, 1e13)}  # {size: (depth, width, FLOPs)}


class Row(NamedTuple):
    """What distinguishes a row.

    Attributes:
      arg: the argument of configs/rivals.py.
      factor: on that config's learning rate.
      size: 0 for the config's own size and `FLOPS`, else a key of `SMALLER`.
      share: share of the size's FLOPs.
      seed: seed of training.
      sampler: its key in `SAMPLERS`, or "euler" with a number of steps; "" for no samples.
      num: number of samples, `FEW` or `MANY`.
    """

    arg: str
    factor: float
    size: int = 0
    share: float = 1.0
    seed: int = 0
    sampler: str = ""
    num: int = 0

    @property
    def objective(self) -> str:
        return next(name for name, args in ARGS.items() if self.arg in args)

    @property
    def run(self) -> str:
        """The name of the row's training run."""
        share = "" if self.share == 1 else "_third"
        return f"{self.arg}_size{self.size}_rate{self.factor:g}_seed{self.seed}{share}"

    @property
    def name(self) -> str:
        return f"{self.run}_{self.sampler}_{self.num}" if self.sampler else self.run

    @property
    def tokenizer(self) -> str:
        """The key of its tokenizer in `TOKENIZERS`."""
        return "map" if self.objective in OF_ONE_MAP else "maps"

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of sampling."""
        known = SAMPLERS[self.objective].get(self.sampler)
        steps = self.sampler.removeprefix("euler")
        return known or {"solver": "euler", "steps": int(steps), "cfg": 0.0}


def study(get: Callable[[Row], dict[str, Any]], objectives: Collection[str] = tuple(ARGS)):
    """Asks for every row of the study, in an order that depends on the rows before.

    Args:
      get: returns a row, and makes it unless it is there.
      objectives: those whose rows are asked for.
    """
    chosen_args = {objective: ARGS[objective] for objective in objectives}

    def distance(row: Row) -> float:
        evaluation = get(row).get("evaluation")
        return evaluation["metrics"]["frechet_distance"]["value"] if evaluation else float("inf")

    factors = {objective: best_factor(get, args[0]) for objective, args in chosen_args.items()}
    samplers = {}
    for objective, args in chosen_args.items():
        tuned = Row(args[0], factors[objective], share=SHARE, num=FEW)
        samplers[objective] = min(
            SAMPLERS[objective], key=lambda name, row=tuned: distance(row._replace(sampler=name))
        )
    best = {}
    for objective, args in chosen_args.items():
        rows = [Row(arg, factors[objective], sampler=samplers[objective], num=FEW) for arg in args]
        chosen = min(rows, key=distance) if len(rows) > 1 else rows[0]
        best[objective] = chosen._replace(num=MANY)
        for row in rows:
            get(row._replace(num=MANY))
    for seed in SEEDS:
        for row in best.values():
            get(row._replace(seed=seed))
    for size in SMALLER:
        for row in best.values():
            get(row._replace(size=size))
    for steps in PASSES if "diffusion" in best else ():
        get(best["diffusion"]._replace(sampler=f"euler{steps}", num=FEW))


def best_factor(get: Callable[[Row], dict[str, Any]], arg: str) -> float:
    """Returns the factor on the rate with the smallest held-out loss, inside of its grid."""

    def loss(factor: float) -> float:
        value = get(Row(arg, factor, share=SHARE))["held_out_loss"]
        return float("inf") if value is None else value

    losses = {factor: loss(factor) for factor in FACTORS}
    while (best := min(losses, key=lambda factor: losses[factor])) in (min(losses), max(losses)):
        further = best / 2 if best == min(losses) else best * 2
        losses[further] = loss(further)
    return best


def options(row: Row, runs: Path) -> list[str]:
    """Returns the flags of a row's training: as many steps as its FLOPs allow."""
    depth, width, budget = SMALLER.get(row.size, (3, 192, FLOPS))
    values: dict[str, Any] = SPLITS | {
        "tokenizer_dir": runs / row.tokenizer,
        "seed": row.seed,
        "transformer.depth": depth,
        "transformer.width": width,
        "transformer.heads": width // 64,
    }
    if row.objective != "diffusion":  # which learns features, and not tokens
        values["data.tokens_dir"] = runs / f"tokens_{row.tokenizer}"
    sizes = {"tokenizer.scales": TOKENIZERS[row.tokenizer], "tokenizer.vocab_size": CODES}
    config = read_config(f"configs/rivals.py:{row.arg}", as_flags(sizes | values))
    assert config.transformer is not None
    per_step = flops.train_flops_per_image(config.transformer) * config.batch_size
    steps = round(row.share * budget / per_step)
    values |= {
        "steps": steps,
        "eval_every": steps,
        "eval_images": 5000,
        # It falls as 1 / width, as muP has it for hidden matrices under Adam.
        "optimizer.base_lr": config.optimizer.base_lr * row.factor * 192 / width,
        "optimizer.warmup_steps": round(WARMUP * steps),
    }
    return as_flags(values)


def write_tokenizer(runs: Path, name: str):
    """Trains a tokenizer of `TOKENIZERS`, and writes the tokens of all images, unless it did."""
    tokens = runs / f"tokens_{name}"
    if (tokens / "manifest.json").exists():
        return
    config = "configs/fashion_mnist.py:tokenizer1024_full"
    flags = as_flags(SPLITS | {"tokenizer.scales": TOKENIZERS[name]})
    var_jax("train", "--config", config, *flags, "--workdir", runs / name)
    data = ("--config", "configs/fashion_mnist.py", *as_flags(SPLITS))
    var_jax("tokenize", *data, "--model", runs / name, "--out", tokens)


def make(row: Row, runs: Path) -> dict[str, Any]:
    """Trains, samples and measures a row; one whose training diverged has no held-out loss."""
    workdir = runs / row.run
    config_file = f"configs/rivals.py:{row.arg}"
    train = ("train", "--config", config_file, *options(row, runs), "--workdir", workdir)
    trained = var_jax(*train, may_fail=True)
    status, config, meta = (
        json.loads((workdir / f"{name}.json").read_text()) for name in ("status", "config", "meta")
    )
    if not trained and "diverged" not in status:
        sys.exit(f"rivals_study.py: {' '.join(map(str, train))} did not end well")
    held_out = run_records.last_held_out(epath.Path(workdir))
    result = {
        **row._asdict(),
        "objective": row.objective,
        "train_flops": meta["flops_per_step"]["exact"] * config["steps"],
        "images_seen": config["batch_size"] * config["steps"],
        "params": meta["params"]["total"],
        "steps": config["steps"],
        "base_lr": config["optimizer"]["base_lr"],
        "held_out_loss": held_out["loss"] if trained and held_out else None,
    }
    if not row.sampler or not trained:
        return result
    samples, report = runs / f"{row.name}.npz", runs / f"{row.name}.evaluation.json"
    chosen = [text for name, value in row.settings.items() for text in (f"--{name}", value)]
    generate = ("generate", "--model", workdir, "--num", row.num, *chosen, "--out", samples)
    seconds = seconds_to_make(samples, lambda: var_jax(*generate))
    result["seconds_per_image"] = None if seconds is None else seconds / row.num
    var_jax(
        *("evaluate", "--samples", samples, "--json", report, "--resize", "pad"),
        *("--reference", REPORTED if row.num == MANY else CHOOSING),
        *("--agreement", "fashion_mnist_idx:train"),
    )
    return result | costs(row, workdir) | {"evaluation": json.loads(report.read_text())}


def costs(row: Row, workdir: Path) -> dict[str, float]:
    """Returns FLOPs and passes of generation with the row's settings, without the decoder."""
    model = model_directory.load_config(epath.Path(workdir))
    assert model.transformer is not None
    sampler = sampler_registry.find(model)
    prepared = sampler.prepare(model, sampler.settings("fid", row.settings, row.objective))
    return {
        "generation_flops": sampler.generation_flops(model, prepared),
        "passes": sampler.sequential_passes(model, prepared),
    }


def write_table(out: Path) -> Path:
    """Writes the rows with `MANY` samples as a table that `var-jax compare` reads."""
    rows = []
    for path in sorted(out.glob("*_size*.json")):
        row = json.loads(path.read_text())
        if "evaluation" not in row or row["share"] != 1 or row["num"] != MANY:
            continue
        metrics = row["evaluation"]["metrics"]
        distance = metrics["frechet_distance"]
        order = row["arg"].removeprefix("next_token_")
        record = {
            "objective": row["objective"] if order == row["arg"] else row["arg"],
            "run": f"{row['arg']}_size{row['size']}_{row['sampler']}",
            "seed": row["seed"],
            "frechet_distance": distance["value"],
            "frechet_distance_low": distance["ci95"][0],
            "frechet_distance_high": distance["ci95"][1],
        }
        for name in ("precision", "recall", "agreement"):
            record[name] = metrics[name]["value"]
        for name in ("held_out_loss", *COSTS):
            record[name] = row[name]
        record["seconds_per_image"] = row["seconds_per_image"]
        rows.append(record)
    table = out / "rows.csv"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else ["objective", "run"])
        writer.writeheader()
        writer.writerows(rows)
    return table


def run(args: argparse.Namespace):
    """Makes the rows that are missing, as long as there is time, and writes the table."""
    rows = CommandRows(args.out, 0.0 if args.table else args.hours)

    def made(row: Row) -> dict[str, Any]:
        write_tokenizer(args.runs, row.tokenizer)
        return make(row, args.runs)

    try:
        study(lambda row: rows.get(row.name, lambda: made(row)), args.objectives)
    except TimeIsUp as row:
        print(f"next: {row}")
    print(f"written {write_table(args.out)}")


def main() -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/rivals_study"), help="default: %(default)s"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("docs/results/rivals/study"), help="rows (%(default)s)"
    )
    parser.add_argument(
        "--hours", type=float, default=24.0, help="after which no row is begun (%(default)s)"
    )
    parser.add_argument(
        "--objectives", nargs="+", choices=tuple(ARGS), default=tuple(ARGS), help="(default: all)"
    )
    parser.add_argument(
        "--table", action="store_true", help="write the table of the rows that there are, and end"
    )
    return study_command.command(parser, run)


if __name__ == "__main__":
    sys.exit(main())
