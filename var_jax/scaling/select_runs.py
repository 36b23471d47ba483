"""Selects the runs that a law is fitted to, and refuses laws that they cannot support."""

import dataclasses

import numpy as np
from jaxtyping import Float

from var_jax.scaling import frontier
from var_jax.scaling.solver import Array
from var_jax.scaling.table import Table

MIN_SIZES = 4
MIN_DECADES = 1.5
MIN_BUDGETS = 3  # different numbers of tokens in a joint law
RISE_TOGETHER = 0.05  # of a logarithm, within which inputs are a function of each other


class Refused(Exception):
    """The runs do not support a law; the message has the form "name: text"."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """The points that a law is fitted to.

    Attributes:
      inputs: names of the columns of x.
      run: the run of each point.
      group: the size or curve of each point; a hold-out leaves out a group as a whole.
      weights: weights of the points; they sum to the number of independent runs.
      notes: warnings about the selection, as "name: text".
      selection: a description of how the points were chosen.
      curves: the curves whose lower envelope the points are; empty when they are single runs.
    """

    inputs: tuple[str, ...]
    x: Float[Array, "n j"]
    y: Float[Array, " n"]
    run: Array
    group: Array
    weights: Float[Array, " n"]
    notes: tuple[str, ...]
    selection: str
    curves: tuple[frontier.Curve, ...] = ()

    @property
    def runs(self) -> int:
        """Number of different runs."""
        return len(np.unique(self.run.astype(str)))

    def where(self, rows) -> "Sample":
        """Returns the sample of only the given rows."""
        parts = {name: getattr(self, name)[rows] for name in ("x", "y", "run", "group", "weights")}
        return dataclasses.replace(self, **parts)


def sample(table: Table, column: str, inputs: tuple[str, ...]) -> Sample:
    """Returns the points for the law of `column` against `inputs`.

    A law of params uses the last row of each run, and at every size the runs with the most tokens.
    A law of compute uses the compute-optimal frontier where sizes or training curves overlap in
    compute, otherwise the last row of every run. A joint law uses the last row of every run.

    Args:
      inputs: ("params",), ("compute",) or ("params", "tokens").

    Raises:
      Refused: there are too few runs or sizes, or the losses do not fall.
    """
    complete_rows = table.complete(*inputs, column)
    final_rows, notes = complete_rows.finals(), []
    text = "the last row of every run"
    envelope, curves = None, []
    has_tokens = "tokens" in final_rows.columns and np.isfinite(final_rows["tokens"]).any()
    if inputs == ("params",) and has_tokens:
        final_rows, text = _most_trained(final_rows, notes)
    if inputs == ("compute",):
        curves = frontier.curves(complete_rows, column)
        envelope = frontier.envelope(curves)
    if envelope is not None:
        points = Sample(
            inputs,
            envelope.compute[:, None],
            envelope.loss,
            envelope.run,
            envelope.owner,
            envelope.weights,
            (),
            envelope.selection,
            tuple(curves),
        )
        # An envelope of few sizes follows their own training curves, not a law over sizes. If the
        # sizes are unknown, each curve counts as one size.
        sizes_known = np.isfinite(envelope.params).all()
        sizes = np.unique(envelope.params if sizes_known else envelope.owner.astype(str))
        if len(sizes) < MIN_SIZES:
            raise Refused(
                f"few-sizes: the frontier touches {len(sizes)} different sizes; "
                f"{MIN_SIZES} are needed"
            )
    else:
        x = np.stack([final_rows[name] for name in inputs], axis=1)
        points = Sample(
            inputs, x, final_rows[column], final_rows.run, x[:, 0], np.ones(len(x)), (), text
        )
    return dataclasses.replace(_checked(points), notes=(*notes, *_range_notes(points)))


def _most_trained(final_rows: Table, notes: list[str]) -> tuple[Table, str]:
    sizes, tokens = final_rows["params"], np.nan_to_num(final_rows["tokens"])
    most = np.array([tokens[sizes == size].max() for size in sizes])
    longest = final_rows.where(tokens >= 0.99 * most)
    spread = np.ptp(np.log10(np.maximum(most, 1))) if len(most) else 0
    if spread > 0.3:
        notes.append(
            f"tokens-vary: the sizes' token budgets differ by {spread:.1f} decades, which this law "
            "takes for an effect of size; see the joint law"
        )
    return longest, "at every size the runs with the most tokens"


def _checked(points: Sample) -> Sample:
    needed = {"params": MIN_SIZES, "compute": MIN_SIZES, "tokens": MIN_BUDGETS}
    for name, values in zip(points.inputs, points.x.T, strict=True):
        distinct = len(np.unique(np.round(np.log(values), 6)))
        if distinct < needed[name]:
            raise Refused(f"few-sizes: {distinct} different {name}; {needed[name]} are needed")
    parameters = 1 + 2 * len(points.inputs)
    if len(points.y) <= parameters:
        raise Refused(
            f"few-runs: {len(points.y)} runs; {parameters + 1} are needed "
            f"for {parameters} parameters"
        )
    logs = np.log(points.x / points.x[0])
    if np.linalg.matrix_rank(logs, tol=RISE_TOGETHER) < len(points.inputs):
        raise Refused(
            f"confounded: {' and '.join(points.inputs)} rise together; run sizes at other token "
            "budgets"
        )
    design = np.column_stack([np.ones(len(points.y)), np.log(points.x)])
    slopes = np.linalg.lstsq(design, np.log(points.y), rcond=None)[0]
    for name, slope in zip(points.inputs, slopes[1:], strict=True):
        if slope > -1e-6:
            raise Refused(f"not-falling: it does not fall with {name} (log-log slope {slope:+.2g})")
    return points


def _range_notes(points: Sample) -> list[str]:
    notes = []
    for name, values in zip(points.inputs, points.x.T, strict=True):
        decades = float(np.log10(values.max() / values.min()))
        if decades < MIN_DECADES:
            notes.append(
                f"short-range: {name} spans {decades:.2f} decades; an exponent wants {MIN_DECADES}"
            )
    return notes
