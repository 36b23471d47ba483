"""Files of compiled programs: what they give back, and what is refused before it is unpickled."""

import hashlib
import json
import os
import pickle

import jax
import numpy as np
import pytest

from var_jax.errors import UserError
from var_jax.io import array_file, executable_file


@pytest.fixture
def compiled():
    function = jax.jit(lambda tree, y: {"sum": tree["x"] + y, "y": y}, donate_argnums=0)
    return function.lower({"x": np.zeros(3, np.float32)}, np.float32(0)).compile()


def load(path, compiled):
    return executable_file.load(path, compiled.in_tree, compiled.out_tree, jax.devices()[:1])


def write_pickle(path, content: bytes):
    """Writes a file as `save` does, around any pickle."""
    texts = {
        executable_file.DESCRIPTION: "{}",
        executable_file.DIGEST: hashlib.sha256(content).hexdigest(),
    }
    array_file.save_arrays(path, {executable_file.PROGRAM: np.frombuffer(content, np.uint8)}, texts)


def test_load_gives_the_program_that_was_saved(tmp_path, compiled):
    """A program of nested arguments and results gives the same numbers after a file, and the
    description is read without it."""
    executable_file.save(tmp_path / "f", compiled, {"of": ["a", 1]})
    assert executable_file.read_description(tmp_path / "f") == {"of": ["a", 1]}
    result = load(tmp_path / "f", compiled)({"x": np.arange(3, dtype=np.float32)}, np.float32(2))
    assert result["sum"].tolist() == [2, 3, 4] and float(result["y"]) == 2


class Evil:
    """An object whose pickle calls a function."""

    def __init__(self, function, *arguments):
        self._call = function, arguments

    def __reduce__(self):
        return self._call


@pytest.mark.parametrize(
    "content",
    [
        lambda path: pickle.dumps(Evil(os.mkdir, str(path))),
        lambda path: pickle.dumps(Evil(eval, f"__import__('os').mkdir({str(path)!r})")),
        # An attribute of an allowed class, and a function of an allowed library.
        lambda path: b"\x80\x04\x8c\x0djax._src.core\x8c\x14ShapedArray.__init__\x93.",
        lambda path: pickle.dumps(Evil(np.fromfile, str(path))),
    ],
)
def test_load_calls_nothing_that_a_pickle_names(tmp_path, compiled, content):
    """A pickle that would make a directory, or that names anything but the classes of programs, is
    refused in one line, and the directory is not made."""
    write_pickle(tmp_path / "f", content(tmp_path / "made"))
    with pytest.raises(UserError, match="which no saved executable does"):
        load(tmp_path / "f", compiled)
    assert not (tmp_path / "made").exists()


def test_load_refuses_damaged_and_other_files(tmp_path, compiled):
    """A changed byte of the program, a cut file, a file of weights, a text and no file at all are
    each a line that names the file."""
    path = tmp_path / "f"
    executable_file.save(path, compiled, {})
    content = path.read_bytes()
    path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    with pytest.raises(UserError, match="damaged"):
        load(path, compiled)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="does not read"):
        load(path, compiled)
    array_file.save_arrays(path, {"weights": np.zeros(3)})
    for read in (lambda: load(path, compiled), lambda: executable_file.read_description(path)):
        with pytest.raises(UserError, match="no saved executable"):
            read()
    path.write_text(json.dumps({}))
    with pytest.raises(UserError, match=str(path)):
        executable_file.read_description(path)
    with pytest.raises(UserError, match="nowhere"):
        executable_file.read_description(tmp_path / "nowhere")
    write_pickle(path, b"no pickle")
    with pytest.raises(UserError, match="no compiled program"):
        load(path, compiled)


def test_save_names_a_directory_that_is_missing(tmp_path, compiled):
    """A file that cannot be written is a line, and leaves nothing behind."""
    with pytest.raises(UserError, match="cannot write"):
        executable_file.save(tmp_path / "none" / "f", compiled, {})
    assert list(tmp_path.iterdir()) == []
