"""Which steps `--profile` traces, whatever the step that a run starts from and ends at."""

import dataclasses
import logging

import jax
import pytest

from helpers import small
from var_jax.config.scales import Scales
from var_jax.config.tokenizer_training import ProgressiveConfig
from var_jax.config.train import OptimizerConfig
from var_jax.models import flops
from var_jax.objectives import registry
from var_jax.train.throughput import Profile, Throughput


def test_rates_of_first_scales_are_of_their_tokens_and_work():
    """Steps on one, two and all three scales of a transformer count what each computes; so do those
    of a tokenizer whose images are smaller at first. Two seconds are two seconds whatever is
    computed in them."""
    t = dataclasses.replace(small.TRANSFORMER, progressive=4, progressive_from=0)
    optimizer = OptimizerConfig(warmup_steps=1)
    config = small.train_config("transformer", "", steps=8, transformer=t, optimizer=optimizer)
    objective = registry.with_frozen_shapes(config)
    numbers = [objective.scales(objective.variant(done)).total for done in range(6)]
    assert numbers == [1, 1, 5, 5, 17, 17]
    throughput = Throughput(objective, 0)
    rates = throughput.report(6)
    work = [
        flops.train_flops_per_image(dataclasses.replace(t, scales=Scales(t.scales.sizes[:k])))
        for k in (1, 2, 3)
    ]
    assert rates["tokens_per_s"] == pytest.approx(rates["images_per_s"] * sum(numbers) / 6)
    assert rates["flops_per_s"] == pytest.approx(rates["images_per_s"] * sum(work) / 3)
    smaller = small.train_config("tokenizer", "", steps=4, progressive=ProgressiveConfig("1,2", 2))
    rates = Throughput(registry.with_frozen_shapes(smaller), 0).report(4)
    assert rates["tokens_per_s"] == pytest.approx(rates["images_per_s"] * (5 + 5 + 17 + 17) / 4)


@pytest.fixture
def profiler(monkeypatch) -> list:
    """Calls of the profiler, which is as strict as the real one and writes nothing."""
    calls = []

    def start(directory):
        assert not calls or calls[-1] == "stop"
        calls.append(directory)

    def stop():
        if not calls or calls[-1] == "stop":
            raise RuntimeError("No profile started")
        calls.append("stop")

    monkeypatch.setattr(jax.profiler, "start_trace", start)
    monkeypatch.setattr(jax.profiler, "stop_trace", stop)
    return calls


def traced(profiler, tmp_path, window, first, last, steps=20) -> list[int]:
    """Steps that a start traces that resumes after step `first` and runs to step `last`."""
    trace, steps_traced = Profile(tmp_path, window, steps, first), []
    for step in range(first + 1, last + 1):
        trace.before(step)
        if profiler and profiler[-1] != "stop":
            steps_traced.append(step)
        trace.after(step, None)
    trace.close()
    assert not profiler or profiler[-1] == "stop"  # what was traced is written
    assert len(profiler) == 2 * bool(steps_traced)
    return steps_traced


@pytest.mark.parametrize(
    ("window", "first", "last", "expected"),
    [
        ((5, 3), 0, 20, [5, 6, 7]),
        ((5, 3), 4, 20, [5, 6, 7]),
        ((5, 3), 5, 20, [6, 7]),  # the start before was killed inside the window
        ((5, 3), 6, 20, [7]),
        ((5, 3), 7, 20, []),
        ((5, 3), 0, 6, [5, 6]),  # preempted inside the window
        ((18, 5), 0, 20, [18, 19, 20]),  # the window is longer than the run
        ((30, 5), 0, 20, []),
        (None, 0, 20, []),
    ],
    ids=str,
)
def test_profile_traces_what_is_left_of_its_window(
    profiler, tmp_path, window, first, last, expected
):
    """A resume inside or behind the window is no error, and each trace that starts is written."""
    assert traced(profiler, tmp_path, window, first, last) == expected


@pytest.mark.parametrize(
    ("window", "first", "words"),
    [
        ((5, 3), 0, None),
        ((5, 3), 5, "steps 6 to 7"),
        ((5, 3), 9, "no step"),
        ((18, 5), 0, "steps 18 to 20"),
    ],
    ids=str,
)
def test_profile_warns_of_a_window_that_is_cut(tmp_path, caplog, window, first, words):
    """One line names the window and what is traced of it; a whole window has no warning."""
    with caplog.at_level(logging.WARNING):
        Profile(tmp_path, window, 20, first)
    assert [words] * bool(words) == [words for record in caplog.records if words in record.message]
    assert len(caplog.records) == bool(words)
