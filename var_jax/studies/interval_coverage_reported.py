"""How often the reported intervals contain the truth, and how wide they are, on dirty sweeps too.

`interval_coverage --reported` prints its table, one row per planted law.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float
from scipy import stats

from var_jax.scaling import estimate, laws, losses, profile_intervals, solver
from var_jax.scaling.solver import Array
from var_jax.studies import batched_coverage
from var_jax.studies.planted_laws import Planted

HEAD = (
    "| planted law | sweeps | Student's t | grows for small runs | shared by sizes | "
    "truth inside the 95 % interval | median width over the best possible | verdicts that differ |"
    "\n|---|---|---|---|---|---|---|---|"
)


def study(
    cases: Sequence[tuple[Planted, tuple[int, ...]]],
    *,
    sweeps: int,
    computed: int,
    rows: epath.Path | None = None,
):
    """Prints the table of planted laws, a row as soon as it is measured.

    Args:
      cases: the laws, each with the seed of its noise.
      sweeps: number of synthetic sweeps of each law.
      computed: number of them, from the first, whose intervals are computed and compared.
      rows: JSONL file with the rows of an earlier call, to which those that it lacks are added.
    """
    print(HEAD)
    known: list[dict[str, Any]] = []
    if rows is not None and rows.exists():
        known = [json.loads(line) for line in rows.read_text().splitlines()]
    for planted, seed in cases:
        asked = {"law": planted.name, "sweeps": sweeps, "computed": computed, "seed": list(seed)}
        row = next((row for row in known if asked.items() <= row.items()), None)
        if row is None:
            row = {**asked, **measure(planted, sweeps, computed, seed)}
            if rows is not None:
                with rows.open("a") as file:
                    file.write(json.dumps(row) + "\n")
        print(_line(row), flush=True)


def merge(files: Sequence[epath.Path]):
    """Prints the table of several files' rows together: their sweeps are of different seeds.

    Widths are those of the first file that has them.
    """
    parts: dict[str, list[dict[str, Any]]] = {}
    for file in files:
        for line in file.read_text().splitlines():
            row = json.loads(line)
            parts.setdefault(row["law"], []).append(row)
    print(HEAD)
    for law, rows in parts.items():
        sweeps = [row["sweeps"] for row in rows]
        computed = next((row for row in rows if row["computed"]), rows[0])
        shares = {
            name: float(np.average([row[name] for row in rows], weights=sweeps))
            for name in ("student", "growth", "shared")
        }
        inside = {
            name: float(np.average([row["inside"][name] for row in rows], weights=sweeps))
            for name in rows[0]["inside"]
        }
        print(_line({**computed, **shares, "law": law, "sweeps": sum(sweeps), "inside": inside}))


def measure(
    planted: Planted, sweeps: int, computed: int, seed: Sequence[int]
) -> dict[str, float | dict[str, float]]:
    """Returns the shares of a planted law's sweeps with each noise, and of intervals that hold.

    Widths are over those of the best possible unbiased estimator: 1.96 standard errors on either
    side by the Cramér-Rao bound of a likelihood that knows the noise of each run.

    Args:
      sweeps: number of synthetic sweeps; whether their intervals contain the truth is tested.
      computed: number of sweeps, from the first, whose intervals are computed and compared.
      seed: seed of the noise.

    Raises:
      RuntimeError: a value lies outside its own interval.
    """
    theta = np.array(planted.theta)
    truth = laws.with_amplitudes(theta)
    synthetic = [
        planted.draw_with_information(np.random.default_rng([*seed, sweep]))
        for sweep in range(sweeps)
    ]
    results = batched_coverage.verdicts([sweep.problem for sweep in synthetic], theta)
    differing, ratios = 0, []
    for sweep, (p, information) in enumerate(synthetic[:computed]):
        fit = estimate.fit(p)
        ends = profile_intervals.profile(profile_intervals.likelihood(p, fit))
        values = laws.with_amplitudes(fit.theta)
        if not np.all((ends[:, 0] <= values) & (values <= ends[:, 1])):
            raise RuntimeError(f"{planted.name}, sweep {sweep}: a value outside its interval")
        contains = (ends[:, 0] <= truth) & (truth <= ends[:, 1])
        differing += int(np.sum(contains != results.inside[sweep]))
        jacobian = solver.log_jacobian(theta[None], p.logx)[0]
        variance = np.diag(np.linalg.inv(jacobian.T @ information @ jacobian))
        best = 2 * stats.norm.ppf((1 + profile_intervals.CONFIDENCE_LEVEL) / 2) * np.sqrt(variance)
        ratios.append(widths(ends[None]) / best)
    names = laws.PARAMETER_NAMES[len(truth) // 2]
    row: dict[str, float | dict[str, float]] = {
        "student": float(np.mean(np.isfinite(results.degrees))),
        "growth": float(np.mean(results.growth != 0)),
        "shared": float(np.mean(results.share != 0)),
        "inside": dict(zip(names, results.inside.mean(axis=0).tolist(), strict=True)),
    }
    if computed:
        typical = np.median(ratios, axis=0).tolist()
        row |= {"widths": dict(zip(names, typical, strict=True)), "differing": differing}
    return row


def widths(rows: Float[Array, "s p 2"]) -> Float[Array, " p"]:
    """Returns the median widths of the intervals of [E, log A, alpha, ...]."""
    ends = np.array(rows)
    ends[:, 1::2] = np.log(np.maximum(ends[:, 1::2], losses.TINY))
    return np.median(ends[..., 1] - ends[..., 0], axis=0)


def _line(row: dict[str, Any]) -> str:
    """Returns the table's line of a measured row."""
    cells = [f"{row[name]:.0%}" for name in ("student", "growth", "shared")]
    cells.append(", ".join(f"{name} {share:.1%}" for name, share in row["inside"].items()))
    if row["computed"]:
        cells.append(", ".join(f"{name} {ratio:.2f}" for name, ratio in row["widths"].items()))
        cells.append(f"{row['differing']} of {row['computed'] * len(row['inside'])}")
    else:
        cells += ["–", "–"]
    return f"| {row['law']} | {row['sweeps']} | {' | '.join(cells)} |"
