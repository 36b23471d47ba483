"""Runs over several processes of this machine, as several hosts would have them."""

import random
import signal
import subprocess
import sys
import time

import pytest

from helpers import processes, small
from var_jax.devices import lost_process, multihost
from var_jax.errors import RunFailed, UserError
from var_jax.train import spikes

STEPS = 24
START = 400  # seconds: imports and compilation of several processes at once, on a busy machine
PEER = 20
FLAGS = (f"--peer-timeout={PEER}",)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("hosts")


@pytest.fixture(scope="module")
def run(directory, digits_dir, model_dir):
    """Arguments of a run of some steps with dropout, which depends on where in the batch an image
    lies."""
    (directory / "config.py").write_text(small.CONFIG_FILE)
    values = {
        "data.data_dir": digits_dir,
        "tokenizer_dir": model_dir,
        "init_from": model_dir,
        "transformer.drop_path": 0.2,
        "transformer.class_dropout": 0.3,
        "optimizer.schedule": "constant",
        "log_every": 1,
        "eval_every": STEPS,
        "checkpoint_every": 4,
    }

    def arguments(steps: int = STEPS, **changes) -> list[str]:
        inputs = {**values, "steps": steps, **changes}
        return [
            "--config",
            str(directory / "config.py"),
            *(f"--config.{key}={value}" for key, value in inputs.items()),
        ]

    return arguments


@pytest.fixture(scope="module")
def cache(directory):
    return directory / "cache"


@pytest.fixture(scope="module")
def alone(run, directory, cache):
    """The losses of one process, uninterrupted."""
    with processes.running(run(), directory / "alone", cache) as one:
        assert one.codes(START) == [0], one.output()
    return processes.records(directory / "alone"), processes.records(directory / "alone", "val")


def assert_same_losses(workdir, alone):
    for split, expected in zip(("train", "val"), alone, strict=True):
        assert processes.records(workdir, split) == pytest.approx(expected, rel=1e-5), split


def last(workdir) -> int:
    return max(processes.records(workdir), default=0)


@pytest.mark.slow
def test_processes_stop_together_and_have_the_losses_of_one(run, directory, cache, alone):
    """A kill of either process ends the other by its own message, SIGTERM to either saves both, and
    the losses of the whole are those of one process."""
    workdir, draw = directory / "two", random.Random(0)
    victim, at = draw.randrange(2), draw.randint(5, 9)
    with processes.running(run(), workdir, cache, count=2, flags=FLAGS) as two:
        two.until(lambda: last(workdir) >= at, START)
        two.send(signal.SIGKILL, victim)
        sent = time.monotonic()
        assert two.ended(1 - victim, 3 * PEER) == 1
        assert time.monotonic() - sent < 2 * PEER
        assert lost_process.LOST in two.output(1 - victim).splitlines()[-1]
        assert at <= last(workdir) < STEPS
    with processes.running(run(), workdir, cache, count=2, flags=FLAGS) as two:
        resumed = processes.checkpoints(workdir)[-1]
        two.until(lambda: processes.restarts(workdir) == 1 and last(workdir) > resumed, START)
        two.send(signal.SIGTERM, 1 - victim)
        assert two.codes(START) == [75, 75], [two.output(0), two.output(1)]
        assert resumed < processes.checkpoints(workdir)[-1] == last(workdir) < STEPS
    with processes.running(run(), workdir, cache, count=2, flags=FLAGS) as two:
        assert two.codes(START) == [0, 0], [two.output(0), two.output(1)]
    assert_same_losses(workdir, alone)


@pytest.mark.slow
def test_four_processes_and_then_one(run, directory, cache, alone):
    """A run of four processes goes on with one, and each loss is that of one process, to rounding
    where the number changed."""
    workdir = directory / "four"
    with processes.running(run(steps=8), workdir, cache, count=4) as four:
        assert four.codes(START) == [0] * 4, four.output()
    assert_same_losses(
        workdir, ({step: alone[0][step] for step in range(1, 9)}, processes.records(workdir, "val"))
    )
    with processes.running(run(), workdir, cache) as one:
        assert one.codes(START) == [0], one.output()
    assert processes.records(workdir) == pytest.approx(alone[0], rel=1e-5)


@pytest.mark.slow
def test_processes_share_a_model_axis(run, directory, cache, alone):
    """Two processes along the model axis hold the same rows of the batch, and have the losses of
    one."""
    workdir = directory / "model_axis"
    mesh = {"mesh.data": 1, "mesh.model": 2}
    with processes.running(run(steps=4, **mesh), workdir, cache, count=2) as two:
        assert two.codes(START) == [0, 0], two.output()
    assert processes.records(workdir) == pytest.approx(
        {step: alone[0][step] for step in range(1, 5)}, rel=1e-5
    )


