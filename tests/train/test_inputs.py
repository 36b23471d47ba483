"""A workdir keeps what its run's data were, and another set of images does not pass for them."""

import json
import os

import jax
import numpy as np
import pytest
import small
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from PIL import Image

from var_jax.errors import UserError
from var_jax.train.config import DataConfig
from var_jax.train.inputs import Inputs


@pytest.fixture
def folder(tmp_path):
    random = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(6):
            Image.fromarray(random.integers(0, 256, (6, 8), np.uint8)).save(tmp_path / "images" / name / f"{i}.png")
    return tmp_path / "images"


def inputs(data: DataConfig) -> Inputs:
    config = small.train_config("tokenizer", "", data=data)
    return Inputs(config, None, None, NamedSharding(Mesh(jax.devices()[:1], "data"), PartitionSpec("data")))


@pytest.fixture
def opened(folder, tmp_path):
    data = DataConfig("image_folder", source_dir=str(folder), data_dir=str(tmp_path / "tfds"), resize="whole")
    return lambda: inputs(data)


def test_what_a_workdir_keeps_of_its_data(opened, folder, tmp_path):
    first = opened()
    first.require_same(tmp_path)  # nothing is kept yet
    first.note(tmp_path)
    kept = json.loads((tmp_path / "data.json").read_text())
    assert kept["name"] == "image_folder" and kept["class_names"] == ["cat", "dog"]
    assert kept["train"] + kept["held_out"] == 12 and kept["held_out"] >= 2
    assert kept["fingerprint"] == first.identity["fingerprint"]
    # A copy of the folder has other times and the same images: the run goes on.
    for file in folder.rglob("*.png"):
        file.write_bytes(file.read_bytes())
    opened().require_same(tmp_path)


@pytest.mark.parametrize(("change", "message"), [
    (lambda folder: (folder / "cat" / "0.png").rename(folder / "cat" / "new.png"), "as many images|images, then"),
    (lambda folder: (folder / "cat" / "0.png").write_bytes((folder / "cat" / "1.png").read_bytes()),
     "as many images, but other ones or of other names \\(fingerprint "),
    (lambda folder: (folder / "cat" / "more.png").write_bytes((folder / "cat" / "1.png").read_bytes()),
     r"\d+ (training|held-out) images, then \d+"),
    (lambda folder: (folder / "cat").rename(folder / "ant"), "class 'ant' came; class 'cat' went"),
])
def test_other_images_do_not_pass_for_a_runs(opened, folder, tmp_path, change, message):
    opened().note(tmp_path)
    kept = (tmp_path / "data.json").read_text()
    change(folder)
    for file in folder.rglob("*.png"):
        os.utime(file, (1, 1))  # a change within the same second is none to the copy of the folder
    other = opened()
    with pytest.raises(UserError, match=f"holds a run on other data: .*({message}).*put the data back") as error:
        other.require_same(tmp_path)
    assert "\n" not in str(error.value)
    other.note(tmp_path)  # a run's first note stays
    assert (tmp_path / "data.json").read_text() == kept


def test_a_run_on_pixels_that_an_earlier_version_decoded_otherwise(folder, tmp_path, opened):
    """A workdir whose images had their transparency dropped does not resume on composited ones, and the line says why;
    one whose images are the same in both versions does."""
    opened().note(tmp_path)
    Image.new("LA", (8, 6), (9, 0)).save(folder / "cat" / "0.png")
    now = opened().identity
    before = {**now, "fingerprint": now["fingerprint"].removesuffix("-decoding2")}
    assert before != now
    (tmp_path / "data.json").write_text(json.dumps(before))
    with pytest.raises(UserError, match="the same files, some of which an earlier version decoded without"):
        opened().require_same(tmp_path)


def test_a_data_set_of_tfds_is_told_by_its_version(digits_dir, tmp_path):
    same = inputs(DataConfig("digits", data_dir=str(digits_dir)))
    assert same.identity["fingerprint"] == "1.0.0" and same.identity["train"] == 1437
    (tmp_path / "data.json").write_text(json.dumps({**same.identity, "fingerprint": "2.0.0", "train": 5}))
    with pytest.raises(UserError, match="1437 training images, then 5; put"):
        same.require_same(tmp_path)
    (tmp_path / "data.json").write_text(json.dumps({"name": "digits", "class_names": list("1023456789")}))
    with pytest.raises(UserError, match="the classes are in another order"):
        same.require_same(tmp_path)
    (tmp_path / "data.json").write_text(json.dumps({"name": "digits"}))  # as from a token cache: less is told
    same.require_same(tmp_path)


def test_rows_of_a_batch_reach_the_devices_without_a_copy_on_the_host(digits_dir, monkeypatch):
    """What a device gets is a view of the batch; a process that holds some of the rows finds them by their place."""
    config = small.train_config("tokenizer", "", data=DataConfig("digits", data_dir=str(digits_dir)))
    rows = NamedSharding(Mesh(jax.devices()[:4], "data"), PartitionSpec("data"))
    opened, given = Inputs(config, None, None, rows), []
    monkeypatch.setattr(jax, "make_array_from_callback", lambda shape, sharding, of: given.extend(
        of((slice(start, start + 2),)) for start in held) or "array")
    for held in ((0, 2, 4, 6), (0, 4)):  # of all rows, and of a process whose devices hold every second part
        opened._held = np.concatenate([np.arange(start, start + 2) for start in held])
        batch = {"label": 10 * opened._held}
        given.clear()
        assert opened.on_devices(batch) == {"label": "array"}
        assert [part.tolist() for part in given] == [[10 * start, 10 * start + 10] for start in held]
        assert all(np.shares_memory(part, batch["label"]) for part in given)
