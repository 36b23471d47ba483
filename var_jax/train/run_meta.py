"""The record of how a run was started: its sizes, code, package versions and devices."""

import datetime
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax

from var_jax.objectives.base import Objective

PACKAGES = ("var-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def run_meta(objective: Objective[Any], command: str | None = None) -> dict[str, Any]:
    """Returns the contents of meta.json; nothing is computed on a device.

    Returns:
      "params": {"total", "body"} of the trained stage (`flops.param_count`; for a tokenizer, "body"
      leaves the codebook out); "tokens_per_image", "tokens_per_step"; "flops_per_image" and
      "flops_per_step" of training, by name of the definition: {"exact", "6nd", "dense"}, only
      {"exact"} for a tokenizer, and those of all parameters whatever `trainable` leaves as they
      are; "trainable", the config's key; "git" ({"commit", "dirty"}, None outside a repository);
      "versions"; "devices"; "host"; and of the last start "started" and "command", the
      command line, None where a program called `train`.
    """
    tokens, batch_size = objective.scales().total, objective.config.batch_size
    flops = objective.flops_by_definition()
    return {
        "params": objective.param_count(),
        "tokens_per_image": tokens,
        "tokens_per_step": tokens * batch_size,
        "flops_per_image": flops,
        "flops_per_step": {name: value * batch_size for name, value in flops.items()},
        "trainable": objective.config.trainable,
        "git": _git(),
        "versions": {"python": platform.python_version(), **_versions()},
        "devices": {
            "platform": jax.default_backend(),
            "kind": jax.devices()[0].device_kind,
            "count": jax.device_count(),
            "processes": jax.process_count(),
        },
        "host": platform.node(),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command,
    }


def _versions() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # a source tree that is not installed
            versions[name] = "unknown"
    return versions


def _git() -> dict[str, Any] | None:
    """Returns the commit of the source tree, and whether tracked files differ from it."""

    def git(*args: str) -> str:
        root = Path(__file__).parent
        return subprocess.run(
            ["git", "-C", root, *args], capture_output=True, text=True, timeout=10, check=True
        ).stdout

    try:
        return {
            "commit": git("rev-parse", "HEAD").strip(),
            "dirty": bool(git("status", "--porcelain", "--untracked-files=no").strip()),
        }
    except (OSError, subprocess.SubprocessError):
        return None
