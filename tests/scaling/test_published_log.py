"""Rows of the public log of VAR-d16, and which runs they can be compared with."""

import dataclasses

import pytest

from helpers import small
from var_jax.config.model import TokenizerConfig, TransformerConfig
from var_jax.config.train import DataConfig, TrainConfig
from var_jax.scaling import published_log, published_plot

PUBLISHED = TrainConfig(
    stage="transformer",
    batch_size=768,
    data=DataConfig("imagenet2012"),
    tokenizer=TokenizerConfig(),
    transformer=TransformerConfig(depth=16, num_classes=1000),
)


def changed(**changes) -> TrainConfig:
    assert PUBLISHED.transformer is not None
    return dataclasses.replace(
        PUBLISHED, transformer=dataclasses.replace(PUBLISHED.transformer, **changes)
    )


def test_published_log_falls_and_its_accuracy_rises():
    """Losses fall and accuracies rise with the passes, as a slip of a digit would break."""
    losses = [row.loss for row in published_log.TRAINING]
    assert losses == sorted(losses, reverse=True)
    validation = published_log.VALIDATION
    assert [row.loss for row in validation] == sorted((r.loss for r in validation), reverse=True)
    assert [row.accuracy for row in validation] == sorted(row.accuracy for row in validation)
    assert all(row.accuracy < row.accuracy_last < 0.1 for row in validation)
    assert all(row.loss_last < row.loss for row in validation)


def test_difference_of_the_published_recipe_is_none():
    """It has no difference and no caveat."""
    assert (
        published_log.difference(PUBLISHED.transformer) == ""
        and published_log.caveats(PUBLISHED) == []
    )


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            PUBLISHED.with_tokenizer(TokenizerConfig(vocab_size=1024)),
            "tokenizer.vocab_size is 1024 and that of the log 4096",
        ),
        (
            PUBLISHED.with_tokenizer(TokenizerConfig(scales=small.Scales.parse("1,2,16"))),
            "tokenizer.scales are 1,2,16 and those of the log 1,2,3,4,5,6,8,10,13,16",
        ),
        (
            changed(objective="masked", scales=small.Scales.parse("16x16")),
            "transformer.objective is 'masked'",
        ),
    ],
)
def test_difference_names_both_sides(config, words):
    """Other codes, scales or objectives have cross-entropies of their own."""
    assert words in published_log.difference(config.transformer)


def test_caveats_name_what_is_comparable_with_care():
    """Other data, depth and batch are named, and not refused."""
    config = dataclasses.replace(changed(depth=20), data=DataConfig("digits"), batch_size=64)
    assert published_log.difference(config.transformer) == ""
    notes = " ".join(published_log.caveats(config))
    assert "data are digits" in notes and "depth 20" in notes and "batch 64" in notes


def test_figure_has_the_log_and_the_run():
    """Every curve with points is drawn, at the passes of its records; empty ones are left out."""
    names = ("loss", "held_out_loss", "held_out_loss_last", "accuracy", "accuracy_last")
    curves = {name: [] for name in names}
    curves["loss"] = [published_plot.Point(0.5, 8.0), published_plot.Point(1.5, 7.6)]
    curves["accuracy"] = [published_plot.Point(1.0, 0.01)]
    left, right = published_plot.figure("mine", curves).axes
    labels = [line.get_label() for line in left.get_lines()]
    assert labels == [
        "log, training",
        "log, validation",
        "log, validation, last scale",
        "mine, training",
    ]
    assert list(left.get_lines()[-1].get_xdata()) == [0.5, 1.5]
    assert left.get_lines()[0].get_xdata()[0] == 1.5  # the middle of the second epoch
    assert list(right.get_lines()[-1].get_ydata()) == [1.0]  # percent
