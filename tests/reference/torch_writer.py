"""PyTorch's zip format from numpy arrays, and pickles that no PyTorch would write, opcode by
opcode."""

import struct
import zipfile
from pathlib import Path

import numpy as np

KINDS = {"float32": b"FloatStorage", "bfloat16": b"BFloat16Storage", "int64": b"LongStorage"}


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def integer(value: int) -> bytes:
    return b"L" + str(value).encode() + b"L\n"


def numbers(values) -> bytes:
    return b"(" + b"".join(map(integer, values)) + b"t"


def tensor(
    key: str, size: int, shape, strides, offset: int = 0, kind: bytes = b"FloatStorage"
) -> bytes:
    """The opcodes that rebuild a tensor on storage `key` of `size` numbers."""
    storage = (
        b"("
        + text("storage")
        + b"ctorch\n"
        + kind
        + b"\n"
        + text(key)
        + text("cpu")
        + integer(size)
        + b"tQ"
    )
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + integer(offset)
        + numbers(shape)
        + numbers(strides)
        + b"\x89ccollections\nOrderedDict\n)RtR"
    )


def mapping(items: dict[str, bytes]) -> bytes:
    """The opcodes of a dict of what other opcodes leave."""
    return b"}(" + b"".join(text(name) + value for name, value in items.items()) + b"u"


def write_zip(
    path: Path,
    opcodes: bytes,
    storages: dict[str, bytes],
    order: bytes = b"little",
    **others: bytes,
):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + opcodes + b".")
        archive.writestr("archive/byteorder", order)
        for key, data in storages.items():
            archive.writestr(f"archive/data/{key}", data)
        for name, data in others.items():
            archive.writestr(f"archive/{name}.pkl", data)


def save(path: Path, state: dict[str, np.ndarray]):
    """What torch.save would write for a state dict of contiguous tensors of the kinds above."""
    items, storages = {}, {}
    for i, (name, array) in enumerate(state.items()):
        strides = [s // array.itemsize for s in np.ascontiguousarray(array).strides]
        items[name] = tensor(str(i), array.size, array.shape, strides, kind=KINDS[array.dtype.name])
        storages[str(i)] = np.ascontiguousarray(array).tobytes()
    write_zip(path, mapping(items), storages)
