"""The file in which a search keeps the figures of the programs that it has compiled."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

from etils import epath

from var_jax.config.strict import plain
from var_jax.config.train import TrainConfig
from var_jax.errors import UserError
from var_jax.io import atomic
from var_jax.io.json import read_object_if_exists
from var_jax.perf.tpu_slices import Slice
from var_jax.train import toolchain

# Figures depend on the code of the step, and on that which reads them off a compiled program.
CODE = (*toolchain.CODE, "perf")


class TriedCandidates:
    """Figures by candidate in a file, of one config, slice, version of the code and compiler.

    Figures of another config, slice or version are left out, and replaced by the first new ones.

    Args:
      path: the file; None to keep figures in memory alone.
      tell: prints a line if there are figures that are left out.
    Raises:
      UserError: the file is damaged, or was written by another program.
    """

    def __init__(
        self,
        path: epath.Path | None,
        config: TrainConfig,
        tpu_slice: Slice,
        tell: Callable[[str], None],
    ):
        self._path = path
        conditions = {
            "config": plain(config),
            "slice": tpu_slice.name,
            "versions": toolchain.versions("tpu"),
            "sources": toolchain.sources(CODE),
            "environment": toolchain.environment("tpu"),
        }
        self._conditions = _digest(conditions)
        self._figures: dict[str, Any] = {}
        stored = None if path is None else read_object_if_exists(path)
        if stored is None:
            return
        if stored.get("figures_sha256") != _digest(stored.get("figures")):
            raise UserError(
                f"{path} is damaged, or was not written by a search; move it away, and the search "
                "compiles its candidates anew"
            )
        if stored.get("conditions") == self._conditions:
            self._figures = stored["figures"]
        else:
            tell(
                f"{path} is of another config, slice or version of the code, and starts from the "
                "beginning"
            )

    def get(self, candidate: str) -> dict[str, Any] | None:
        """Returns the figures of a candidate, given by its name; None before it is compiled."""
        return self._figures.get(candidate)

    def add(self, candidate: str, figures: dict[str, Any]) -> dict[str, Any]:
        """Returns the figures of a candidate, which are in the file from now on."""
        self._figures[candidate] = figures
        if self._path is not None:
            values = {
                "conditions": self._conditions,
                "figures_sha256": _digest(self._figures),
                "figures": self._figures,
            }
            atomic.save(self._path, json.dumps(values, indent=1), "the candidates")
        return figures


def _digest(value: Any) -> str:
    """Returns a fingerprint of a value of JSON, which is the same after it is written and read."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
