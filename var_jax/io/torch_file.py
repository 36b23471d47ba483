"""Reads the tensors of checkpoint files one by one, without PyTorch and without running code.

PyTorch's own format, a pickle that rebuilds tensors and their raw bytes next to it, is read here
because no other library than PyTorch reads it. The unpickler knows the few names for tensors and
refuses any other, and every length that a file declares is compared with the bytes that are there
before it is used.
"""

import collections
import contextlib
import io
import math
import os
import pickle
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np
from etils import epath
from safetensors import SafetensorError, safe_open

from var_jax.errors import UserError
from var_jax.io.failed_downloads import refuse_failed_download

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # PyTorch's format before 1.6
MAX_DEPTH, MAX_VALUES = 16, 2**20  # dicts that contain each other have no end
MAX_DEFLATE = 1032  # most bytes that one compressed byte can give
# The errors of the readers for damaged bytes; an unpickler may raise almost anything.
DAMAGE = (
    OSError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
    SafetensorError,
    pickle.UnpicklingError,
    struct.error,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)
STORAGES = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}


class Tensors(Mapping[str, np.ndarray]):
    """The tensors of a file by dotted name; each is read on access.

    `shapes` has the shape of each tensor, for which none is read.
    """

    def __init__(
        self, path: str, shapes: dict[str, tuple[int, ...]], read: Callable[[str], np.ndarray]
    ):
        self.shapes = shapes
        self._path, self._read = path, read

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.shapes:
            raise KeyError(name)
        with _explained(self._path):
            return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


class _UnreadableError(Exception):
    """Raised where a file cannot be read as weights.

    `_explained` makes it a UserError with the file's name.
    """


def read_tensors(path: str | os.PathLike) -> Tensors:
    """Returns the tensors of a `.pth`/`.pt`, `.safetensors` or `.npz` file.

    The file may be in a bucket, unless it is `.safetensors`.

    Containers within a PyTorch checkpoint add their names: `trainer.vae_local.quant_conv.bias`.
    Other values, such as step counts and settings, are left out.

    Raises:
      UserError: the file is missing, of another kind, damaged, or its pickle names anything but
        tensors; reading a tensor raises it too.
    """
    path = os.fspath(path)
    readers = {".pth": _pytorch, ".pt": _pytorch, ".npz": _npz, ".safetensors": _safetensors}
    reader = readers.get(os.path.splitext(path)[1].lower())
    if reader is None:
        raise UserError(f"{path}: weights are read from {', '.join(readers)}")
    refuse_failed_download(path, "weights")
    with _explained(path):
        _require_format(path)
        return Tensors(path, *reader(path))


def _require_format(path: str):
    """Raises an error if a file's format is not the one that its name says."""
    with epath.Path(path).open("rb") as file:
        start, name = file.read(10), path.lower()
    if name.endswith(".safetensors") and start.startswith(b"PK"):
        raise _UnreadableError(
            "a zip file, as PyTorch and numpy write; name it .pth or .npz, as what it is"
        )
    # Eight bytes of the header's length, and JSON.
    if not name.endswith(".safetensors") and start[8:10] == b'{"' and not start.startswith(b"PK"):
        raise _UnreadableError("a safetensors file; name it .safetensors")


@contextlib.contextmanager
def _explained(path: str):
    try:
        yield
    except _UnreadableError as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}") from error
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such file") from error
    except DAMAGE as error:
        detail = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise UserError(f"{path}: damaged, or not a checkpoint ({detail})") from error


# Each reader returns ({name: shape}, a function from a name to its array).


def _safetensors(path: str):
    file = safe_open(path, framework="numpy")
    names = file.keys()
    return {name: tuple(file.get_slice(name).get_shape()) for name in names}, file.get_tensor


