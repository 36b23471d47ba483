"""Measures what chosen next runs gain over equally spaced ones of the same cost, by simulation.

`python -m var_jax.studies.next_runs_gain` plants a law at 30 runs with 0.5 % noise. In each of 200
noisy sweeps `next_runs` chooses up to 12 more runs for a prediction at ten times the compute, from
what this sweep shows alone; the law is fitted again with the chosen runs, with equally spaced
ones, and with none. It prints the median width of the prediction's 95 % interval over that without
new runs, and how often the interval holds the true loss. The runs are fitted, and their noise is
chosen, as `var-jax fit` does.
"""

import argparse
import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from var_jax.errors import Parser
from var_jax.scaling import (
    analysis,
    estimate,
    form_fit,
    form_prediction,
    forms,
    losses,
    next_runs,
    profile_intervals,
    select_runs,
    solver,
    table,
    whitening,
)
from var_jax.scaling.solver import Array
from var_jax.studies import planted_rows, study_command
from var_jax.studies.planted_laws import COST, Noise, correlated, heteroscedastic, normal

LAW = (1.82, float(np.log(478)), 0.347, float(np.log(2143)), 0.367)
# By `forms.SIZE_EXPONENT`, of inputs centered at the runs; about as the sweep of
# docs/results/scaling.md.
BENT = (1.6, -0.22, 0.39, 0.58, float(np.log(0.17)), 0.2)
SIZES, TOKENS = np.geomspace(3e7, 3e9, 6), np.geomspace(6e8, 6e10, 5)
NOISE = 0.005
BUDGET = 1e21  # FLOPs of all new runs
SPACED = (3, 6, 12)  # numbers of equally spaced runs
# Two between each two sizes, of which configs exist too.
NEW_SIZES = np.delete(np.geomspace(3e7, 3e9, 16), slice(None, None, 3)).tolist()
KEPT = np.stack([axis.ravel() for axis in np.meshgrid(SIZES, TOKENS)], axis=1)


class Case(NamedTuple):
    """A planted law and noise.

    Attributes:
      form: the form that the losses have, and by which they are fitted and predicted, or None for
        the joint law.
    """

    name: str
    kind: Callable[[Array, float, np.random.Generator], Noise]
    form: forms.Form | None = None

    def log_loss(self, x: Float[Array, "n 2"]) -> Float[Array, " n"]:
        """Returns the log losses without noise."""
        if self.form is None:
            return np.log(solver.predict(np.array([LAW]), np.log(x))[0])
        center = np.log(KEPT).mean(axis=0)
        return self.form.log_loss(np.array([BENT]), np.log(x) - center, center)[0]


CASES = (
    Case("joint law, independent noise", normal),
    Case("joint law, half of the variance shared by runs of one size", correlated),
    Case("joint law, noise that falls 4 times with size", heteroscedastic),
    Case("exponent of data that depends on size", normal, forms.SIZE_EXPONENT),
)


class Prediction(NamedTuple):
    """A prediction's interval, in log loss.

    Attributes:
      holds: whether it contains the true loss.
    """

    width: float
    holds: bool


def fitted(x: Float[Array, "n 2"], logy: Float[Array, " n"]) -> analysis.Law:
    """Returns the joint law of runs, without what does not matter for plans and predictions."""
    records = [
        {"run": f"r{i}", "params": size, "tokens": tokens, "loss": loss}
        for i, ((size, tokens), loss) in enumerate(zip(x, np.exp(logy), strict=True))
    ]
    sample = select_runs.sample(table.build(records), "loss", ("params", "tokens"))
    fit = estimate.fit(analysis.problem(sample, losses.StudentT()), check=False)
    likelihood = profile_intervals.likelihood(analysis.problem(sample, fit.loss), fit)
    return analysis.Law("loss~params+tokens", sample, fit, fit, likelihood, None, None, {})


def fitted_form(law: analysis.Law, form: forms.Form | None) -> form_fit.FittedForm | None:
    """Returns the form that is fitted to the law's runs, or None for none."""
    if form is None:
        return None
    noise = law.likelihood.noise, law.likelihood.noise_freedom
    rows = np.ones(len(law.sample.y), bool)
    points = form_fit.points(law.sample, rows, law.fit, *noise, None)
    return form_fit.fit_by_own_noise(form, points, law.sample.weights.astype(float))


