"""The machine and the day of a measurement, for files of raw figures."""

import contextlib
import datetime
import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from var_jax.data import readahead


def describe(libraries: Sequence[str] = ("jax", "jaxlib")) -> dict[str, Any]:
    """Returns where, when and with what a figure is measured.

    Benchmark scripts write it beside their figures.

    Args:
      libraries: see `versions`.
    """
    return {
        "date": datetime.date.today().isoformat(),
        "processor": processor(),
        "cores": readahead.available_cpus(),
        "versions": versions(libraries),
    }


def versions(libraries: Sequence[str]) -> dict[str, str]:
    """Returns the versions of distributions by name, without those that are not installed."""
    result = {}
    for name in libraries:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            result[name] = importlib.metadata.version(name)
    return result


def processor() -> str:
    """Returns the processor's name as Linux has it, "unknown" elsewhere."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "unknown"
