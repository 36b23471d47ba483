"""What a step of a run computes may change on the way: a function of the step's number alone."""

import dataclasses

from var_jax.config import TokenizerConfig
from var_jax.ops.scales import Scales
from var_jax.train.config import TrainConfig


@dataclasses.dataclass(frozen=True)
class Phase:
    """Attributes:
      adversarial: whether there is a discriminator yet.
      scales: smaller than the tokenizer's, which progressive training begins with; None for all.
    """

    adversarial: bool = False
    scales: Scales | None = None

    def tokenizer(self, config: TrainConfig) -> TokenizerConfig:
        """The run's, at this phase's scales."""
        return config.tokenizer if self.scales is None else dataclasses.replace(config.tokenizer, scales=self.scales)


def phase_of(config: TrainConfig, done: int) -> Phase:
    """The phase of the step before which `done` steps were done."""
    if config.stage != "tokenizer":
        return Phase()
    small = bool(config.progressive.scales) and done < config.steps_of(config.progressive.until)
    start = config.adversarial_from
    return Phase(start is not None and done >= start, Scales.parse(config.progressive.scales) if small else None)


def last_phase(config: TrainConfig) -> Phase:
    """The phase with every part in it: what a bench or a compilation ahead of time is about."""
    return Phase(config.adversarial_from is not None)
