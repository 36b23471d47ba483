"""Files of tensors: PyTorch's formats without PyTorch, and files that are damaged or hostile."""

import json
import os
import struct
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from reference import torch_writer as writer
from var_jax.errors import UserError
from var_jax.io import torch_file
from var_jax.io.torch_file import read_tensors

REFERENCE = Path(__file__).parents[1] / "reference"
COUNTED = np.arange(12, dtype=np.float32).reshape(3, 4)


def refused(path) -> str:
    """The one line with which a file is refused, on opening it or on reading its tensors."""
    with pytest.raises(UserError) as caught:
        for _ in read_tensors(path).values():
            pass
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    return message


@pytest.mark.parametrize("name", ["torch_zip.pth", "torch_legacy.pth"])
def test_read_tensors_reads_files_that_pytorch_wrote(name):
    """Views, dtypes, scalars and empty tensors are those that the script in tests/reference
    saved."""
    tensors = read_tensors(REFERENCE / name)
    expected = {
        "plain": COUNTED,
        "transposed": COUNTED.T,
        "row": COUNTED[1],
        "half": COUNTED.astype(np.float16),
        "brain": COUNTED.astype(ml_dtypes.bfloat16),
        "double": COUNTED.astype(np.float64),
        "whole": np.arange(3),
        "flags": np.array([True, False]),
        "scalar": np.float32(1.5),
        "empty": np.zeros((0, 2), np.float32),
        "parameter": COUNTED[:1],
    }
    assert list(tensors) == list(expected)
    for key, array in expected.items():
        assert tensors.shapes[key] == tensors[key].shape
        assert tensors[key].dtype == array.dtype
        np.testing.assert_array_equal(tensors[key], array)


def test_read_tensors_names_those_of_a_training_checkpoint_by_dotted_names():
    """Nested dicts become dotted names, and entries that are no tensors are left out."""
    tensors = read_tensors(REFERENCE / "torch_training.pth")
    np.testing.assert_array_equal(
        tensors["trainer.var_wo_ddp.weight"], np.arange(6.0).reshape(3, 2)
    )
    assert tensors.shapes["trainer.vae_local.bias"] == (3,)
    assert tensors["trainer.var_opt.optimizer.state.0.step"] == 1
    assert not [name for name in tensors if name.startswith(("args", "epoch", "trainer.config"))]


def test_read_tensors_reads_npz_and_safetensors(tmp_path):
    """Both formats give the shapes and the values that were written, and bfloat16 keeps its
    type."""
    state = {"a.b": COUNTED, "c": np.ones(2, np.float16)}
    np.savez_compressed(tmp_path / "x.npz", **state)
    save_file({**state, "brain": COUNTED.astype(ml_dtypes.bfloat16)}, tmp_path / "x.safetensors")
    for name in ("x.npz", "x.safetensors"):
        tensors = read_tensors(tmp_path / name)
        assert tensors.shapes["a.b"] == (3, 4)
        for key, array in state.items():
            np.testing.assert_array_equal(tensors[key], array)
    assert tensors["brain"].dtype == ml_dtypes.bfloat16


def test_read_tensors_reads_big_endian_and_shared_storages(tmp_path):
    """A file of a big-endian machine gives the right numbers, and a tensor that is a column of
    another tensor's storage gives that column."""
    opcodes = writer.mapping(
        {
            "all": writer.tensor("0", 12, (3, 4), (4, 1)),
            "column": writer.tensor("0", 12, (3,), (4,), offset=1),
        }
    )
    writer.write_zip(
        tmp_path / "x.pt", opcodes, {"0": COUNTED.astype(">f4").tobytes()}, order=b"big"
    )
    tensors = read_tensors(tmp_path / "x.pt")
    np.testing.assert_array_equal(tensors["all"], COUNTED)
    np.testing.assert_array_equal(tensors["column"], COUNTED[:, 1])


def calls(name: str, *arguments: str) -> bytes:
    module, function = name.rsplit(".", 1)
    return f"c{module}\n{function}\n(".encode() + b"".join(map(writer.text, arguments)) + b"tR"


@pytest.mark.parametrize(
    "name",
    [
        "posix.system",
        "builtins.eval",
        "os.system",
        "torch.load",
        "numpy.load",
        "torch._utils._rebuild_device_tensor_from_numpy",
        "collections.Counter",
    ],
)
def test_read_tensors_refuses_other_globals_of_a_pickle_by_name(tmp_path, name):
    """A pickle may name no function but those that rebuild tensors: none of these runs, as a marker
    file shows."""
    marker = tmp_path / "ran"
    opcodes = writer.mapping(
        {"weight": writer.tensor("0", 12, (12,), (1,)), "x": calls(name, f"touch {marker}")}
    )
    writer.write_zip(tmp_path / "x.pth", opcodes, {"0": COUNTED.tobytes()})
    assert name in refused(tmp_path / "x.pth")
    (tmp_path / "legacy.pth").write_bytes(b"\x80\x02" + calls(name, f"touch {marker}") + b".")
    assert name in refused(tmp_path / "legacy.pth")
    assert not marker.exists()


