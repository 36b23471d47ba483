"""What Orbax prints beside its errors is silenced where it is asked for, and nowhere else."""

import json
import logging
import subprocess
import sys
import warnings

import pytest

from var_jax.io import storage_messages

# Everything but the import of var_jax itself is done before the first look, so that what other
# libraries set up when they are imported is not counted.
IMPORT = """
import json, logging, sys, warnings
import jax, orbax.checkpoint, etils.epath, flax, safetensors.numpy
import orbax.checkpoint.checkpoint_managers

def state():
    loggers = {None: logging.root, **logging.root.manager.loggerDict}
    return {
        "hook": repr(sys.unraisablehook),
        "warnings": [repr(entry) for entry in warnings.filters],
        "loggers": {
            str(name): [repr(logger.filters), repr(logger.handlers), logger.level]
            for name, logger in loggers.items()
            if isinstance(logger, logging.Logger) and not str(name).startswith("var_jax")
        },
    }

logging.getLogger("absl"), logging.getLogger("asyncio")
before = state()
import var_jax
import var_jax.io.checkpoint
print(json.dumps([before, state()]))
"""


def test_import_of_checkpoint_leaves_the_process_as_it_was():
    """Hook, warning filters and other libraries' loggers are the same before and after the import:
    they are compared in a fresh process, since this one has imported everything already."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True
    )
    before, after = json.loads(done.stdout.splitlines()[-1])
    assert after["hook"] == before["hook"]
    assert after["warnings"] == before["warnings"]
    assert {name: after["loggers"][name] for name in before["loggers"]} == before["loggers"]


FRESH = """
from var_jax.io import storage_messages
storage_messages.silence()
import absl.logging
for name in ("site-packages/orbax/manager.py", "site-packages/other/manager.py"):
    exec(compile(f"absl.logging.warning('from {name}')", name, "exec"))
"""


def test_silence_before_absl_is_imported_keeps_its_logger():
    """A command silences Orbax before it imports anything of it. Absl's own logger, which knows the
    file that a message comes from, must be there by then: without it nothing is of Orbax."""
    done = subprocess.run([sys.executable, "-c", FRESH], capture_output=True, text=True, check=True)
    assert "other/manager.py" in done.stderr and "orbax" not in done.stderr


def test_silenced_leaves_the_process_as_it_was():
    """Hook, warning filters and loggers within the block are others than before, and the same
    after it."""

    def state():
        loggers = [list(logging.getLogger(name).filters) for name in ("absl", "asyncio")]
        return sys.unraisablehook, list(warnings.filters), loggers

    before = state()
    with storage_messages.silenced():
        within = state()
        with storage_messages.silenced():
            pass
        assert state() == within
    assert state() == before
    assert all(a != b for a, b in zip(within, before, strict=True))


@pytest.fixture(autouse=True)
def as_before_any_command(monkeypatch):
    """The process as no command has silenced it: tests of the commands run in this process too, and
    each command silences Orbax for good when it starts."""
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)
    monkeypatch.setattr(warnings, "filters", [])
    for name in ("absl", "asyncio"):
        monkeypatch.setattr(logging.getLogger(name), "filters", [])


@pytest.mark.parametrize(
    ("name", "path", "message", "is_shown"),
    [
        ("absl", "/x/orbax/checkpoint.py", "failed", False),
        ("absl", "/x/tfds/builder.py", "failed", True),
        ("asyncio", "/x/base_events.py", "Future exception was never retrieved", False),
        ("asyncio", "/x/x.py", "unhandled exception during asyncio.run() shutdown\ntask: 1", False),
        ("asyncio", "/x/base_events.py", "slow callback", True),
    ],
)
def test_silenced_hides_orbax_messages_alone(name, path, message, is_shown):
    """Records of Orbax's code and of its abandoned writes are filtered; other records of the same
    loggers pass."""
    record = logging.LogRecord(name, logging.ERROR, path, 1, message, None, None)
    with storage_messages.silenced():
        assert bool(logging.getLogger(name).filter(record)) == is_shown
    assert logging.getLogger(name).filter(record)
