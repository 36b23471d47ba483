"""Records and weights of whole training runs, and replacements for parts of a run."""

import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from var_jax.config.train import TrainConfig
from var_jax.devices.preemption import Preemption
from var_jax.errors import Preempted
from var_jax.io.checkpoint import Checkpoints
from var_jax.train.loop import train

TIMES = (
    "steps_per_s",
    "images_per_s",
    "tokens_per_s",
    "flops_per_s",
)  # what may differ between equal runs


class NoEvaluator:
    """Replaces the evaluator where no test looks at held-out metrics: its programs take a third of
    the time of a small run."""

    def __init__(self, *_):
        pass

    def metrics(self, _):
        return {"loss": 0.0}

    def picture(self, _):
        return Image.new("RGB", (2, 2))

    def gather(self, tree):
        return jax.tree.map(np.asarray, tree)


def records(workdir) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def losses(workdir) -> list[dict]:
    """Returns records without the entries that may differ between equal runs."""
    return [
        {name: value for name, value in record.items() if name not in TIMES}
        for record in records(workdir)
    ]


def board_tags(workdir) -> set[tuple[int, str]]:
    """Returns (step, tag) of every value in the event files: length (8 bytes), checksum (4), event,
    checksum (4)."""
    tags = set()
    for file in (workdir / "tensorboard").glob("events*"):
        data, at = file.read_bytes(), 0
        while at < len(data):
            length = int.from_bytes(data[at : at + 8], "little")
            event = Event.FromString(data[at + 12 : at + 12 + length])
            tags |= {(event.step, value.tag) for value in event.summary.value}
            at += 16 + length
    return tags


def weights(workdir, part: str = "params"):
    """Returns a part of a run's newest checkpoint, such as "params" or "ema"."""
    return Checkpoints(workdir / "checkpoints", keep=3).restore_part(part)


def assert_resumes_bit_for_bit(config: TrainConfig, tmp_path, monkeypatch, stop: int = 2):
    """Trains to the end in `tmp_path/whole`, and with a SIGTERM in a step in `tmp_path/stopped`.

    The stopped run, started again, has every loss and weight of the other one.
    """
    train(config, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Preempted):
        signal_in_step(patch, stop)
        train(config, tmp_path / "stopped")
    train(config, tmp_path / "stopped")
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")
    for part in ("params", "ema", "opt_state"):
        assert_same(weights(tmp_path / "stopped", part), weights(tmp_path / "whole", part))


def assert_same(tree, expected):
    jax.tree.map(np.testing.assert_array_equal, tree, expected)


def assert_close(tree, expected, tolerance: float):
    """Compares every array to a share of the largest magnitude of what is expected."""
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max()),
        tree,
        expected,
    )


def fake_step(**late):
    """Returns a maker of steps that learn nothing; from step 2 on their metrics are `late`."""

    def make(*_):
        def step(run, batch, frozen):
            metrics = {
                name: jnp.where(run.step > 0, late.get(name, 1.0), 1.0)
                for name in ("loss", "grad_norm")
            }
            return run.replace(step=run.step + 1), metrics

        return step

    return make


def signal_in_step(monkeypatch, at: int):
    """Sends SIGTERM to this process while its step `at` is prepared."""
    vote = Preemption.vote

    def vote_and_signal(self):
        self.calls = getattr(self, "calls", 0) + 1
        if self.calls == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return vote(self)

    monkeypatch.setattr(Preemption, "vote", vote_and_signal)
