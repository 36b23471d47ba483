"""Training throughput, its share of the chips' peak, and profiles of steps."""

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
from var_jax.objectives.step_types import StepVariant

log = logging.getLogger(__name__)


class _Work(NamedTuple):
    """The work of a step per image."""

    tokens: int
    flops: float


class Throughput:
    """Rates over the steps since the last report, without the time spent `paused`.

    Evaluation and pictures are such time.

    Args:
      step: steps done so far.
    """

    def __init__(self, objective: Objective[Any], step: int):
        self._objective = objective
        chip = chips.chip_of_kind(jax.devices()[0].device_kind)
        self._peak = chip and chip.peak_flops * jax.device_count()
        self._mark = (step, time.perf_counter())

    def report(self, step: int) -> dict[str, float]:
        """Returns steps_per_s, images_per_s, tokens_per_s, flops_per_s and mfu over all devices.

        The model FLOPs utilization (mfu) is a share of the chips' bfloat16 peak, from 0 to 1, and
        is given for chips in the table. Its FLOPs are those of training all parameters: with
        `trainable` a step computes fewer, and the figure may be above what the chips reach.
        """
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
        """Returns the work per image of the step after `done` others.

        It is less for only leading scales, or for smaller images.
        """
        return self._of_variant(self._objective.variant(done))

    @functools.cache  # noqa: B019 - lives as long as its run
    def _of_variant(self, variant: StepVariant) -> _Work:
        tokens = self._objective.scales(variant).total
        return _Work(tokens, self._objective.flops_per_image(variant))

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Excludes the time of a block from the rates, such as that of an evaluation."""
        start = time.perf_counter()
        yield
        self._mark = (self._mark[0], self._mark[1] + time.perf_counter() - start)


class Profile:
    """A trace of a window of steps, for TensorBoard or Perfetto, in the workdir's `profile/`.

    A run that resumes inside the window traces the rest of it, and one that ends or is stopped
    inside it keeps its trace so far.

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
        """Starts the trace if the next step is the first remaining one of the window."""
        if self._left and step == self._left[0]:
            jax.profiler.start_trace(str(self._directory / "profile"))
            self._running = True

    def after(self, step: int, outputs: Any):
        """Waits for the outputs of the window's last step, so that the trace has all of it."""
        if self._running and step == self._left[-1]:
            jax.block_until_ready(outputs)
            self.close()

    def close(self):
        """Writes the trace so far, if a run ends inside the window."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
