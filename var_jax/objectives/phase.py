"""What a step of a run computes may change on the way: a function of the step's number alone."""

import bisect
import dataclasses

from var_jax.config.model import TokenizerConfig
from var_jax.config.scales import Scales
from var_jax.config.train import TrainConfig


@dataclasses.dataclass(frozen=True)
class Phase:
    """Attributes:
    adversarial: whether there is a discriminator yet.
    scales: smaller than the tokenizer's, which progressive training begins with; None for all.
    first: how many first scales a transformer is trained on; None for all.
    since: steps done when the last of these was added; None where its loss counts fully at once.
    """

    adversarial: bool = False
    scales: Scales | None = None
    first: int | None = None
    since: int | None = None

    def present(self, config: TrainConfig) -> Scales:
        """The scales that a step computes."""
        every = self.scales or config.tokenizer.scales
        return every if self.first is None else Scales(every.sizes[: self.first])

    def tokenizer(self, config: TrainConfig) -> TokenizerConfig:
        """The run's, at this phase's scales."""
        return (
            config.tokenizer
            if self.scales is None
            else dataclasses.replace(config.tokenizer, scales=self.scales)
        )


def phase_of(config: TrainConfig, done: int) -> Phase:
    """The phase of the step before which `done` steps were done."""
    if config.stage != "tokenizer":
        return _first_scales(config, done)
    small = bool(config.progressive.scales) and done < config.steps_of(config.progressive.until)
    start = config.adversarial_from
    return Phase(
        start is not None and done >= start,
        Scales.parse(config.progressive.scales) if small else None,
    )


def _first_scales(config: TrainConfig, done: int) -> Phase:
    """Of a transformer, as published: the first scales until the learning rate is warm, then one
    after the other, evenly until `progressive` is over. Neither the first ones nor the whole
    sequence wait for their weight in the loss."""
    number = _number(config, done)
    if number == len(config.tokenizer.scales):
        return Phase()
    if number == _number(config, 0):
        return Phase(first=number)
    return Phase(
        first=number,
        since=bisect.bisect_left(range(done), number, key=lambda at: _number(config, at)),
    )


def _number(config: TrainConfig, done: int) -> int:
    """Of first scales that a transformer is trained on."""
    t, warm = config.transformer, config.optimizer.warmup_steps
    whole, end = len(config.tokenizer.scales), config.steps_of(t.progressive)
    if not t.progressive or done >= max(end, 1) and done > warm:
        return whole
    if done <= warm:
        return t.progressive_from + 1
    share = (done - warm) / (end - warm)
    return t.progressive_from + 1 + round(share * (whole - 1 - t.progressive_from))


def last_phase(config: TrainConfig) -> Phase:
    """The phase with every part in it: what a bench or a compilation ahead of time is about."""
    return Phase(config.adversarial_from is not None)
