"""Held-out evaluation of a run: its programs, pictures and metrics."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from helpers import small
from var_jax.devices.preemption import StopRequested
from var_jax.objectives import image_losses, registry
from var_jax.objectives.step_types import NoFrozen
from var_jax.train import step
from var_jax.train.evaluation import Evaluator


class Held:
    """Four held-out images, of which the last is padding."""

    def held_out(self):
        return iter(
            [
                {
                    "image": np.zeros((4, *small.TOKENIZER.image_shape), np.uint8),
                    "mask": np.arange(4) < 3,
                }
            ]
        )

    def on_devices(self, batch):
        return batch


def test_evaluator_compiles_reconstructions_once(monkeypatch):
    """Three pictures trace the function once, and show the parameters of their moment."""
    traced = []

    def reconstruct(config, params, images):
        traced.append(config)
        return images / 255 + params

    monkeypatch.setattr(image_losses, "reconstruct", reconstruct)
    config = small.train_config("tokenizer", "nowhere", sample_classes=5)
    replicated = NamedSharding(jax.make_mesh((8,), ("data",)), PartitionSpec())
    evaluator = Evaluator(registry.with_frozen_shapes(config), NoFrozen(), Held(), replicated)
    pictures = [np.asarray(evaluator.picture(np.float32(value))) for value in (0.0, 0.0, 1.0)]
    assert traced == [config.tokenizer]
    np.testing.assert_array_equal(pictures[0], pictures[1])
    assert (pictures[2] > pictures[0]).any()  # the parameters of the moment are the ones shown


class ToldAfter:
    """A preemption whose notice comes after so many looks."""

    def __init__(self, looks: int):
        self.looks = looks

    def check(self):
        self.looks -= 1
        if not self.looks:
            raise StopRequested

    def compile(self, lowered, options):
        return lowered.compile(options)


@pytest.mark.long
def test_metrics_end_between_batches_when_a_host_is_told_to_stop(monkeypatch):
    """Of three batches the third one is never evaluated."""
    seen = []

    class Batches(Held):
        def held_out(self):
            for number in range(3):
                seen.append(number)
                yield from super().held_out()

    def sums(objective):
        return lambda params, batch, frozen: {"loss_mean": params, "images": params}

    monkeypatch.setattr(step, "make_eval_step", sums)
    config = small.train_config("transformer", "nowhere")
    replicated = NamedSharding(jax.make_mesh((8,), ("data",)), PartitionSpec())
    evaluator = Evaluator(
        registry.with_frozen_shapes(config), NoFrozen(), Batches(), replicated, ToldAfter(2)
    )
    with pytest.raises(StopRequested):
        evaluator.metrics(np.float32(1))
    assert seen == [0, 1]
