"""Adapter files: a trained adapter as one small safetensors file that names its base.

The file's header holds the adapter's config, the fingerprint of the base (`data.model_fingerprint`)
and the start of each new class.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from var_jax.config.adapter_config import AdapterConfig
from var_jax.config.strict import build, plain, require
from var_jax.io import array_file, model_directory
from var_jax.io.part_file import PartFile

FILE = PartFile("adapter", model_directory.ADAPTER, format=1, config_file="configs/adapters.py")
NAME = FILE.name


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
        "base_fingerprint": adapter.fingerprint,
        "adapter": plain(dataclasses.replace(adapter.config, base="")),
        "starts": list(adapter.starts),
    }
    FILE.save(directory, adapter.params, header)


def load(directory: epath.PathLike) -> Adapter:
    """Returns the adapter in a workdir of its training, or in another directory with its file.

    Raises:
      UserError: there is no adapter, or its file is damaged.
    """
    return dataclasses.replace(load_header(directory), params=FILE.load_params(directory))


def load_header(directory: epath.PathLike) -> Adapter:
    """Returns the adapter in a directory without its parameters.

    Raises:
      UserError: there is no adapter, or its header is damaged.
    """

    def fields(header: Mapping[str, Any]):
        fingerprint, starts = header["base_fingerprint"], header["starts"]
        sound = isinstance(fingerprint, str) and all(
            start is None or type(start) is int for start in starts
        )
        return fingerprint, starts, dict(header["adapter"]), sound

    fingerprint, starts, values, sound = FILE.read_header(directory, fields)
    path = epath.Path(directory) / NAME
    config = build(AdapterConfig, values, f"{path}: adapter")
    require(
        sound and len(starts) == len(config.class_names),
        f"the header of {path}",
        "damaged",
        "whole",
    )
    return Adapter(config, fingerprint, tuple(starts), {}, str(directory))
