"""Measures how often a wrong form of a law is noticed, and what the better one's predictions hold.

`python -m var_jax.studies.form_choice` plants laws of several forms at eight sizes and five token
budgets, three seeds at the two smallest sizes, with 0.5 % noise. Each of 100 noisy sweeps is fitted
by the joint law and its forms are compared, as `var-jax fit` does. It prints how often the repeated
runs speak against the joint law (`lack-of-fit`), how often the comparison tells it from the form
that predicts best, which form that is, and how often the 95 % interval of a prediction at four
times the largest size and tokens holds the true loss: by the joint law, and by the form that `fit`
goes by, which is the better one where there is one and the joint law elsewhere; and how often
repeated runs speak against that form too, so that its prediction is warned of.
"""

import argparse
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from var_jax.errors import Parser
from var_jax.scaling import (
    analysis,
    compare_forms,
    form_prediction,
    forms,
    lack_of_fit,
    prediction,
    select_runs,
    solver,
    table,
)
from var_jax.scaling.solver import Array
from var_jax.studies import planted_rows, study_command
from var_jax.studies.planted_laws import INTERACTION, LARGE_INTERACTION

# The runs of docs/results/scaling.md's longer sweep.
SIZES, TOKENS = np.geomspace(1.3e4, 1.4e6, 8), np.geomspace(5e5, 8e6, 5)
REPEATED, SEEDS = 2, 3
RUN_NOISE = 0.005
BEYOND = 4.0  # times the largest size, and the most tokens
JOINT = (2.25, float(np.log(77)), 0.394, float(np.log(100)), 0.31)
CENTER = np.log([np.exp(np.log(SIZES).mean()), np.exp(np.log(TOKENS).mean())])
# Of centered inputs, as fitted to that sweep's L_avg.
SIZE_EXPONENT = (1.6, -0.06, 0.39, 0.58, float(np.log(0.17)))
GRID = np.stack([axis.ravel() for axis in np.meshgrid(SIZES, TOKENS)], axis=1)


def runs() -> Float[Array, "n 2"]:
    """Returns params and tokens of the runs."""
    repeated = GRID[np.isclose(GRID[:, :1], SIZES[:REPEATED]).any(axis=1)]
    return np.concatenate([GRID, *[repeated] * (SEEDS - 1)])


def joint(x: Float[Array, "n 2"]) -> Float[Array, " n"]:
    """Returns log losses of the joint law."""
    return np.log(solver.predict(np.array([JOINT]), np.log(x))[0])


def interaction(size: float) -> Callable[[Array], Array]:
    """Returns the joint law with a product of both logarithms, of this size at the corners."""

    def log_loss(x):
        logs = np.log(GRID)
        middle, reach = (logs.max(axis=0) + logs.min(axis=0)) / 2, np.ptp(logs, axis=0)
        return joint(x) + size * (2 * (np.log(x) - middle) / reach).prod(axis=1)

    return log_loss


def size_exponent(kappa: float) -> Callable[[Array], Array]:
    """Returns the reduced law of Farseer, whose exponent of data grows with size by kappa."""
    theta = np.array([(*SIZE_EXPONENT, kappa)])
    return lambda x: forms.SIZE_EXPONENT.log_loss(theta, np.log(x) - CENTER, CENTER)[0]


class Case(NamedTuple):
    """A planted law.

    Attributes:
      log_loss: log losses of params and tokens.
    """

    name: str
    log_loss: Callable[[Array], Array]


CASES = (
    Case("joint law", joint),
    Case(f"joint law and an interaction of {INTERACTION:.1%}", interaction(INTERACTION)),
    Case(
        f"joint law and an interaction of {LARGE_INTERACTION:.0%}", interaction(LARGE_INTERACTION)
    ),
    Case("size_exponent, kappa 0.05", size_exponent(0.05)),
    Case("size_exponent, kappa 0.2", size_exponent(0.2)),
)


def examined(case: Case, seed: int) -> dict:
    """Returns what the fit of one noisy sweep says."""
    x = runs()
    logy = case.log_loss(x) + RUN_NOISE * np.random.default_rng(seed).normal(size=len(x))
    records = [
        {"run": f"r{i}", "params": size, "tokens": tokens, "loss": loss}
        for i, ((size, tokens), loss) in enumerate(zip(x, np.exp(logy), strict=True))
    ]
    key = "loss~params+tokens"
    sample = select_runs.sample(table.build(records), "loss", ("params", "tokens"))
    law = analysis.analyze(key, sample, resamples=0)
    compared = compare_forms.compare(law)
    law.summary.update(compared.entry)
    at = {"params": BEYOND * SIZES[-1], "tokens": BEYOND * TOKENS[-1]}
    truth = float(np.exp(case.log_loss(np.array([list(at.values())]))[0]))
    better = {} if compared.better is None else {key: compared.better}
    entries = [
        *prediction.predict({key: law}, None, at),
        *form_prediction.predict({key: law}, better, None, at),
    ]
    ends = [entry["loss"]["ci95"] for entry in entries]
    holds = [low <= truth <= high for low, high in ends]
    return {
        "misfit": lack_of_fit.is_misfit(law.summary),
        "told": compared.better is not None,
        "warned": any("lack-of-fit" in note for note in entries[-1]["warnings"])
        or (not better and lack_of_fit.is_misfit(law.summary)),
        "best": compared.entry["best_form"]["name"],
        "law_holds": holds[0],
        "fit_holds": holds[-1],
    }


def measure(case: Case, sweeps: int, seed: int) -> dict:
    """Returns the shares of a planted law's sweeps."""
    rows = [examined(case, seed * 100_000 + sweep) for sweep in range(sweeps)]
    shares = {
        name: float(np.mean([row[name] for row in rows]))
        for name in ("misfit", "told", "warned", "law_holds", "fit_holds")
    }
    best = dict(Counter(row["best"] for row in rows))
    return {**shares, "best": best}


def _line(row: dict) -> str:
    best = ", ".join(f"{name} {count}" for name, count in sorted(row["best"].items()))
    cells = [f"{row[name]:.0%}" for name in ("misfit", "told")]
    held = [f"{row[name]:.0%}" for name in ("law_holds", "fit_holds", "warned")]
    return f"| {row['law']} | {row['sweeps']} | {' | '.join([*cells, best, *held])} |"


def main(argv=None) -> int:
    """Prints the table."""
    parser = Parser(prog="python -m var_jax.studies.form_choice", description=__doc__)
    planted_rows.add_arguments(parser, sweeps=100, seed=1)
    return study_command.command(parser, _run, argv)


def _run(args: argparse.Namespace):
    print(
        "| planted law | sweeps | lack-of-fit | told from the joint law | predicts best | "
        "joint law's prediction holds | fit's prediction holds | warned of misfit |\n"
        "|---|---|---|---|---|---|---|---|",
        flush=True,
    )
    by_name = {case.name: case for case in CASES}
    for row in planted_rows.measured(
        args,
        ((name, {"law": name}) for name in by_name),
        lambda asked: measure(by_name[asked["law"]], asked["sweeps"], asked["seed"]),
    ):
        print(_line(row), flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
