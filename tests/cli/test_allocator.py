"""Commands start again once with glibc's tunables for XLA on CPUs, where those help."""

import os
import subprocess
import sys

import pytest

from var_jax.cli import allocator

SCRIPT = """
import os
from var_jax.cli import allocator
print(os.getpid(), os.environ.get("GLIBC_TUNABLES"), flush=True)
allocator.restart_with_tunables(["COMMAND"])
print("goes on")
"""
PLAIN = {
    name: value
    for name, value in os.environ.items()
    if name not in (allocator.TUNABLES, allocator.SWITCH)
} | {"JAX_PLATFORMS": "cpu"}

needs_glibc = pytest.mark.skipif(
    not allocator.is_useful(PLAIN), reason="needs Linux with glibc 2.35 and huge pages"
)


def run(command: str, **environment: str) -> list[str]:
    """Returns the lines that a process prints which would restart for `command`."""
    script = SCRIPT.replace("COMMAND", command)
    result = subprocess.run(
        [sys.executable, "-c", script],
        env=PLAIN | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout.splitlines()


@needs_glibc
def test_restart_happens_once_in_the_same_process():
    """The first line is of the process before the restart, the second of the one after it: the same
    id, and the tunables in its environment, which keep it from restarting again."""
    before, after, end = run("train")
    process_id = before.split()[0]
    assert before == f"{process_id} None"
    assert after == f"{process_id} {allocator.FOR_XLA}"
    assert end == "goes on"


@needs_glibc
@pytest.mark.parametrize(
    "command, environment",
    [
        ("status", {}),
        ("aot", {}),
        ("train", {"GLIBC_TUNABLES": "glibc.malloc.check=0"}),
        ("train", {"VAR_JAX_ALLOCATOR": "system"}),
        ("train", {"JAX_PLATFORMS": "cuda,cpu"}),
    ],
)
def test_restart_leaves_other_commands_and_settings_alone(command, environment):
    """A command without programs, one with the user's own tunables, one with the switch off and one
    for other devices go on without a restart."""
    lines = run(command, **environment)
    assert len(lines) == 2 and lines[1] == "goes on"


@pytest.mark.parametrize(
    "enabled, version, useful",
    [
        ("always [madvise] never", "glibc 2.36", True),
        ("[always] madvise never", "glibc 2.35", True),
        ("always madvise [never]", "glibc 2.36", False),
        ("always [madvise] never", "glibc 2.34", False),
        ("always [madvise] never", "musl 1.2", False),
    ],
)
def test_is_useful_asks_the_kernel_and_the_library(enabled, version, useful, monkeypatch, tmp_path):
    """Huge pages must not be switched off, and the C library must be glibc 2.35 or newer."""
    file = tmp_path / "enabled"
    file.write_text(enabled)
    monkeypatch.setattr(allocator, "HUGE_PAGES", file)
    monkeypatch.setattr(allocator.platform, "system", lambda: "Linux")
    monkeypatch.setattr(allocator.os, "confstr", lambda name: version)
    assert allocator.is_useful({"JAX_PLATFORMS": "cpu"}) is useful


def test_is_useful_leaves_a_machine_with_an_accelerator_alone(monkeypatch, tmp_path):
    """JAX takes the accelerator where no platform is named, and not where `cpu` is."""
    file = tmp_path / "enabled"
    file.write_text("[always]")
    monkeypatch.setattr(allocator, "HUGE_PAGES", file)
    monkeypatch.setattr(allocator.platform, "system", lambda: "Linux")
    monkeypatch.setattr(allocator.os, "confstr", lambda name: "glibc 2.39")
    monkeypatch.setattr(allocator, "ACCELERATORS", ("null",))
    assert not allocator.is_useful({})
    assert allocator.is_useful({"JAX_PLATFORMS": "cpu"})
