"""Makers of malformed inputs: each returns a function that writes one where it is called."""

import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from safetensors.numpy import load_file, save_file

from helpers import small
from helpers.image_bytes import idx
from var_jax.io.torch_convert import write_torch

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 6, 8, 1), np.uint8)


class Case(NamedTuple):
    """One input.

    Attributes:
      what: the input in words, for the table.
      command: run where `make` was, in a directory that has the small model as `model`.
      words: in the line: what was wrong.
      make: writes the input.
    """

    what: str
    command: str
    words: str
    make: Callable[[], object] = lambda: None


def write(path: str, content: str | bytes):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    Path(path).write_bytes(data)


def loop(path: str):
    """A link to itself."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).unlink(missing_ok=True)
    os.symlink(Path(path).name, path)


def folder(path: str):
    Path(path).unlink(missing_ok=True)
    Path(path).mkdir(parents=True)


def picture(path: str = "i.png"):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(PIXELS[0, :, :, 0]).save(path)


def huge_png():
    """A PNG of 2^31 - 1 pixels per side, by its header."""
    content = b"\x89PNG\r\n\x1a\n"
    header = struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 0, 0, 0, 0)
    for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b"")):
        content += struct.pack(">I", len(body)) + kind + body
        content += struct.pack(">I", zlib.crc32(kind + body))
    write("p.png", content)


def with_picture(then: Callable[[], object] = lambda: None) -> Callable[[], object]:
    return lambda: (picture(), then())


def model_json(**changes) -> Callable[[], object]:
    """The model with other values in its model.json; `a__b` is b of section a, ... none."""

    def make():
        values = json.loads(Path("model/model.json").read_text())
        for name, value in changes.items():
            *sections, key = name.split("__")
            section = values
            for part in sections:
                section = section[part]
            if value is ...:
                del section[key]
            else:
                section[key] = value
        write("model/model.json", json.dumps(values))

    return make


def model_weights(dtype) -> Callable[[], object]:
    path = "model/transformer.safetensors"
    return lambda: save_file({k: v.astype(dtype) for k, v in load_file(path).items()}, path)


def published(change: Callable[[dict], dict] = dict, name: str = "t.safetensors"):
    """The small model's published files, and its tokenizer's with a change."""

    def make():
        write_torch(".", *small.pipeline().to_torch())
        arrays = change(load_file("tokenizer.safetensors"))
        save = save_file if name.endswith("tensors") else lambda a, f: np.savez(f, **a)
        save({key: np.ascontiguousarray(array) for key, array in arrays.items()}, name)

    return make


def samples(**arrays) -> Callable[[], object]:
    return lambda: (np.savez("r.npz", arr_0=PIXELS), np.savez("s.npz", **arrays))


def statistics(**arrays) -> Callable[[], object]:
    """Samples, and a reference file of means and covariances."""
    return lambda: (np.savez("s.npz", arr_0=PIXELS), np.savez("f.npz", **arrays))


def run_file(more: str = "") -> Callable[[], object]:
    return lambda: write("run.py", small.CONFIG_FILE + more)


def config(change: str) -> Callable[[], object]:
    """A config file whose `get_config` makes a change."""
    return run_file(
        "\n\n_unchanged = get_config\n\n\ndef get_config(arg=''):\n"
        f"    config = _unchanged(arg)\n    {change}\n    return config\n"
    )


def sweep(runs: str) -> Callable[[], object]:
    return run_file(f"\n\ndef get_sweep(arg=''):\n    return {runs}\n")


def idx_files(then: Callable[[], object]) -> Callable[[], object]:
    def make():
        run_file()()
        for part, count in (("train", 12), ("t10k", 4)):
            labels = np.arange(count, dtype=np.uint8) % 10
            images = np.zeros((count, 28, 28), np.uint8)
            write(f"idx/{part}-images-idx3-ubyte", idx(images))
            write(f"idx/{part}-labels-idx1-ubyte", idx(labels))
        then()

    return make


def with_run_file(then: Callable[[], object]) -> Callable[[], object]:
    return lambda: (run_file()(), then())


def text(path: str, content: str | bytes) -> Callable[[], object]:
    return lambda: write(path, content)
