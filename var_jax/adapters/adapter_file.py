"""Adapter files: a trained adapter as one small safetensors file that names its base.

The file's header holds the adapter's config, the fingerprint of the base (`data.model_fingerprint`)
and the start of each new class as JSON under the key `HEADER`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

import numpy as np
from etils import epath

from var_jax.config.adapter_config import AdapterConfig
from var_jax.config.strict import build, plain, require
from var_jax.errors import UserError, require_path
from var_jax.io import array_file, model_directory
from var_jax.io.finite import require_finite

NAME = model_directory.ADAPTER
HEADER = "var_jax_adapter"
ADAPTER_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Adapter:
    """A trained adapter.

    Attributes:
      config: its config; `base` is "", as the fingerprint identifies the base on any machine.
      fingerprint: the fingerprint of the base.
      starts: ids of the classes whose rows new classes start from, None for the mean of all.
      params: its parameters (`adapters.parameters`) on the host; empty where only the header was
        read.
      source: the directory that it was read from, for messages.
    """

    config: AdapterConfig
    fingerprint: str
    starts: tuple[int | None, ...]
    params: dict[str, Any]
    source: str = ""

    @property
    def identity(self) -> str:
        """A digest of the config and all numbers; equal adapters have the same."""
        digest = hashlib.sha256(f"{self.config} {self.fingerprint} {self.starts}".encode())
        for name, leaf in sorted(array_file.named_leaves(self.params)):
            digest.update(f"{name} {leaf.shape}".encode())
            digest.update(np.ascontiguousarray(leaf).tobytes())
        return digest.hexdigest()


def save(directory: epath.Path, adapter: Adapter):
    """Writes an adapter to a directory, completely or not at all.

    Raises:
      UserError: the file cannot be written.
    """
    header = {
        "format": ADAPTER_FORMAT,
        "base_fingerprint": adapter.fingerprint,
        "adapter": plain(dataclasses.replace(adapter.config, base="")),
        "starts": list(adapter.starts),
    }
    array_file.save_arrays(directory / NAME, adapter.params, {HEADER: json.dumps(header)})


def load(directory: epath.PathLike) -> Adapter:
    """Returns the adapter in a workdir of its training, or in another directory with its file.

    Raises:
      UserError: there is no adapter, or its file is damaged.
    """
    adapter = load_header(directory)
    path = epath.Path(directory) / NAME
    params = array_file.load_arrays(path)
    require_finite(array_file.named_leaves(params), str(path))
    return dataclasses.replace(adapter, params=params)


def load_header(directory: epath.PathLike) -> Adapter:
    """Returns the adapter in a directory without its parameters.

    Raises:
      UserError: there is no adapter, or its header is damaged.
    """
    require_path(directory, "the adapter's directory")
    path = epath.Path(directory) / NAME
    if not path.exists():
        raise UserError(
            f"no adapter in {directory}: there is no {NAME}; give a workdir of "
            "`train --config configs/adapters.py` after its first checkpoint"
        )
    metadata = array_file.load_metadata(path)
    try:
        header = json.loads(metadata[HEADER])
        file_format, fingerprint, starts = (
            header[key] for key in ("format", "base_fingerprint", "starts")
        )
        values = dict(header["adapter"])
        sound = isinstance(fingerprint, str) and all(
            start is None or type(start) is int for start in starts
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is no adapter's file: its header does not say so") from error
    if file_format != ADAPTER_FORMAT:
        raise UserError(
            f"{path} is of format {file_format!r}, and this version reads {ADAPTER_FORMAT}; update "
            "var-jax"
        )
    config = build(AdapterConfig, values, f"{path}: adapter")
    require(
        sound and len(starts) == len(config.class_names),
        f"the header of {path}",
        "damaged",
        "whole",
    )
    return Adapter(config, fingerprint, tuple(starts), {}, str(directory))
