"""Which runs a law is fitted to, and when it is refused."""

import dataclasses

import numpy as np
from jaxtyping import Float

from var_jax.scaling import frontier
from var_jax.scaling.solver import Array
from var_jax.scaling.table import Table

MIN_SIZES = 4
MIN_DECADES = 1.5
MIN_BUDGETS = 3  # of tokens, in the joint law


class Refused(Exception):
    """There is no law to be had of these runs; the message is "name: text"."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """Points of a law.

    Attributes:
      inputs: columns of x.
      run: the run of each point.
      group: what is left out together in a hold-out: the size, or the curve.
      weights: they sum to the number of independent runs.
      notes: warnings already known, as "name: text".
      text: how the points were chosen.
      curves: what the points are the lower envelope of, if they are.
    """

    inputs: tuple[str, ...]
    x: Float[Array, "n j"]
    y: Float[Array, " n"]
    run: Array
    group: Array
    weights: Float[Array, " n"]
    notes: tuple[str, ...]
    text: str
    curves: tuple[frontier.Curve, ...] = ()

    @property
    def runs(self) -> int:
        return len(np.unique(self.run.astype(str)))

    def where(self, rows) -> "Sample":
        parts = {name: getattr(self, name)[rows] for name in ("x", "y", "run", "group", "weights")}
        return dataclasses.replace(self, **parts)


def sample(table: Table, column: str, inputs: tuple[str, ...]) -> Sample:
    """The points of the law of `column` against `inputs`: ("params",), ("compute",) or ("params",
    "tokens").

    Against params: the last row of each run, at every size those with the most tokens. Against
    compute: the compute-optimal frontier where sizes or training curves overlap in compute, else
    every run's last row. Jointly: every run's last row.

    Raises:
      Refused: too few runs or sizes, or losses that do not fall.
    """
    whole = table.complete(*inputs, column)
    chosen, notes = whole.finals(), []
    text = "the last row of every run"
    edge, curves = None, []
    if inputs == ("params",) and "tokens" in chosen.columns and np.isfinite(chosen["tokens"]).any():
        chosen, text = _longest(chosen, notes)
    if inputs == ("compute",):
        curves = frontier.curves(whole, column)
        edge = frontier.envelope(curves)
    if edge is not None:
        found = Sample(
            inputs,
            edge.compute[:, None],
            edge.loss,
            edge.run,
            edge.owner,
            edge.weights,
            (),
            edge.text,
            tuple(curves),
        )
        # Without sizes, a curve is the nearest thing to one. The envelope of a few sizes follows
        # their own curves.
        touched = len(
            np.unique(edge.params if np.isfinite(edge.params).all() else edge.owner.astype(str))
        )
        if touched < MIN_SIZES:
            raise Refused(
                f"few-sizes: the frontier touches {touched} different sizes; {MIN_SIZES} are needed"
            )
    else:
        x = np.stack([chosen[name] for name in inputs], axis=1)
        found = Sample(inputs, x, chosen[column], chosen.run, x[:, 0], np.ones(len(x)), (), text)
    return dataclasses.replace(_checked(found), notes=(*notes, *_range_notes(found)))


def _longest(chosen: Table, notes: list[str]) -> tuple[Table, str]:
    sizes, tokens = chosen["params"], np.nan_to_num(chosen["tokens"])
    most = np.array([tokens[sizes == size].max() for size in sizes])
    kept = chosen.where(tokens >= 0.99 * most)
    spread = np.ptp(np.log10(np.maximum(most, 1))) if len(most) else 0
    if spread > 0.3:
        notes.append(
            f"tokens-vary: the sizes' token budgets differ by {spread:.1f} decades, which this law "
            "takes for an effect of size; see the joint law"
        )
    return kept, "at every size the runs with the most tokens"


def _checked(found: Sample) -> Sample:
    needed = {"params": MIN_SIZES, "compute": MIN_SIZES, "tokens": MIN_BUDGETS}
    for name, values in zip(found.inputs, found.x.T, strict=True):
        distinct = len(np.unique(np.round(np.log(values), 6)))
        if distinct < needed[name]:
            raise Refused(f"few-sizes: {distinct} different {name}; {needed[name]} are needed")
    parameters = 1 + 2 * len(found.inputs)
    if len(found.y) <= parameters:
        raise Refused(
            f"few-runs: {len(found.y)} runs; {parameters + 1} are needed for {parameters} parameters"
        )
    design = np.column_stack([np.ones(len(found.y)), np.log(found.x)])
    slopes = np.linalg.lstsq(design, np.log(found.y), rcond=None)[0]
    for name, slope in zip(found.inputs, slopes[1:], strict=True):
        if slope > -1e-6:
            raise Refused(f"not-falling: it does not fall with {name} (log-log slope {slope:+.2g})")
    return found


def _range_notes(found: Sample) -> list[str]:
    notes = []
    for name, values in zip(found.inputs, found.x.T, strict=True):
        decades = float(np.log10(values.max() / values.min()))
        if decades < MIN_DECADES:
            notes.append(
                f"short-range: {name} spans {decades:.2f} decades; an exponent wants {MIN_DECADES}"
            )
    return notes
