"""Measures how a run's wall time is divided, over all of its starts (`io.goodput_record`).

Goodput is the share of the wall time in steps that the run keeps. Google's library
ml-goodput-measurement reports it through the logging service of Google Cloud; here it is a part of
status.json, which every file system and bucket takes.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import psutil

from var_jax.io import goodput_record

COMPILATION_EVENTS = "/jax/core/compile/"  # tracing, lowering and XLA, or reading from its cache
MARKS = 8  # newest checkpoints whose time is kept: a run resumes from one of them


class Goodput:
    """A clock of one start of a run that divides all of its time into categories.

    The time belongs to "start" at first, then to the category that `enter` or `measure` names. That
    is where the host waits: a device works on after the call that starts a step, and the wait for
    its result is the step's time. Whatever JAX compiles meanwhile is taken out of the category and
    belongs to "compilation".

    Use it as a context manager, which listens to JAX's compilations.

    Args:
      started: when this start began, in seconds since 1970; by default now.
      clock: the time in seconds since 1970.
    """

    def __init__(self, started: float | None = None, clock: Callable[[], float] | None = None):
        self._clock = clock or _steady_clock()
        self._category = "start"
        now = self._clock()
        self._started = self._mark = now if started is None else min(started, now)
        self._seconds = dict.fromkeys(goodput_record.CATEGORIES, 0.0)
        self._compiled: list[tuple[float, float]] = []  # disjoint intervals since the mark
        self._marks: dict[int, float] = {0: 0.0}

    def __enter__(self) -> "Goodput":
        jax.monitoring.register_event_duration_secs_listener(self._on_event)
        return self

    def __exit__(self, *_):
        jax.monitoring.unregister_event_duration_listener(self._on_event)

    def follow(self, status: Mapping[str, Any], resume_step: int):
        """Adds the time of the run's starts before this one.

        The steps that they took after `resume_step` become "repeated", and the time between the
        last report and this start "stopped".

        Args:
          status: the content of status.json as the start before left it.
          resume_step: steps done before this start.
        """
        before = goodput_record.seconds(status)
        if not before:
            return
        record = status[goodput_record.KEY]
        marks = _marks(record.get("marks"))
        self._marks = {step: value for step, value in marks.items() if step <= resume_step}
        at_resume = max(self._marks.values(), default=min(marks.values()))
        lost = max(0.0, before["steps"] - at_resume)
        before["steps"] -= lost
        before["repeated"] += lost
        gap = self._started - record["until"]
        if status.get("state") != "done":
            before["stopped"] += max(0.0, gap)
        # Below 0 where the clocks of two hosts differ, or one process trains several times
        self._charge()
        self._seconds["start"] -= min(max(0.0, -gap), self._seconds["start"])
        for name, value in before.items():
            self._seconds[name] += value
        self.saved(resume_step)

    def enter(self, category: str):
        """Starts a category, which ends the one before."""
        self._charge()
        self._category = category

    @contextlib.contextmanager
    def measure(self, category: str) -> Iterator[None]:
        """Assigns the time of a block to a category."""
        before = self._category
        self.enter(category)
        try:
            yield
        finally:
            self.enter(before)

    def saved(self, step: int):
        """Notes the checkpoint of a step: the steps before it need not be repeated."""
        self._charge()
        self._marks[step] = self._seconds["steps"]
        self._marks = dict(sorted(self._marks.items())[-MARKS:])

    @property
    def seconds(self) -> dict[str, float]:
        """The seconds per category until now, over all starts of the run."""
        self._charge()
        return dict(self._seconds)

    def record(self) -> dict[str, Any]:
        """Returns the entry of status.json from which a later start goes on (`follow`)."""
        seconds = self.seconds
        return {
            "until": round(self._mark, 3),
            "seconds": {name: round(value, 3) for name, value in seconds.items()},
            "marks": {str(step): round(value, 3) for step, value in self._marks.items()},
        }

    def _charge(self):
        """Assigns the time since the last call."""
        now = max(self._clock(), self._mark)
        compiled, self._compiled = self._compiled, []
        in_compiler = sum(end - start for start, end in compiled)
        self._seconds["compilation"] += in_compiler
        self._seconds[self._category] += now - self._mark - in_compiler
        self._mark = now

    def _on_event(self, event: str, duration_secs: float, **_: Any):
        """Notes a compilation that ends now; one that contains others takes their place."""
        if not event.startswith(COMPILATION_EVENTS):
            return
        end = max(self._clock(), self._mark)
        start = max(end - duration_secs, self._mark)
        while self._compiled and self._compiled[-1][0] >= start:
            self._compiled.pop()
        if self._compiled:
            start = max(start, self._compiled[-1][1])
        self._compiled.append((start, end))


def process_start() -> float:
    """Returns when this process was started, in seconds since 1970.

    Imports before the first line of a command count as start-up with it.
    """
    process_time, now = psutil.Process().create_time(), time.time()
    if hasattr(time, "CLOCK_BOOTTIME"):  # psutil's boot time is in whole seconds
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - (process_time - psutil.boot_time())
        process_time = now - age
    return min(process_time, now)


def _steady_clock() -> Callable[[], float]:
    """Returns a clock in seconds since 1970 that never goes back."""
    offset = time.time() - time.monotonic()
    return lambda: offset + time.monotonic()


def _marks(values: Any) -> dict[int, float]:
    """Returns the marks of a status.json; one at step 0 if they are missing or damaged."""
    with contextlib.suppress(AttributeError, TypeError, ValueError):
        marks = {int(step): float(seconds) for step, seconds in values.items()}
        return marks or {0: 0.0}
    return {0: 0.0}
