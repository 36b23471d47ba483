"""Losses and accuracies of a public training log of VAR-d16, for comparison.

The log is `logs/class_conditional_imagenet.log` of github.com/daixiangzi/VAR-CLIP (commit 25749c2):
the published code at its published settings for d16, on ImageNet at 256 pixels, with batch 768 for
200 epochs. It numbers epochs from 0.
"""

from typing import NamedTuple

from var_jax.config.scales import SCALES_256, Scales
from var_jax.config.train import TrainConfig
from var_jax.config.transformer_config import TransformerConfig

IMAGES = 1_281_167  # of ImageNet's training split, one epoch
DEPTH, VOCABULARY, SCALES = 16, 4096, Scales.parse(SCALES_256)
EPOCHS, BATCH = 200, 768


class Training(NamedTuple):
    """The mean training loss of one epoch.

    Attributes:
      epoch: its number in the log, from 0.
      loss: mean cross-entropy over all tokens, in nats.
    """

    epoch: int
    loss: float

    @property
    def passes(self) -> int:
        """Passes over ImageNet at the epoch's end."""
        return self.epoch + 1


class Validation(NamedTuple):
    """A measurement on the 50,000 validation images, with class dropout as in training.

    Attributes:
      passes: passes over ImageNet before it.
      loss, loss_last: cross-entropy of all tokens and of the last scale's, in nats.
      accuracy, accuracy_last: shares of tokens whose likeliest code is right, likewise.
    """

    passes: int
    loss: float
    loss_last: float
    accuracy: float
    accuracy_last: float


TRAINING = (
    Training(1, 7.650),
    Training(5, 6.778),
    Training(10, 6.497),
    Training(20, 6.357),
    Training(50, 6.226),
    Training(100, 6.152),
    Training(150, 6.107),
)
VALIDATION = (
    Validation(10, 6.541, 5.960, 0.0328, 0.0483),
    Validation(60, 6.213, 5.537, 0.0454, 0.0682),
    Validation(200, 6.046, 5.345, 0.0523, 0.0788),
)


def difference(transformer: TransformerConfig) -> str:
    """Returns why a model's losses cannot be compared with the log's, or "" if they can.

    Cross-entropy depends on the number of codes and on the scales: fewer codes are easier to guess,
    and tokens of finer scales are easier than those of coarser ones.

    Args:
      transformer: the model's, with the sizes of its tokenizer.
    """
    if transformer.objective != "next_scale":
        return f"transformer.objective is {transformer.objective!r}; that of the log is next_scale"
    other = []
    if transformer.vocab_size != VOCABULARY:
        other.append(
            f"tokenizer.vocab_size is {transformer.vocab_size} and that of the log {VOCABULARY}"
        )
    if transformer.scales != SCALES:
        other.append(f"tokenizer.scales are {transformer.scales} and those of the log {SCALES}")
    return "; ".join(other)


def caveats(config: TrainConfig) -> list[str]:
    """Returns what else differs between a comparable run and the log's, such as the data."""
    notes = []
    if config.data.name != "imagenet2012":
        notes.append(f"the log is of ImageNet; this run's data are {config.data.name}")
    assert config.transformer is not None
    if config.transformer.depth != DEPTH:
        notes.append(f"the log is of depth {DEPTH}; this run has depth {config.transformer.depth}")
    if config.batch_size != BATCH:
        notes.append(f"the log is of batch {BATCH}; this run has batch {config.batch_size}")
    return notes
