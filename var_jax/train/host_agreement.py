"""Comparisons of a run's hosts before training: their settings and weights must be the same."""

import hashlib
from typing import Any

import jax
import numpy as np

from var_jax.config.strict import differences, plain
from var_jax.config.train import TrainConfig
from var_jax.devices import multihost

# Paths, and the number of processes that read, may differ between hosts.
OF_A_HOST = (
    "tokenizer_dir",
    "init_from",
    "branch_from",
    "adapter.base",
    "refiner.base",
    "data.data_dir",
    "data.source_dir",
    "data.tokens_dir",
    "data.workers",
    "loss.perceptual_weights",
    "loss.perceptual_heads",
    "adversarial.feature_weights",
    "alignment.tokens",
    "alignment.feature_weights",
)


def require_same_config(config: TrainConfig):
    """Compares the settings of all processes with those of process 0.

    Processes of different programs would wait for one another.

    Raises:
      UserError: the settings differ (on every process); the message names them.
    """

    def changed(first: Any, mine: Any) -> list[str]:
        return [text for text in differences(mine, first) if not text.startswith(OF_A_HOST)]

    multihost.require_same(
        "the settings", plain(config), changed, "give every host the same command and config"
    )


def require_same_weights(what: str, params: Any):
    """Compares weights that every process reads from its own copy of a file.

    A single process does nothing.

    Args:
      params: nested dicts of arrays on the host, or None.
    Raises:
      UserError: a process's weights are not process 0's (on every process).
    """
    if not multihost.is_multiprocess():
        return

    def changed(first: Any, mine: Any) -> list[str]:
        if mine == first:
            return []
        return [f"fingerprint {mine['fingerprint']}, not {first['fingerprint']}"]

    multihost.require_same(
        what, {"fingerprint": _digest(params)}, changed, "give every host the same files"
    )


def _digest(params: Any) -> str:
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()[:16]
