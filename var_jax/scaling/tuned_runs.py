"""Runs of one size and token budget that differ in learning rate or batch size.

A sweep over rates has many runs that are worse than their size and tokens allow. They say where the
best rate is (`optima`), and are no points of a law of the loss: only the runs at the best rate and
batch are.
"""

import dataclasses
from collections import defaultdict

import numpy as np
from jaxtyping import Float

from var_jax.scaling.table import INPUTS, SETTINGS, Table

RATE, BATCH = SETTINGS
BUDGET = (*INPUTS, "images", "step")  # inputs of a budget
SAME_TOKENS = 0.05  # token budgets of one size whose logarithms differ by less are one
SAME_SETTING = 1e-6  # rates whose logarithms differ by less are one


@dataclasses.dataclass(frozen=True)
class Setting:
    """The runs of one size, token budget, rate and batch, which differ in their seed.

    Attributes:
      rate, batch: learning rate and images per step, NaN where the table does not have them.
      loss: geometric mean of the runs' last losses, NaN where one diverged.
      runs: their names.
    """

    rate: float
    batch: float
    loss: float
    runs: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Budget:
    """All settings in which one size was trained for one token budget.

    Attributes:
      inputs: params, tokens and compute of the runs, as far as the table has them; images or
        steps where nothing else says how long they were trained.
      settings: in ascending order of rate, then of batch.
    """

    inputs: dict[str, float]
    settings: tuple[Setting, ...]

    @property
    def best(self) -> Setting:
        """The setting of the lowest loss; of diverged ones alone, the first."""
        return min(self.settings, key=lambda s: s.loss if np.isfinite(s.loss) else np.inf)


def budgets(table: Table, column: str) -> list[Budget]:
    """Returns the settings of every size and token budget, by the last row of each run.

    Call it for a table that says its runs' rates or batches (`SETTINGS`); others have no budgets.

    Args:
      column: the loss by which settings are compared.
    """
    names = [name for name in SETTINGS if np.isfinite(table.columns.get(name, np.nan)).any()]
    if not names or "params" not in table.columns:
        return []
    last = table.complete("params", *names).finals()
    amount, values = _amount(last)
    numbers = np.log(np.maximum(values, 1e-300))
    rows_by_budget: dict[tuple[float, int], list[int]] = defaultdict(list)
    for size in np.unique(last["params"]):
        rows = np.flatnonzero(last["params"] == size)
        rows = rows[np.argsort(numbers[rows], kind="stable")]
        rank = np.concatenate([[0], np.cumsum(np.diff(numbers[rows]) > SAME_TOKENS)])
        for row, place in zip(rows, rank, strict=True):
            rows_by_budget[size, int(place)].append(int(row))
    last = dataclasses.replace(last, columns={**last.columns, amount: values})
    inputs = [name for name in BUDGET if name in (*INPUTS, amount)]
    return [_budget(last, rows, column, inputs) for rows in rows_by_budget.values()]


def _amount(last: Table) -> tuple[str, Float[np.ndarray, " n"]]:
    """Returns by what name and number runs were trained for as long as each other."""
    name = last.progress
    if name is None:
        return "step", np.full(len(last), np.nan)
    # Steps of larger batches see more data.
    if name == "step" and BATCH in last.columns:
        return "images", last["step"] * last[BATCH]
    return name, last[name]


def _budget(last: Table, rows: list[int], column: str, names: list[str]) -> Budget:
    inputs = {
        name: float(np.exp(np.mean(np.log(last[name][rows]))))
        for name in names
        if name in last.columns and np.all(last[name][rows] > 0)
    }
    nothing = np.full(len(last), np.nan)
    rate, batch = (last.columns.get(name, nothing) for name in SETTINGS)
    rows_by_setting: dict[tuple[float, float], list[int]] = defaultdict(list)
    for i in rows:
        rows_by_setting[rounded(rate[i]), rounded(batch[i])].append(i)
    settings = [
        Setting(
            float(rate[same[0]]),
            float(batch[same[0]]),
            _mean_loss(last[column][same]),
            tuple(str(run) for run in last.run[same]),
        )
        for _, same in sorted(rows_by_setting.items())
    ]
    return Budget(inputs, tuple(settings))


def rounded(value: float) -> float:
    """The number by which settings are compared: equal for equal ones, and for unknown ones."""
    return 0.0 if np.isnan(value) else round(float(np.log(value)) / SAME_SETTING)


def _mean_loss(losses: Float[np.ndarray, " n"]) -> float:
    return float(np.exp(np.mean(np.log(losses)))) if np.all(losses > 0) else float("nan")


def at_the_best(table: Table) -> Table:
    """Returns the table without runs at other rates and batches than the best of their budget.

    Runs that are left out are listed as dropped, and a note says how many there are. A table in
    which no size was trained for one budget in several settings is returned as it is.
    """
    column = next((name for name in table.fitted if len(table.complete(name))), None)
    if column is None:
        return table
    groups = budgets(table, column)
    varied = [budget for budget in groups if len(budget.settings) > 1]
    if not varied:
        return table
    worse = {
        run: "its learning rate or batch size is not the best of its size and token budget"
        for budget in varied
        for setting in budget.settings
        if setting is not budget.best
        for run in setting.runs
    }
    notes = [
        f"best-setting: {len(worse)} runs at other learning rates or batch sizes than the best of "
        f"their size and token budget are left out of the laws of losses, by {column}; the lowest "
        "of several noisy losses is biased low, and more so the more settings were run"
    ]
    if single := len(groups) - len(varied):
        notes.append(
            f"untuned: {single} of {len(groups)} sizes and token budgets were run at one rate and "
            "batch only, which need not be the best"
        )
    if at_edge := sum(_at_edge(budget) for budget in varied):
        notes.append(
            f"best-at-edge: at {at_edge} of {len(groups)} sizes and token budgets the best rate is "
            "the smallest or largest that was run, so that a better one may lie beyond"
        )
    keep = np.array([str(run) not in worse for run in table.run])
    rest = table.where(keep)
    return dataclasses.replace(
        rest,
        notes=(*table.notes, *notes),
        dropped=(*table.dropped, *worse.items()),
    )


def _at_edge(budget: Budget) -> bool:
    """Returns whether the best rate is at an end of those of its own batch."""
    best = budget.best
    rates = [rounded(s.rate) for s in budget.settings if rounded(s.batch) == rounded(best.batch)]
    return len(set(rates)) > 1 and rounded(best.rate) in (min(rates), max(rates))
