"""Nested dicts of arrays as single safetensors files."""

import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save as serialize

from var_jax.errors import UserError
from var_jax.io import atomic
from var_jax.io.failed_downloads import refuse_failed_download
from var_jax.io.system_errors import one_line

DTYPES = {
    "BF16": jnp.dtype("bfloat16"),
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "BOOL": "bool",
    "U8": "uint8",
    "U32": "uint32",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
}
LARGEST_HEADER = 100_000_000  # bytes, as the library has it


def save_arrays(path: epath.PathLike, tree: Any, metadata: Mapping[str, str] | None = None):
    """Writes nested dicts of arrays atomically to one safetensors file with keys such as "a/b/c".

    `load_arrays` reads only the dtypes of `DTYPES` back, and a tuple as a dict of "0", "1", ...

    Args:
      metadata: texts that the file's header holds, which `load_metadata` reads.
    Raises:
      UserError: the file cannot be written.
    """
    path = epath.Path(path)
    flat = {name: np.ascontiguousarray(value) for name, value in named_leaves(tree)}
    try:
        atomic.write(path, [serialize(flat, dict(metadata) if metadata else None)])
    except OSError as error:
        raise UserError(f"cannot write {path}: {one_line(error)}") from error


def load_arrays(path: epath.PathLike) -> dict:
    """Returns the nested dicts of numpy arrays that `save_arrays` wrote.

    Raises:
      UserError: the file is missing, truncated or of another kind.
    """
    refuse_failed_download(path, "safetensors")
    try:
        # The library's own loader of numpy arrays has no bfloat16.
        flat = deserialize(epath.Path(path).read_bytes())
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} does not read as safetensors: {one_line(error)}") from error
    tree: dict = {}
    for name, value in sorted(flat, key=lambda item: item[0]):  # the library's order is random
        if value["dtype"] not in DTYPES:
            raise UserError(f"{path}: {name} holds {value['dtype']}, which is not read here")
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = np.frombuffer(value["data"], DTYPES[value["dtype"]]).reshape(value["shape"])
    return tree


def load_metadata(path: epath.PathLike) -> dict[str, str]:
    """Returns the texts in the header of a safetensors file, without reading its arrays.

    Raises:
      UserError: the file is missing, truncated or of another kind.
    """
    refuse_failed_download(path, "safetensors")
    try:
        with epath.Path(path).open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > LARGEST_HEADER:
                raise ValueError("its header is too long")
            header = json.loads(file.read(length))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} does not read as safetensors: {one_line(error)}") from error
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    return metadata if isinstance(metadata, dict) else {}


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """Returns ("a/b/0", leaf) for every leaf of nested dicts, tuples or dataclasses."""
    return [
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    ]