@pytest.mark.slow
def test_processes_skip_the_same_steps(run, directory, cache):
    """With a factor so near 1 that ordinary steps are spikes, two processes, which each see half of
    the batch, skip the steps that one process skips: a host that judged by its own loss would skip
    others, and all losses after the first such step would differ."""
    arguments = run(steps=12, **{"optimizer.skip_spikes": 1.01, "optimizer.skip_spikes_window": 2})
    skipped, losses = [], []
    for count in (1, 2):
        workdir = directory / f"spikes{count}"
        with processes.running(arguments, workdir, cache, count=count) as group:
            assert group.codes(START) == [0] * count, group.output()
        skipped.append(processes.records(workdir, metric=spikes.METRIC))
        losses.append(processes.records(workdir))
    assert skipped[0] == skipped[1] and 0 < skipped[0][12] < 12
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [0, 1])
def test_processes_end_when_one_stands_still(run, directory, cache, frozen):
    """A process that is stopped and not dead is noticed, and the other ends with a message."""
    workdir = directory / f"frozen{frozen}"
    with processes.running(run(steps=10**6), workdir, cache, count=2, flags=FLAGS) as two:
        two.until(lambda: last(workdir) >= 3, START)
        two.send(signal.SIGSTOP, frozen)
        sent = time.monotonic()
        assert two.ended(1 - frozen, 5 * PEER) == 1
        assert time.monotonic() - sent < 3 * PEER
        assert lost_process.LOST in two.output(1 - frozen).splitlines()[-1]


LISTS_A_CHECKPOINT_LESS = """
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from var_jax.io.checkpoint import Checkpoints
everywhere = NamedSharding(Mesh(jax.devices(), "d"), PartitionSpec())
at = {directory!r}
checkpoints = Checkpoints(at, keep=5)
for step in (1, 2, 3):
    value = jax.make_array_from_callback((4,), everywhere, lambda _: np.full(4, step, np.float32))
    checkpoints.save(step, {{"x": value}}, {{}}, wait=True)
checkpoints.close()
later = Checkpoints(at, keep=5)
if index == 1:  # as on a file system whose listings lag behind
    listed = Checkpoints.steps
    Checkpoints.steps = lambda self: listed(self)[:-1]
abstract = {{"x": jax.ShapeDtypeStruct((4,), np.float32, sharding=everywhere)}}
state, _ = later.restore(abstract)
print("restored", later.agreed_steps(), np.asarray(state["x"]).tolist())
"""


@pytest.mark.long
def test_checkpoint_steps_are_those_that_process_zero_lists(directory, cache):
    """Two hosts of which one does not see the newest checkpoint yet resume from the same one."""
    code = LISTS_A_CHECKPOINT_LESS.format(directory=str(directory / "lagging"))
    for ended, output in processes.scripts(code, directory / "scripts", cache):
        assert ended == 0 and "restored [1, 2, 3] [3.0, 3.0, 3.0, 3.0]" in output, output


def test_processes_of_one_host_are_counted():
    """Two processes that find each other on this machine both count two."""
    address = f"127.0.0.1:{processes.free_port()}"
    code = (
        "import sys; from var_jax.devices import multihost, process_group\n"
        f"process_group.initialize({address!r}, 2, int(sys.argv[1]))\n"
        "print(multihost.processes_on_host())"
    )
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(i)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    output = [process.communicate(timeout=START) for process in both]
    # The count is the last line; Gloo prints others before it.
    assert [out.splitlines()[-1:] for out, _ in output] == [["2"], ["2"]], output


def test_processes_on_host_leaves_out_other_hosts(monkeypatch):
    """Only processes that report this host's name are counted: three of five, and one if there is a
    single process."""
    assert multihost.processes_on_host() == 1
    monkeypatch.setattr(
        multihost, "gather_texts", lambda text: ["other", text, text, "other", text]
    )
    assert multihost.processes_on_host() == 3


@pytest.mark.parametrize("kind", [UserError, RunFailed])
@pytest.mark.parametrize("text", ["", "no such file"])
def test_run_on_all_raises_an_error_whatever_its_text(monkeypatch, text, kind):
    """A user's mistake or a failed run ends the work on the process that raised it, and as the same
    kind of error on the others, which get a text that is not empty, because the empty text stands
    for success."""
    sent = []

    def gather(message: str) -> list[str]:
        sent.append(message)
        return ["", message]

    def work():
        raise kind(text)

    monkeypatch.setattr(multihost, "is_multiprocess", lambda: True)
    monkeypatch.setattr(multihost, "gather_texts", gather)
    with pytest.raises(kind):
        multihost.run_on_all(work)
    assert sent[0] == (text or kind.__name__)
    received = iter(sent)
    monkeypatch.setattr(multihost, "gather_texts", lambda message: [message, next(received)])
    with pytest.raises(kind, match="process 1"):
        multihost.run_on_all(lambda: 1)
    assert not list(received)  # both take part in as many exchanges
    monkeypatch.setattr(multihost, "gather_texts", lambda message: [message, ""])
    assert multihost.run_on_all(lambda: 1) == 1
