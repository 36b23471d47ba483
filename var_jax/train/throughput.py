"""How fast a run trains, what share of the chips' peak that is, and where the time goes."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import jax
from etils import epath

from var_jax import chips
from var_jax.scaling import flops
from var_jax.train.config import TrainConfig


class Throughput:
    """Rates over the steps since the last report, without the time spent `paused` (evaluation, pictures).

    Args:
      step: steps done so far.
    """

    def __init__(self, config: TrainConfig, step: int):
        self._config = config
        self._flops = train_flops_per_image(config)
        chip = chips.for_device_kind(jax.devices()[0].device_kind)
        self._peak = chip and chip.peak_flops * jax.device_count()
        self._mark = (step, time.perf_counter())

    def report(self, step: int) -> dict[str, float]:
        """steps_per_s, images_per_s, tokens_per_s and flops_per_s over all devices, and mfu (model FLOPs utilisation,
        0 to 1 of the chips' bfloat16 peak) on chips that the table has."""
        now = time.perf_counter()
        steps = (step - self._mark[0]) / max(now - self._mark[1], 1e-9)
        self._mark = (step, now)
        images = steps * self._config.batch_size
        rates = {"steps_per_s": steps, "images_per_s": images,
                 "tokens_per_s": images * self._config.tokenizer.scales.total, "flops_per_s": images * self._flops}
        return rates | ({"mfu": rates["flops_per_s"] / self._peak} if self._peak else {})

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._mark = (self._mark[0], self._mark[1] + time.perf_counter() - start)


class Profile:
    """A trace of a window of steps, for TensorBoard or Perfetto, in the workdir's `profile/`.

    Args:
      window: first step and number of steps; None for no trace.
    """

    def __init__(self, directory: epath.Path, window: tuple[int, int] | None):
        self._directory = directory
        self._first, self._last = (window[0], sum(window) - 1) if window else (0, 0)

    def before(self, step: int):
        if step == self._first:
            jax.profiler.start_trace(str(self._directory / "profile"))

    def after(self, step: int, outputs: Any):
        """Waits for the outputs of the window's last step, so that it is whole."""
        if step == self._last:
            jax.block_until_ready(outputs)
            jax.profiler.stop_trace()


def train_flops_per_image(config: TrainConfig) -> float:
    """Forward and backward of the stage that is trained; the frozen tokenizer's encoding is not in it."""
    if config.stage == "transformer":
        return flops.train_flops_per_image(config.transformer)
    return flops.tokenizer_train_flops(config.tokenizer)
