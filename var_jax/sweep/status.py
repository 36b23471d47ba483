"""Shows the progress of a sweep or of a single run, reading only its files."""

import dataclasses
import datetime
import time
from collections.abc import Mapping
from typing import Any

from etils import epath

from var_jax.config import key_patterns
from var_jax.config.strict import require
from var_jax.devices import chips
from var_jax.errors import UserError
from var_jax.io import goodput_record
from var_jax.io.json import is_finite_number, read_object_if_exists, read_object_or_none
from var_jax.sweep import run_state
from var_jax.sweep.claims import Claim
from var_jax.sweep.local import Local
from var_jax.sweep.plan import aligned

HEADER = (
    "run",
    "overrides",
    "state",
    "step",
    "done",
    "ETA",
    "MFU",
    "train loss",
    "held-out loss",
    "restarts",
)


@dataclasses.dataclass(frozen=True)
class Row:
    """Progress of one run.

    Attributes:
      state: see `run_state.Observed`; "queued (unconfirmed)" is a job that has not reported and
        that only its scheduler knows of, "evaluating" a running one that has taken its last step.
      step, steps, first: the current step, the last step, and the first one (for a branch, the
        step at which it left its trunk).
      eta: remaining seconds, or None.
      mfu: exact model FLOPs per second over the peak of its chips, or None if either is unknown;
        of training all parameters, whatever `trainable` leaves as they are.
      loss: the last training loss, or None.
      held_out_loss: the loss of the last evaluation, which `fit` uses, or None.
      restarts: number of restarts.
      compute: exact FLOPs of its own steps, or None.
      refusal: the user's mistake for which its latest start ended, or "".
      problem: why its status.json cannot be believed, or "".
      trainable: the parameters that it trains (`config.trainable`), "" for all.
      seconds: its wall time by category (`io.goodput_record`), until now if it was stopped before
        its end, else until its last report; {} if unknown.
    """

    id: str
    label: str
    state: str
    step: int
    steps: int | None
    first: int
    eta: float | None
    mfu: float | None
    loss: float | None
    restarts: int
    compute: float | None
    held_out_loss: float | None = None
    refusal: str = ""
    problem: str = ""
    trainable: str = ""
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def share(self) -> float:
        """The fraction of its own steps that are done."""
        if self.state == "done":
            return 1.0
        return max(0.0, (self.step - self.first) / (self.steps - self.first)) if self.steps else 0.0


def read(directory: epath.PathLike) -> list[Row]:
    """Returns the rows of a sweep's directory, or the one row of a run's workdir.

    Raises:
      UserError: the directory is neither, or is in a bucket that cannot be reached.
    """
    path = epath.Path(directory)
    run_state.require_reachable(path)
    if (path / "status.json").exists():
        if problem := run_state.status_problem(path):
            raise UserError(problem)
        return [_row(path, {})]
    planned = _planned(path / "sweep.json")
    others = (
        sorted(entry.name for entry in path.iterdir() if (entry / "status.json").exists())
        if path.is_dir()
        else []
    )
    if not planned and not others:
        raise UserError(
            f"{directory} is neither a sweep's directory (no sweep.json) nor a run's "
            "(no status.json)"
        )
    return [_row(path / id, planned.get(id, {})) for id in dict.fromkeys([*planned, *others])]


def _planned(path: epath.Path) -> dict[str, dict[str, Any]]:
    """Returns {id: run} of sweep.json; {} if there is no such file.

    Raises:
      UserError: it is not the file that `sweep` writes.
    """
    listed = (read_object_if_exists(path) or {}).get("runs", [])
    require(isinstance(listed, list), f"runs in {path}", f"{listed!r:.60}", "a list of runs")
    planned: dict[str, dict[str, Any]] = {}
    for number, run in enumerate(listed):
        name = f"run {number} in {path}"
        require(isinstance(run, dict), name, f"{run!r:.60}", "an object with an id")
        id, label = run.get("id"), run.get("label", "")
        plain = isinstance(id, str) and id not in ("", ".", "..") and "/" not in id
        require(plain, f"id of {name}", repr(id), "the name of a directory")
        require(id not in planned, f"id of {name}", repr(id), "another than those before")
        require(isinstance(label, str), f"label of {name}", repr(label), "a text")
        for key in ("steps", "first_step", "own_compute"):
            value = run.get(key)
            right = value is None or (is_finite_number(value) and value >= 0)
            require(right, f"{key} of {name}", f"{value!r:.60}", "a number of at least 0")
        planned[id] = run
    return planned