@pytest.mark.parametrize(
    "opcodes, reason",
    [
        (writer.tensor("0", 2**40, (2**40,), (1,)), "holds 48 bytes"),
        (writer.tensor("0", 12, (13,), (1,)), "does not fit"),
        (writer.tensor("0", 12, (3, 4), (5, 1)), "does not fit"),
        (writer.tensor("0", 12, (2**40,), (0,)), "does not fit"),
        (writer.tensor("0", 12, (4,), (1,), offset=9), "does not fit"),
        (writer.tensor("0", 12, (4,), (-1,), offset=4), "whole numbers"),
        (writer.tensor("0", 12, (4,), (1,), offset=-1), "whole numbers"),
        (writer.tensor("0", 12, (12, 1), (1,)), "damaged"),
        (writer.tensor("1", 12, (12,), (1,)), "damaged"),
        (writer.tensor("0", 12, (12,), (1,), kind=b"UntypedStorage"), "torch.UntypedStorage"),
        (
            writer.tensor("0", 12, (12,), (1,)) + b"r\xff\xff\xff\x7f",
            "more objects than it has bytes",
        ),
        (writer.text("no tensor"), "no tensors"),
        (b"}q\x00" + writer.text("itself") + b"h\x00s", "hold each other"),
        (b"B\xff\xff\xff\x7f", "damaged"),
        (writer.text("storage") + b"Q", "not a storage"),
    ],
)
def test_read_tensors_refuses_a_pickle_that_declares_what_is_not_there(tmp_path, opcodes, reason):
    """Sizes, strides and offsets beyond the bytes, and broken opcodes, are refused before memory is
    taken."""
    writer.write_zip(
        tmp_path / "x.pth", writer.mapping({"weight": opcodes}), {"0": COUNTED.tobytes()}
    )
    assert reason in refused(tmp_path / "x.pth")


def test_read_tensors_lets_no_pickle_change_its_functions(tmp_path):
    """Setting attributes of the rebuilding function is ignored."""
    change = (
        b"ctorch._utils\n_rebuild_tensor_v2\nN}" + writer.text("__defaults__") + b"N\x85s\x86b0"
    )
    writer.write_zip(
        tmp_path / "x.pth",
        change + writer.mapping({"weight": writer.tensor("0", 12, (12,), (1,))}),
        {"0": COUNTED.tobytes()},
    )
    assert read_tensors(tmp_path / "x.pth").shapes == {"weight": (12,)}
    assert torch_file._rebuild.__defaults__ is None


def test_read_tensors_refuses_a_file_cut_short_at_any_length(tmp_path):
    """Every 37th length of four formats is refused in one line."""
    np.savez(tmp_path / "whole.npz", a=COUNTED)
    save_file({"a": COUNTED}, tmp_path / "whole.safetensors")
    for source in (
        REFERENCE / "torch_zip.pth",
        REFERENCE / "torch_legacy.pth",
        tmp_path / "whole.npz",
        tmp_path / "whole.safetensors",
    ):
        data, cut = source.read_bytes(), tmp_path / f"cut{source.suffix}"
        for length in range(0, len(data) - 1, 37):
            cut.write_bytes(data[:length])
            refused(cut)


def test_read_tensors_reads_or_refuses_a_file_with_wrong_bytes(tmp_path):
    """A flipped bit may lie in padding, and else is refused in one line."""
    random, reads = np.random.RandomState(0), 0
    for name in ("torch_zip.pth", "torch_legacy.pth"):
        data = bytearray((REFERENCE / name).read_bytes())
        for position in random.choice(len(data), 150, replace=False):
            wrong = data.copy()
            wrong[position] ^= 1 << random.randint(8)
            (tmp_path / name).write_bytes(wrong)
            try:
                reads += len(list(read_tensors(tmp_path / name).values()))
            except UserError as error:
                assert "\n" not in str(error)
    assert reads  # padding and file names may change


def test_read_tensors_refuses_objects_and_false_headers_in_npz(tmp_path):
    """An archive with pickled objects is refused, and so is one whose header claims 4 TiB for 16
    bytes, before that much memory is taken."""
    np.savez(tmp_path / "objects.npz", a=np.array([{}], dtype=object))
    refused(tmp_path / "objects.npz")
    header = str({"descr": "<f4", "fortran_order": False, "shape": (2**40,)}).encode() + b"\n"
    with zipfile.ZipFile(tmp_path / "false.npz", "w") as archive:
        archive.writestr(
            "a.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(16)
        )
    assert "does not hold" in refused(tmp_path / "false.npz")


def test_read_tensors_refuses_other_files(tmp_path):
    """Each line has the reason: missing, of another kind, a folder, or TorchScript."""
    assert "no such file" in refused(tmp_path / "none.pth")
    assert ".pth, .pt, .npz, .safetensors" in refused(tmp_path / "weights.ckpt")
    (tmp_path / "text.pth").write_text(json.dumps({"a": 1}))
    refused(tmp_path / "text.pth")
    os.mkdir(tmp_path / "folder.pth")
    refused(tmp_path / "folder.pth")
    with zipfile.ZipFile(tmp_path / "other.pth", "w") as archive:
        archive.writestr("a.txt", "a")
    assert "data.pkl" in refused(tmp_path / "other.pth")
    writer.write_zip(tmp_path / "script.pt", b"}", {}, constants=b"")
    assert "TorchScript" in refused(tmp_path / "script.pt")