def _npz(path: str):
    archive = _zip(path)
    headers = {}
    for info in archive.infolist():
        with archive.open(info) as member:
            version = np.lib.format.read_magic(member)
            header = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            shape, _, dtype = header(member)
            if (
                dtype.hasobject
                or dtype.itemsize * math.prod(shape) != info.file_size - member.tell()
            ):
                raise _UnreadableError(
                    f"{info.filename} does not hold the {dtype} of shape {shape} that it declares"
                )
            headers[info.filename.removesuffix(".npy")] = info, shape

    def read(name: str) -> np.ndarray:
        with archive.open(headers[name][0]) as member:
            return np.lib.format.read_array(member, allow_pickle=False)

    return {name: shape for name, (_, shape) in headers.items()}, read


def _zip(path: str) -> zipfile.ZipFile:
    file = epath.Path(path).open("rb")
    archive, file_size = zipfile.ZipFile(file), file.seek(0, io.SEEK_END)
    for info in archive.infolist():
        # A size that the file's bytes cannot give is refused before memory is allocated for it.
        max_ratio = 1 if info.compress_type == zipfile.ZIP_STORED else MAX_DEFLATE
        if info.compress_size > file_size or info.file_size > max_ratio * info.compress_size:
            raise _UnreadableError(
                f"{info.filename} declares {info.file_size} bytes, more than the file can hold"
            )
    return archive


class Storage(NamedTuple):
    """A PyTorch storage that a pickle refers to by its key; `size` counts its elements."""

    key: str
    dtype: np.dtype
    size: int


