"""How fast a run trains, what share of the chips' peak that is, and where the time goes."""

import contextlib
import functools
import logging
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from var_jax.devices import chips
from var_jax.objectives.base import Objective
from var_jax.objectives.steps import StepVariant

log = logging.getLogger(__name__)


class _Work(NamedTuple):
    """What a step computes per image."""

    tokens: int
    flops: float


class Throughput:
    """Rates over the steps since the last report, without the time spent `paused` (evaluation,
    pictures).

    Args:
      step: steps done so far.
    """

    def __init__(self, objective: Objective[Any], step: int):
        self._objective = objective
        chip = chips.chip_of_kind(jax.devices()[0].device_kind)
        self._peak = chip and chip.peak_flops * jax.device_count()
        self._mark = (step, time.perf_counter())

    def report(self, step: int) -> dict[str, float]:
        """steps_per_s, images_per_s, tokens_per_s and flops_per_s over all devices, and mfu (model
        FLOPs utilisation, 0 to 1 of the chips' bfloat16 peak) on chips that the table has."""
        now = time.perf_counter()
        seconds = max(now - self._mark[1], 1e-9)
        computed = [self._work(done) for done in range(self._mark[0], step)]
        self._mark = (step, now)
        images_per_s = len(computed) * self._objective.config.batch_size / seconds
        rates = {
            "steps_per_s": len(computed) / seconds,
            "images_per_s": images_per_s,
            "tokens_per_s": images_per_s
            * float(np.mean([work.tokens for work in computed] or [0])),
            "flops_per_s": images_per_s * float(np.mean([work.flops for work in computed] or [0])),
        }
        return rates | ({"mfu": rates["flops_per_s"] / self._peak} if self._peak else {})

    def _work(self, done: int) -> _Work:
        """Returns the work per image of the step after `done` others: leading scales alone, or
        smaller images, are less."""
        return self._of_variant(self._objective.variant(done))

    @functools.cache  # noqa: B019 - lives as long as its run
    def _of_variant(self, variant: StepVariant) -> _Work:
        tokens = self._objective.scales(variant).total
        return _Work(tokens, self._objective.flops_per_image(variant))

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._mark = (self._mark[0], self._mark[1] + time.perf_counter() - start)


class Profile:
    """A trace of a window of steps, for TensorBoard or Perfetto, in the workdir's `profile/`.

    A run that resumes inside the window traces what is left of it, and one that ends or is stopped
    inside it keeps what it has traced.

    Args:
      window: first step and number of steps; None for no trace.
      steps: length of the run.
      resume_step: steps done before this start.
    """

    def __init__(
        self, directory: epath.Path, window: tuple[int, int] | None, steps: int, resume_step: int
    ):
        self._directory, self._running = directory, False
        first, last = (window[0], sum(window) - 1) if window else (1, 0)
        left = range(max(first, resume_step + 1), min(last, steps) + 1)
        self._left = left
        if window and len(left) < window[1]:
            what = f"steps {left[0]} to {left[-1]}" if left else "no step"
            log.warning(
                "--profile %d:%d traces %s: this start runs steps %d to %d",
                *window,
                what,
                resume_step + 1,
                steps,
            )

    def before(self, step: int):
        """Starts the trace where the next step is the first that is left of the window."""
        if self._left and step == self._left[0]:
            jax.profiler.start_trace(str(self._directory / "profile"))
            self._running = True

    def after(self, step: int, outputs: Any):
        """Waits for the outputs of the window's last step, so that it is whole."""
        if self._running and step == self._left[-1]:
            jax.block_until_ready(outputs)
            self.close()

    def close(self):
        """Writes what has been traced, where a run ends inside the window."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
