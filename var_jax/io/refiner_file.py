"""Refiner files: a trained logit refiner as one small safetensors file that names its base.

The file's header holds the refiner's config and the fingerprints of the model that it was trained
for (`data.model_fingerprint`), with and without its decoder.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from etils import epath

from var_jax.config.refiner_config import RefinerConfig
from var_jax.config.strict import build, plain
from var_jax.io import model_directory
from var_jax.io.part_file import PartFile

FILE = PartFile("refiner", model_directory.REFINER, format=1, config_file="configs/refiner.py")
NAME = FILE.name


@dataclasses.dataclass(frozen=True)
class RefinerFile:
    """A trained refiner.

    Attributes:
      config: its config; `base` is "", as the fingerprint identifies the base on any machine.
      fingerprint: the fingerprint of the base.
      params: its parameters on the host; empty where only the header was read.
      sampling_fingerprint: that of the base without its decoder; "" in files of before.
    """

    config: RefinerConfig
    fingerprint: str
    params: dict[str, Any]
    sampling_fingerprint: str = ""


def save(directory: epath.Path, refiner: RefinerFile):
    """Writes a refiner to a directory, completely or not at all.

    Raises:
      UserError: the file cannot be written.
    """
    header = {
        "base_fingerprint": refiner.fingerprint,
        "base_sampling_fingerprint": refiner.sampling_fingerprint,
        "refiner": plain(dataclasses.replace(refiner.config, base="")),
    }
    FILE.save(directory, refiner.params, header)


def load(directory: epath.PathLike) -> RefinerFile:
    """Returns the refiner in a workdir of its training, or in another directory with its file.

    Raises:
      UserError: there is no refiner, or its file is damaged.
    """
    return dataclasses.replace(load_header(directory), params=FILE.load_params(directory))


def load_header(directory: epath.PathLike) -> RefinerFile:
    """Returns the refiner in a directory without its parameters.

    Raises:
      UserError: there is no refiner, or its header is damaged.
    """

    def fields(header: Mapping[str, Any]):
        sampling = header.get("base_sampling_fingerprint", "")
        return header["base_fingerprint"], sampling, dict(header["refiner"])

    fingerprint, sampling, values = FILE.read_header(directory, fields)
    config = build(RefinerConfig, values, f"{epath.Path(directory) / NAME}: refiner")
    return RefinerFile(config, str(fingerprint), {}, str(sampling))
