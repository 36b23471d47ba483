"""Compares a run's records with the public log of VAR-d16, reading only the workdir's files."""

import json
import math
from collections.abc import Sequence
from typing import Any

from etils import epath

from var_jax.config.strict import build
from var_jax.config.train import TrainConfig
from var_jax.errors import UserError
from var_jax.io import run_records
from var_jax.io.json import is_finite_number, read_object
from var_jax.objectives import registry
from var_jax.scaling import published_log, published_plot
from var_jax.scaling.published_log import Training
from var_jax.scaling.published_plot import Point
from var_jax.sweep.plan import aligned

# By curve: the split, and its metrics in the order of preference. The log's validation drops class
# labels as training does.
METRICS = {
    "loss": ("train", ("loss_mean", "loss")),
    "held_out_loss": ("val", ("loss_with_class_dropout", "loss")),
    "held_out_loss_last": ("val", ("loss_last_with_class_dropout", "loss_last")),
    "accuracy": ("val", ("accuracy_with_class_dropout", "accuracy_mean")),
    "accuracy_last": ("val", ("accuracy_last_with_class_dropout", "accuracy_last")),
}
RECENT_PASSES = 0.1  # over which the latest losses are averaged


class Comparison:
    """A run's records beside the log's.

    Attributes:
      name: the workdir's.
      config: the run's.
      curves: its records, as `published_plot.figure` takes them.

    Raises:
      UserError: the directory is no run's workdir, its losses cannot be compared with the log's, or
        it has none yet.
    """

    def __init__(self, directory: epath.PathLike):
        run = epath.Path(directory)
        if not (run / "config.json").exists():
            raise UserError(
                f"{directory} has no config.json; --against published takes the workdir of one run"
            )
        self.name = run.name
        self.config = build(TrainConfig, read_object(run / "config.json"), f"{run}/config.json")
        if reason := _difference(self.config):
            raise UserError(f"{directory} cannot be compared with the published log: {reason}")
        records = _records(run)
        self.curves = {
            curve: self._points(records, split, names) for curve, (split, names) in METRICS.items()
        }
        if not self.curves["loss"]:
            raise UserError(f"{directory} has no training loss yet; its first record has one")

    def lines(self) -> list[str]:
        """Returns where the run is, the log's row nearest to it, and all rows that it has passed.

        The last ones are its last evaluation, and what else differs between the two.
        """
        *_, last = self.curves["loss"]
        nearest = min(
            published_log.TRAINING, key=lambda row: abs(math.log(row.passes / last.passes))
        )
        means = [(row, self._mean(row)) for row in published_log.TRAINING]
        rows = [(row, mean) for row, mean in means if mean is not None]
        # Where the run has not finished the row's epoch, its latest records stand for it.
        of_row = self._mean(nearest)
        mine = self._latest() if of_row is None else of_row
        lines = [
            f"{last.passes:.3g} passes over {published_log.IMAGES:,} images; nearest row of the "
            f"log: epoch {nearest.epoch} (from 0, {nearest.passes} passes), training loss "
            f"{nearest.loss:.3f}; this run's {'latest ' if of_row is None else ''}is {mine:.3f}",
        ]
        if rows:
            cells = [
                [str(row.epoch), f"{row.loss:.3f}", f"{mean:.3f}", f"{mean - row.loss:+.3f}"]
                for row, mean in rows
            ]
            lines += aligned([["epoch", "log", "this run", "difference"], *cells], left=0)
        lines += self._held_out()
        return lines + published_log.caveats(self.config)

    def picture(self) -> bytes:
        """Returns the PNG of both."""
        from var_jax.scaling import plots

        return plots.png(published_plot.figure(self.name, self.curves))

    def _held_out(self) -> list[str]:
        """Returns the last evaluation beside the log's nearest one, if there is one."""
        if not self.curves["accuracy"]:
            return []
        *_, (passes, accuracy) = self.curves["accuracy"]
        row = min(published_log.VALIDATION, key=lambda row: abs(math.log(row.passes / passes)))
        return [
            f"accuracy {accuracy:.2%} of all tokens, {self.curves['accuracy_last'][-1].value:.2%} "
            f"of the last scale's; the log's after {row.passes} passes: {row.accuracy:.2%}, "
            f"{row.accuracy_last:.2%}"
        ]

    def _points(
        self, records: Sequence[dict[str, Any]], split: str, names: Sequence[str]
    ) -> list[Point]:
        points = []
        for record in records:
            value: Any = next((record[name] for name in names if name in record), None)
            if record["split"] == split and is_finite_number(value):
                passes = record["step"] * self.config.batch_size / published_log.IMAGES
                points.append(Point(passes, value))
        return points

    def _mean(self, row: Training) -> float | None:
        """Returns the mean training loss over the images of a row; None before its end."""
        points = self.curves["loss"]
        inside = [point.value for point in points if row.epoch < point.passes <= row.passes]
        is_over = points[-1].passes >= row.passes
        return sum(inside) / len(inside) if inside and is_over else None

    def _latest(self) -> float:
        """Returns the mean training loss of the last tenth of a pass."""
        points = self.curves["loss"]
        values = [one.value for one in points if one.passes > points[-1].passes - RECENT_PASSES]
        return sum(values) / len(values)


def _difference(config: TrainConfig) -> str:
    """Returns why a run cannot be compared with the log, or "" if it can."""
    if not registry.leaves_generator(config) or config.transformer is None:
        return f"stage is {config.stage!r}; the log is that of a transformer"
    return published_log.difference(config.transformer)


def _records(run: epath.Path) -> list[dict[str, Any]]:
    """Returns a run's records; lines that are none, such as one that is cut off, are left out."""
    try:
        lines = run_records.read_lines(run)
    except OSError as error:
        raise UserError(f"{run} has no records of losses yet") from error
    records = [json.loads(line) for line in lines if run_records.key(line) is not None]
    return [one for one in records if is_finite_number(one["step"]) and one["step"] > 0]
