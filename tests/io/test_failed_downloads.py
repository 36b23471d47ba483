"""What stands in place of a download is named by every reader of weights, images and tables."""

import io

import numpy as np
import pytest
from etils import epath
from PIL import Image

from var_jax.data import idx, transforms
from var_jax.errors import UserError
from var_jax.evaluate.image_sets import open_images
from var_jax.io import array_file
from var_jax.io.failed_downloads import HEAD_BYTES, failed_download
from var_jax.io.json import read_object
from var_jax.io.torch_file import read_tensors
from var_jax.pretrained import dino_vit, efficientnet, inception, perceptual, vgg
from var_jax.scaling import table

POINTER = (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 443076453\n"
)
STAND_INS = {
    "Git LFS pointer": POINTER,
    "git-annex pointer": b"/annex/objects/SHA256E-s443076453--00.pth\n",
    "HTML page": b"\xef\xbb\xbf\n <!DOCTYPE html>\n<html><head><title>404</title></head></html>",
    "an HTML page": b"<!-- page --><HTML lang='en'>",
    "XML message": b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
    "gzip archive": b"\x1f\x8b\x08\x00" + bytes(30),
    "empty file": b"",
}
READERS = {
    **{
        f"read_tensors{ending}": (f"x{ending}", read_tensors)
        for ending in (".pth", ".pt", ".npz", ".safetensors")
    },
    "model directory": ("x.safetensors", array_file.load_arrays),
    "reference": ("x.npz", lambda path: open_images(str(path))),
    "efficientnet": ("x.pth", lambda path: efficientnet.load(str(path))),
    "inception": ("x.pth", lambda path: inception.load(str(path))),
    "vgg": ("x.pth", lambda path: vgg.load(str(path))),
    "vit": ("x.pth", lambda path: dino_vit.load(str(path))),
    "perceptual": ("x.pth", lambda path: perceptual.load("efficientnet", str(path))),
    "runs": ("x.csv", lambda path: table.read(str(path))),
    "settings": ("model.json", read_object),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", STAND_INS)
def test_readers_name_what_stands_in_place_of_a_file(tmp_path, reader, kind):
    """One line with the path and the kind: whoever cloned without `git lfs pull` learns that, and
    no parser's word."""
    name, read = READERS[reader]
    (tmp_path / name).write_bytes(STAND_INS[kind])
    with pytest.raises(UserError, match=f"{name} does not read as .*: it is .*{kind}") as error:
        read(tmp_path / name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", STAND_INS)
def test_images_that_are_stand_ins_are_named(kind):
    """A folder that was cloned without its images' content holds pointers under their names."""
    with pytest.raises(UserError, match=f"a.jpg does not decode: it is .*{kind}"):
        transforms.decode(STAND_INS[kind], "a.jpg")


@pytest.mark.parametrize("kind", [kind for kind in STAND_INS if not kind.startswith("gzip")])
def test_idx_files_that_are_stand_ins_are_named(tmp_path, kind):
    """The files of a raw data set are checked as weights are."""
    (tmp_path / "labels").write_bytes(STAND_INS[kind])
    with pytest.raises(UserError, match=f"labels does not read as an idx file: it is .*{kind}"):
        idx.read(epath.Path(tmp_path / "labels"), 1)


def test_failed_download_is_none_for_sound_files():
    """The first bytes of files that readers do read are not taken for a failed download."""
    buffers = [io.BytesIO() for _ in range(5)]
    np.savez(buffers[0], np.zeros(3))
    Image.new("L", (3, 3)).save(buffers[1], "PNG")
    buffers[2].write(b"run,loss\na,<1\n")
    buffers[3].write((16).to_bytes(8, "little") + b'{"a":{}}')
    buffers[4].write(b"<?xml version='1.0'?><svg></svg>")
    assert [failed_download(buffer.getvalue()[:HEAD_BYTES]) for buffer in buffers] == [None] * 5


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.safetensors", b"PK\3\4" + bytes(60), "a zip file, .* name it .pth or .npz"),
        (
            "x.pth",
            (16).to_bytes(8, "little") + b'{"a":{}}' + bytes(30),
            "a safetensors file; name it .safetensors",
        ),
        (
            "x.npz",
            (16).to_bytes(8, "little") + b'{"a":{}}' + bytes(30),
            "a safetensors file; name it .safetensors",
        ),
    ],
)
def test_read_tensors_names_another_format_than_the_ending_says(tmp_path, name, content, words):
    """The error names the format of the content and the ending that it needs."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}: {words}"):
        read_tensors(tmp_path / name)