def predicted(case: Case, law: analysis.Law, target: Float[Array, "2"]) -> Prediction:
    """Returns the interval of the loss at the target, by the law or by the case's form."""
    form = fitted_form(law, case.form)
    if form is None:
        profile = profile_intervals.profile_prediction(law.likelihood, target)
        low, high = np.log(profile.interval)
    else:
        low, high = np.log(form_prediction.predicted_loss(form, target)["ci95"])
    return Prediction(float(high - low), bool(low <= case.log_loss(target[None])[0] <= high))


def target_of(case: Case) -> Float[Array, "2"]:
    """Returns params and tokens of the lowest true loss ahead of the largest compute."""
    compute = next_runs.AHEAD * 6 * SIZES.max() * TOKENS.max()
    params = np.geomspace(SIZES.min(), 100 * SIZES.max(), 2001)
    x = np.stack([params, compute / 6 / params], axis=1)
    return x[int(np.argmin(case.log_loss(x)))]


def spaced(count: int) -> Float[Array, "k 2"]:
    """Returns runs of equal cost and evenly spaced sizes, which take all of the budget."""
    sizes = np.geomspace(SIZES.min(), SIZES.max(), count)
    return np.stack([sizes, BUDGET / count / 6 / sizes], axis=1)


def _of_shared_noise() -> analysis.Law:
    """Returns a law of these runs for which all sizes that may be proposed are possible."""
    law = fitted(KEPT, CASES[0].log_loss(KEPT))
    maps = whitening.independent(np.log(KEPT), np.ones(len(KEPT)))
    maps = dataclasses.replace(maps, share=np.array(0.5))
    return dataclasses.replace(law, fit=dataclasses.replace(law.fit, whitening=maps))


def simulate(case: Case, seed: int) -> dict[str, Prediction]:
    """Returns the predictions of one noisy sweep without new runs, with chosen and with spaced."""
    target = target_of(case)
    # Noise of all runs that may be made is drawn at once, as runs of one size share some.
    possible = [KEPT, *map(spaced, SPACED)]
    possible.append(next_runs.settings(_of_shared_noise(), new_sizes=NEW_SIZES))
    x = np.concatenate(possible)
    logy = case.log_loss(x) + case.kind(np.log(x), NOISE, np.random.default_rng(seed)).errors
    base = np.arange(len(KEPT))
    law = fitted(x[base], logy[base])
    runs = next_runs.next_runs(law, COST, BUDGET, target, fitted_form(law, case.form), NEW_SIZES)
    off = np.abs(np.log(x[None] / runs.x[:, None])).max(axis=-1)
    assert off.min(axis=1).max() < 1e-6, "a proposed run is not among those that were drawn"
    designs = {"none": base[:0], "chosen": off.argmin(axis=1)}
    start = len(base)
    for count in SPACED:
        designs[f"{count} spaced"] = np.arange(start, start + count)
        start += count
    out = {}
    for name, rows in designs.items():
        taken = np.concatenate([base, rows])
        out[name] = predicted(case, fitted(x[taken], logy[taken]), target)
    return out


def measure(case: Case, sweeps: int, seed: int) -> dict:
    """Returns the median widths over that without new runs, and the shares that hold, by design."""
    results = [simulate(case, seed * 100_000 + sweep) for sweep in range(sweeps)]
    row: dict = {}
    for name in results[0]:
        ratio = np.median([result[name].width / result["none"].width for result in results])
        row[name] = {
            "width": float(ratio),
            "held": float(np.mean([result[name].holds for result in results])),
        }
    return row


def main(argv=None) -> int:
    """Prints the table."""
    parser = Parser(prog="python -m var_jax.studies.next_runs_gain", description=__doc__)
    planted_rows.add_arguments(parser, sweeps=200, seed=1)
    return study_command.command(parser, _run, argv)


def _run(args: argparse.Namespace):
    names = ("chosen", *(f"{count} spaced" for count in SPACED), "none")
    print(f"| planted law | {' | '.join(names)} |\n|---|{'---|' * len(names)}", flush=True)
    by_name = {case.name: case for case in CASES}
    for row in planted_rows.measured(
        args,
        ((name, {"case": name}) for name in by_name),
        lambda asked: measure(by_name[asked["case"]], asked["sweeps"], asked["seed"]),
    ):
        cells = [f"{row[name]['width']:.2f} (held {row[name]['held']:.1%})" for name in names]
        print(f"| {row['case']} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
