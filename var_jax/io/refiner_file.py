"""Refiner files: a trained logit refiner as one small safetensors file that names its base.

The file's header holds the refiner's config and the fingerprints of the model that it was trained
for (`data.model_fingerprint`), with and without its decoder, as JSON under the key `HEADER`.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from etils import epath

from var_jax.config.refiner_config import RefinerConfig
from var_jax.config.strict import build, plain
from var_jax.errors import UserError, require_path
from var_jax.io import array_file, model_directory
from var_jax.io.finite import require_finite

NAME = model_directory.REFINER
HEADER = "var_jax_refiner"
REFINER_FORMAT = 1


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
        "format": REFINER_FORMAT,
        "base_fingerprint": refiner.fingerprint,
        "base_sampling_fingerprint": refiner.sampling_fingerprint,
        "refiner": plain(dataclasses.replace(refiner.config, base="")),
    }
    array_file.save_arrays(directory / NAME, refiner.params, {HEADER: json.dumps(header)})


def load(directory: epath.PathLike) -> RefinerFile:
    """Returns the refiner in a workdir of its training, or in another directory with its file.

    Raises:
      UserError: there is no refiner, or its file is damaged.
    """
    refiner = load_header(directory)
    path = epath.Path(directory) / NAME
    params = array_file.load_arrays(path)
    require_finite(array_file.named_leaves(params), str(path))
    return dataclasses.replace(refiner, params=params)


def load_header(directory: epath.PathLike) -> RefinerFile:
    """Returns the refiner in a directory without its parameters.

    Raises:
      UserError: there is no refiner, or its header is damaged.
    """
    require_path(directory, "the refiner's directory")
    path = epath.Path(directory) / NAME
    if not path.exists():
        raise UserError(
            f"no refiner in {directory}: there is no {NAME}; give a workdir of "
            "`train --config configs/refiner.py` after its first checkpoint"
        )
    metadata = array_file.load_metadata(path)
    try:
        header = json.loads(metadata[HEADER])
        file_format, fingerprint = header["format"], header["base_fingerprint"]
        sampling = header.get("base_sampling_fingerprint", "")
        values = dict(header["refiner"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is no refiner's file: its header does not say so") from error
    if file_format != REFINER_FORMAT:
        raise UserError(
            f"{path} is of format {file_format!r}, and this version reads {REFINER_FORMAT}; update "
            "var-jax"
        )
    config = build(RefinerConfig, values, f"{path}: refiner")
    return RefinerFile(config, str(fingerprint), {}, str(sampling))
