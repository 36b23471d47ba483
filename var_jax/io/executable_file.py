"""Files of one compiled program, with a description of what it is compiled for.

JAX serializes a compiled program as a pickle of its own classes around the compiler's bytes, and an
unpickler calls whatever a pickle names. Before a file is unpickled, a pass over it calls nothing
and refuses every name but those of `CLASSES`. The compiler's bytes are machine code, which nothing
can check: load a file only if you trust its writer as you would a program's.
"""

import hashlib
import io
import json
import pickle
from collections.abc import Sequence
from typing import Any, BinaryIO

import jax
import numpy as np
from etils import epath
from jax.experimental import serialize_executable

from var_jax.errors import UserError
from var_jax.io import array_file
from var_jax.io.system_errors import one_line

PROGRAM, DESCRIPTION, DIGEST = "program", "executable", "sha256"
LIBRARIES = ("jax", "jaxlib", "numpy")
# Of JAX and numpy: plain descriptions of arguments, layouts and devices, and what rebuilds them.
CLASSES = {
    "AbstractDevice",
    "AbstractMesh",
    "AllArgsInfo",
    "ArgInfo",
    "AxisType",
    "DebugInfo",
    "DeviceList",
    "GSPMDSharding",
    "Layout",
    "ManualAxisType",
    "MemorySpace",
    "Mesh",
    "P",
    "PartitionSpec",
    "ShapedArray",
    "SingleDeviceSharding",
    "UnloadedMeshExecutable",
    "_reconstruct",
    "_unpickle_gspmd_sharding",
    "_unpickle_named_sharding",
    "_unpickle_single_device_sharding",
    "dtype",
    "ndarray",
}


def save(path: epath.PathLike, compiled: jax.stages.Compiled, description: dict[str, Any]):
    """Writes a compiled program and its description, plain values for JSON, to one file.

    Raises:
      UserError: the file cannot be written.
    """
    content, _, _ = serialize_executable.serialize(compiled)
    _check(io.BytesIO(content))  # so that what is written can be read
    texts = {
        DESCRIPTION: json.dumps(description),
        DIGEST: hashlib.sha256(content).hexdigest(),
    }
    array_file.save_arrays(path, {PROGRAM: np.frombuffer(content, np.uint8)}, texts)


def read_description(path: epath.PathLike) -> dict[str, Any]:
    """Returns the description of a file's program, without loading the program.

    Raises:
      UserError: there is no such file, or it is of another kind.
    """
    texts = array_file.load_metadata(path)
    try:
        description = json.loads(texts[DESCRIPTION])
    except (KeyError, ValueError) as error:
        raise _other_kind(path) from error
    if not isinstance(description, dict) or DIGEST not in texts:
        raise _other_kind(path)
    return description


def load(
    path: epath.PathLike, in_tree: Any, out_tree: Any, devices: Sequence[jax.Device]
) -> jax.stages.Compiled:
    """Returns a file's program, for devices of the kind and number that it is compiled for.

    Args:
      in_tree: tree of the program's arguments, `(arguments, keywords)`.
      out_tree: tree of its results.
      devices: all devices of the program.
    Raises:
      UserError: the file is missing, damaged or of another kind, names a class that no saved
        program has, or its program does not load on the devices.
    """
    digest = array_file.load_metadata(path).get(DIGEST)
    array = array_file.load_arrays(path).get(PROGRAM)
    if digest is None or not isinstance(array, np.ndarray):
        raise _other_kind(path)
    content = array.tobytes()
    if hashlib.sha256(content).hexdigest() != digest:
        raise UserError(f"{path} is damaged: its program is not the one that was written")
    try:
        _check(io.BytesIO(content))
    except Exception as error:  # an unpickler may raise almost anything
        raise UserError(f"{path} is no compiled program: {one_line(error)}") from error
    try:
        return serialize_executable.deserialize_and_load(
            content, in_tree, out_tree, devices[0].client, devices
        )
    except Exception as error:  # the errors of a plug-in, for a program of another version of it
        raise UserError(f"{path} does not load on these devices: {one_line(error)}") from error


def _other_kind(path: epath.PathLike) -> UserError:
    return UserError(f"{path} is no saved executable; give what `var-jax aot --save` wrote")


def _check(file: BinaryIO):
    """Raises `pickle.UnpicklingError` if a pickle names anything but `CLASSES`.

    The names that an unpickler looks up are texts of the pickle itself, so that the real one looks
    up the same.
    """
    _Checker(file).load()


class _Inert:
    """Stands for every object of a pickle while its names are checked; does nothing."""

    def __init__(self, *_, **__):
        pass

    def __setstate__(self, _):
        pass


class _Checker(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] in LIBRARIES and name in CLASSES:
            return _Inert
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no saved executable does")

    def persistent_load(self, pid: Any) -> Any:
        return _Inert()  # the compiler's bytes, a device, or the client