class Tensor(NamedTuple):
    """A tensor as a view of a storage; its offset and strides count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _pytorch(path: str):
    file = epath.Path(path).open("rb")
    if file.read(4) == b"PK\3\4":
        tree, load = _pytorch_zip(_zip(path))
        file.close()
    else:
        file.seek(0)
        tree, load = _pytorch_legacy(file)
    tensors = dict(_leaves(tree, "", 0, iter(range(MAX_VALUES))))
    if not tensors:
        raise _UnreadableError("it holds no tensors by name")
    # Tensors may be views of one storage: it is not read again for each.
    last_storage: Storage | None = None
    last_numbers: np.ndarray | None = None

    def read(name: str) -> np.ndarray:
        nonlocal last_storage, last_numbers
        tensor = tensors[name]
        if last_numbers is None or last_storage != tensor.storage:
            last_numbers = None  # frees the memory before the next one is read
            last_numbers, last_storage = load(tensor.storage), tensor.storage
        flat, itemsize = last_numbers[tensor.offset :], tensor.storage.dtype.itemsize
        strides = [n * itemsize for n in tensor.strides]
        return np.lib.stride_tricks.as_strided(flat, tensor.shape, strides, writeable=False)

    return {name: tensor.shape for name, tensor in tensors.items()}, read


def _pytorch_zip(archive: zipfile.ZipFile):
    names = archive.namelist()
    if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
        raise _UnreadableError("a compressed zip file; PyTorch's are not")
    pickles = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise _UnreadableError("a zip file without PyTorch's data.pkl")
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}constants.pkl" in names:
        raise _UnreadableError("a TorchScript program; give a state dict that torch.save wrote")
    order = archive.read(f"{folder}byteorder") if f"{folder}byteorder" in names else b"little"

    def check(storage: Storage):
        info = archive.getinfo(f"{folder}data/{storage.key}")
        if info.file_size != storage.size * storage.dtype.itemsize:
            raise _UnreadableError(
                f"storage {storage.key} holds {info.file_size} bytes for {storage.size} "
                f"{storage.dtype}"
            )

    def load(storage: Storage) -> np.ndarray:
        data = np.frombuffer(archive.read(f"{folder}data/{storage.key}"), storage.dtype)
        return data.byteswap() if order == b"big" else data

    return _unpickle(io.BytesIO(archive.read(pickles[0])), check), load


def _pytorch_legacy(file: BinaryIO):
    """Reads PyTorch's format before 1.6.

    It consists of pickles of a magic number, protocol, machine, the objects and the storages' keys,
    and then of lengths and bytes.
    """
    claimed: dict[str, Storage] = {}

    def note(storage: Storage):
        if claimed.setdefault(storage.key, storage) != storage:
            raise _UnreadableError(f"storage {storage.key} is declared twice, differently")

    if _unpickle(file, note) != MAGIC or _unpickle(file, note) != PROTOCOL:
        raise _UnreadableError("neither a zip file nor the format before PyTorch 1.6")
    little = _unpickle(file, note)["little_endian"]
    tree = _unpickle(file, note)
    places = {}
    for key in _unpickle(file, note):
        storage, (size,) = claimed[key], struct.unpack("<q" if little else ">q", file.read(8))
        start = file.tell()
        end = file.seek(storage.size * storage.dtype.itemsize, io.SEEK_CUR)
        if size != storage.size or end > file.seek(0, io.SEEK_END):
            raise _UnreadableError(
                f"storage {key} should hold {storage.size} {storage.dtype}, and does not"
            )
        places[key] = start
        file.seek(end)
    if missing := claimed.keys() - places:
        raise _UnreadableError(f"storage {min(missing)} is not there")

    def load(storage: Storage) -> np.ndarray:
        file.seek(places[storage.key])
        data = np.frombuffer(file.read(storage.size * storage.dtype.itemsize), storage.dtype)
        return data if little else data.byteswap()

    return tree, load


def _unpickle(file: BinaryIO, check: Callable[[Storage], None]) -> Any:
    """Returns the next pickle of `file`, with `Tensor` for tensors.

    `check` is called with every storage that it names.
    """
    start = file.tell()
    # Python's unpickler allocates memory for any memo index and any length, even beyond the end of
    # the file.
    indices = [
        arg
        for op, arg, _ in pickletools.genops(file)
        if op.name.endswith("PUT") and isinstance(arg, int)
    ]
    end = file.tell()
    if any(index > end - start for index in indices):
        raise _UnreadableError("its pickle numbers more objects than it has bytes")
    file.seek(start)
    return _Unpickler(io.BytesIO(file.read(end - start)), check).load()


class _Unpickler(pickle.Unpickler):
    """Unpickles tensors, their storages and ordered dicts; any other global is refused by name."""

    def __init__(self, file: BinaryIO, check: Callable[[Storage], None]):
        super().__init__(file)
        self._check = check

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch" and name in STORAGES:
            return name
        # Functions are created anew each time: a pickle can set attributes on an object it gets.
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda *args: _rebuild(*args)
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda tensor, *_: tensor
        raise _UnreadableError(
            f"its pickle names {module}.{name}; weights need tensors and dicts only"
        )

    def persistent_load(self, pid: Any) -> Storage:
        match pid:
            case ("storage", str(kind), str(key), _, int(size)) | (
                "storage",
                str(kind),
                str(key),
                _,
                int(size),
                None,
            ):
                if kind in STORAGES and size >= 0:
                    storage = Storage(key, STORAGES[kind], size)
                    self._check(storage)
                    return storage
        raise _UnreadableError(
            f"its pickle refers to {str(pid)[:80]}, which is not a storage of numbers"
        )


def _rebuild(storage: Any, offset: Any, shape: Any, strides: Any, *_) -> Tensor:
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, Storage) or not all(isinstance(n, int) and n >= 0 for n in numbers):
        raise _UnreadableError("a tensor that is not described by a storage and whole numbers")
    end = (
        offset + 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        if 0 not in shape
        else offset
    )
    if end > storage.size or math.prod(shape) > storage.size:
        raise _UnreadableError(
            f"a tensor of shape {tuple(shape)} does not fit its storage of {storage.size} numbers"
        )
    return Tensor(storage, offset, tuple(shape), tuple(strides))


def _leaves(node: Any, name: str, depth: int, steps: Iterator[int]) -> Iterator[tuple[str, Tensor]]:
    """Yields (dotted name, tensor) for every tensor in nested dicts, within a number of `steps`."""
    if isinstance(node, Tensor):
        yield name, node
    elif isinstance(node, dict):
        for key, value in node.items():
            if depth > MAX_DEPTH or next(steps, None) is None:
                raise _UnreadableError("its dicts hold each other, or too many values")
            if isinstance(key, str | int):
                yield from _leaves(value, f"{name}.{key}" if name else str(key), depth + 1, steps)
