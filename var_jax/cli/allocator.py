"""Restarts a command with glibc's allocator set for XLA on CPUs.

On a CPU, XLA allocates the temporaries of a program at every execution and frees them after it. By
default glibc gives large blocks back to the kernel and maps them anew, so that the kernel clears
the same memory page by page at every step: in small training runs a third of the processor's time.
glibc reads its tunables when a process starts, so they cannot be set by the process itself.
"""

import os
import platform
import re
import sys
from collections.abc import Sequence
from pathlib import Path

# Commands that run compiled programs, but `aot`, which runs none of those that it compiles.
COMPUTING = frozenset(
    {
        "train",
        "sample",
        "reconstruct",
        "edit",
        "demo",
        "tokenize",
        "generate",
        "evaluate",
        "quickstart",
        "bench",
    }
)
SWITCH = "VAR_JAX_ALLOCATOR"
TUNABLES = "GLIBC_TUNABLES"
OLDEST_GLIBC = (2, 35)  # the first with hugetlb
KEPT = 2**40  # bytes: more than any block, so that freed memory stays the process's own

# hugetlb=1 asks for huge pages, which cuts page faults by 512 and misses of the TLB. The thresholds
# keep freed memory. Only blocks of the main arena can be large without a mapping of their own.
FOR_XLA = ":".join(
    (
        "glibc.malloc.hugetlb=1",
        f"glibc.malloc.mmap_threshold={KEPT}",
        f"glibc.malloc.trim_threshold={KEPT}",
        "glibc.malloc.arena_max=1",
    )
)
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
ACCELERATORS = ("nvidia0", "accel0", "accel/accel0", "vfio/0", "kfd")  # in /dev


def restart_with_tunables(argv: Sequence[str]):
    """Replaces this process by the same command with `FOR_XLA` in its environment, once.

    It returns where that would not help: for commands that compute nothing, where a GPU or TPU
    computes, where glibc or the kernel cannot, where the user has set tunables, and where
    `VAR_JAX_ALLOCATOR=system` says not to.

    Args:
      argv: the command line without the program's name.
    """
    if argv and argv[0] in COMPUTING and is_useful(os.environ):
        # The same process id: whoever waits for this process, or sends it signals, sees no change.
        os.execve(sys.executable, sys.orig_argv, {**os.environ, TUNABLES: FOR_XLA})


def is_useful(environment) -> bool:
    """Returns whether programs run on the CPU and the tunables are unset and supported."""
    if TUNABLES in environment or environment.get(SWITCH) == "system":
        return False
    platforms = environment.get("JAX_PLATFORMS", "")
    if platforms not in ("", "cpu"):
        return False
    if not platforms and any((Path("/dev") / name).exists() for name in ACCELERATORS):
        return False
    return _glibc_version() >= OLDEST_GLIBC and _has_huge_pages()


def _glibc_version() -> tuple[int, ...]:
    """Returns the version of the C library, (0,) where it is another one."""
    if platform.system() != "Linux":
        return (0,)
    try:
        name = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (ValueError, OSError):
        name = ""
    match = re.fullmatch(r"glibc (\d+)\.(\d+).*", name)
    return tuple(map(int, match.groups())) if match else (0,)


def _has_huge_pages() -> bool:
    """Returns whether the kernel gives huge pages to those who ask for them."""
    try:
        return "[never]" not in HUGE_PAGES.read_text()
    except OSError:
        return False
