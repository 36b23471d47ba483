"""meta.json: what a run is and where it runs, for whoever reads its losses later."""

import datetime
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax
import numpy as np

from var_jax.scaling import flops
from var_jax.train.config import TrainConfig
from var_jax.train.state import init_params

PACKAGES = ("var-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def run_meta(config: TrainConfig) -> dict[str, Any]:
    """What meta.json holds; nothing is computed on a device.

    Returns:
      "params": {"total", "body"} of the trained stage (`flops.param_count`; of a tokenizer, "body" leaves the
      codebook out); "tokens_per_image", "tokens_per_step"; "flops_per_image" and "flops_per_step" of training, by
      name of the definition: {"exact", "6nd", "dense"}, a tokenizer's {"exact"} alone; "git" ({"commit", "dirty"},
      None outside a repository); "versions"; "devices"; "host"; "started".
    """
    tokens = config.tokenizer.scales.total
    an_image = _flops(config)
    return {
        "params": _params(config),
        "tokens_per_image": tokens,
        "tokens_per_step": tokens * config.batch_size,
        "flops_per_image": an_image,
        "flops_per_step": {name: value * config.batch_size for name, value in an_image.items()},
        "git": _git(),
        "versions": {"python": platform.python_version(), **_versions()},
        "devices": {"platform": jax.default_backend(), "kind": jax.devices()[0].device_kind,
                    "count": jax.device_count(), "processes": jax.process_count()},
        "host": platform.node(),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _params(config: TrainConfig) -> dict[str, int]:
    if config.stage == "transformer":
        return flops.param_count(config.transformer)
    shapes = jax.eval_shape(init_params(config), jax.random.key(0))
    total = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))
    return {"total": total, "body": total - config.tokenizer.codebook_parameters}


def _flops(config: TrainConfig) -> dict[str, float]:
    if config.stage == "transformer":
        return {"exact": flops.train_flops_per_image(config.transformer),
                "6nd": flops.six_nd_train_flops(config.transformer),
                "dense": flops.dense_attention_train_flops(config.transformer)}
    return {"exact": flops.tokenizer_train_flops(config.tokenizer)}


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # run from a source tree that is not installed
            found[name] = "unknown"
    return found


def _git() -> dict[str, Any] | None:
    """Commit of the source tree, and whether tracked files differ from it."""

    def git(*args: str) -> str:
        root = Path(__file__).parent
        return subprocess.run(["git", "-C", root, *args], capture_output=True, text=True, timeout=10, check=True).stdout

    try:
        return {"commit": git("rev-parse", "HEAD").strip(),
                "dirty": bool(git("status", "--porcelain", "--untracked-files=no").strip())}
    except (OSError, subprocess.SubprocessError):
        return None