def lines(rows: list[Row]) -> list[str]:
    """Returns the table, a summary if there are several runs, and why runs were refused.

    One line tells the shares of the wall time, of all runs together.
    """
    cells = [
        [
            row.id,
            row.label,
            row.state,
            f"{row.step}/{row.steps or '?'}",
            f"{row.share:.0%}",
            _duration(row.eta),
            "" if row.mfu is None else f"{row.mfu:.1%}",
            _loss(row.loss),
            _loss(row.held_out_loss),
            str(row.restarts),
        ]
        for row in rows
    ]
    table = aligned([HEADER, *cells], left=3)
    if len(rows) > 1:
        states = {
            state: sum(row.state == state for row in rows)
            for state in dict.fromkeys(row.state for row in rows)
        }
        summary = ", ".join(f"{count} {state}" for state, count in states.items())
        if all(row.compute for row in rows):
            total = sum(row.compute or 0.0 for row in rows)
            done = sum((row.compute or 0.0) * row.share for row in rows)
            summary += f"; {done:.3g} of {total:.3g} FLOPs, {done / total:.0%}"
        table.append(summary)
    if known := [row.seconds for row in rows if row.seconds]:
        total = {name: sum(seconds[name] for seconds in known) for name in known[0]}
        table.append(goodput_record.line(total))
    for patterns in dict.fromkeys(row.trainable for row in rows):
        table += filter(None, [key_patterns.counted_flops(patterns)])
    refused = [f"{row.id} was refused: {row.refusal}" for row in rows if row.refusal]
    return [*table, *refused, *(row.problem for row in rows if row.problem)]


def _loss(loss: float | None) -> str:
    return "" if loss is None else f"{loss:.4g}"


def _row(directory: epath.Path, planned: dict[str, Any]) -> Row:
    observed = run_state.observe(directory, _alive)
    status = observed.status
    last = observed.claims[-1] if observed.claims else None
    is_unconfirmed = (
        observed.state == "dead"
        and last
        and last.job
        and not _here(last)
        and run_state.never_reported(observed)
    )
    meta = read_object_or_none(directory / "meta.json") or {}
    speed = status.get("images_per_s") if observed.live else None
    state = "queued (unconfirmed)" if is_unconfirmed else observed.state
    if state == "running" and status.get("steps") and observed.step == status["steps"]:
        state = "evaluating"
    return Row(
        id=directory.name,
        label=planned.get("label", ""),
        state=state,
        step=observed.step,
        steps=status.get("steps") or planned.get("steps"),
        first=planned.get("first_step", 0),
        eta=status.get("eta_s") if observed.state == "running" else None,
        mfu=_mfu(meta, speed),
        loss=status.get("loss"),
        restarts=max(
            status.get("restarts") or 0, sum(not c.abandoned for c in observed.claims) - 1
        ),
        compute=planned.get("own_compute"),
        held_out_loss=status.get("held_out_loss"),
        refusal=observed.refusal,
        problem=run_state.status_problem(directory),
        trainable=str(meta.get("trainable", "")),
        seconds=_seconds(observed),
    )


def _seconds(observed: run_state.Observed) -> dict[str, float]:
    """Returns a run's wall time by category; a run that is to go on has been stopped until now."""
    seconds = goodput_record.seconds(observed.status)
    if seconds and observed.state in ("preempted", "dead", "queued"):
        seconds["stopped"] += goodput_record.seconds_since(observed.status, time.time())
    return seconds


def _alive(claim: Claim) -> bool | None:
    """Checks processes of this machine only; schedulers may be slow or far away."""
    return Local().alive(claim.job) if _here(claim) else None


def _here(claim: Claim) -> bool:
    """Returns whether a claim's job is a process, and not a scheduler's job."""
    return claim.backend == "local"


def _mfu(meta: dict[str, Any], images_per_s: float | None) -> float | None:
    try:
        devices, flops = meta["devices"], float(meta["flops_per_image"]["exact"])
        chip, count = chips.chip_of_kind(devices["kind"]), float(devices["count"])
    except (KeyError, TypeError, ValueError, AttributeError):  # of another version, or damaged
        return None
    if chip is None or not images_per_s or count <= 0:
        return None
    return flops * images_per_s / (chip.peak_flops * count)


def _duration(seconds: float | None) -> str:
    return "" if seconds is None else str(datetime.timedelta(seconds=round(seconds)))
