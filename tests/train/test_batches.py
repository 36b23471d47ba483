"""A workdir keeps what its run's data were, and another set of images does not pass for them."""

import dataclasses
import json
import os

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from PIL import Image

from helpers import small
from var_jax.config.train import DataConfig
from var_jax.errors import UserError
from var_jax.objectives import registry
from var_jax.objectives.step_types import NoFrozen
from var_jax.train import terminal_messages
from var_jax.train.batches import Inputs


@pytest.fixture
def folder(tmp_path):
    random = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(6):
            Image.fromarray(random.integers(0, 256, (6, 8), np.uint8)).save(
                tmp_path / "images" / name / f"{i}.png"
            )
    return tmp_path / "images"


def described(data: Inputs) -> list[str]:
    return terminal_messages.data_lines(data._config, data, range(len(data.class_names)))


def warnings_of(data: Inputs) -> list[str]:
    objective = registry.with_frozen_shapes(data._config)
    drops_color = data._config.tokenizer.in_channels == 1 and data.has_color
    return objective.data_warnings(data.class_names, drops_color=drops_color)


def inputs(
    data: DataConfig, stage: str = "tokenizer", manifest: dict | None = None, **changes
) -> Inputs:
    config = small.train_config(stage, "", data=data, **changes)
    return Inputs(
        registry.with_frozen_shapes(config),
        NoFrozen(),
        NamedSharding(Mesh(jax.devices()[:1], "data"), PartitionSpec("data")),
        manifest,
    )


@pytest.fixture
def opened(folder, tmp_path):
    data = DataConfig(
        "image_folder", source_dir=str(folder), data_dir=str(tmp_path / "tfds"), resize="stretch"
    )
    return lambda: inputs(data)


def test_workdir_keeps_the_fingerprints_of_its_data(opened, folder, tmp_path):
    """The file names the data set, its classes and counts; new times of the same images are no
    change."""
    first = opened()
    first.require_same(tmp_path)  # nothing is kept yet
    first.note(tmp_path)
    parsed = json.loads((tmp_path / "data.json").read_text())
    assert parsed["name"] == "image_folder" and parsed["class_names"] == ["cat", "dog"]
    assert parsed["train"] + parsed["held_out"] == 12 and parsed["held_out"] >= 2
    assert parsed["fingerprint"] == first.identity["fingerprint"]
    # A copy of the folder has other times and the same images: the run goes on.
    for file in folder.rglob("*.png"):
        file.write_bytes(file.read_bytes())
    opened().require_same(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda folder: (folder / "cat" / "0.png").rename(folder / "cat" / "new.png"),
            "as many images|images, then",
        ),
        (
            lambda folder: (folder / "cat" / "0.png").write_bytes(
                (folder / "cat" / "1.png").read_bytes()
            ),
            "as many images, but other ones or of other names \\(fingerprint ",
        ),
        (
            lambda folder: (folder / "cat" / "more.png").write_bytes(
                (folder / "cat" / "1.png").read_bytes()
            ),
            r"\d+ (training|held-out) images, then \d+",
        ),
        (
            lambda folder: (folder / "cat").rename(folder / "ant"),
            "class 'ant' came; class 'cat' went",
        ),
    ],
)
def test_inputs_refuse_other_images(opened, folder, tmp_path, change, message):
    """Images renamed, replaced, added or of another class are named as the difference, and the
    noted data stay as they were."""
    opened().note(tmp_path)
    remaining = (tmp_path / "data.json").read_text()
    change(folder)
    for file in folder.rglob("*.png"):
        os.utime(file, (1, 1))  # a change within the same second is none to the copy of the folder
    other = opened()
    with pytest.raises(
        UserError, match=f"holds a run on other data: .*({message}).*put the data back"
    ) as error:
        other.require_same(tmp_path)
    assert "\n" not in str(error.value)
    other.note(tmp_path)  # a run's first note stays
    assert (tmp_path / "data.json").read_text() == remaining


def test_inputs_name_pixels_that_an_earlier_version_decoded_otherwise(folder, tmp_path, opened):
    """A workdir whose images had their transparency dropped does not resume on composited ones, and
    the line says why; one whose images are the same in both versions does."""
    opened().note(tmp_path)
    Image.new("LA", (8, 6), (9, 0)).save(folder / "cat" / "0.png")
    now = opened().identity
    before = {**now, "fingerprint": now["fingerprint"].removesuffix("-decoding2")}
    assert before != now
    (tmp_path / "data.json").write_text(json.dumps(before))
    with pytest.raises(
        UserError, match="the same files, and an earlier version decoded some of them without"
    ):
        opened().require_same(tmp_path)


def test_inputs_name_a_tfds_data_set_by_its_version(digits_dir, tmp_path):
    """Another version, other counts and another order of classes are refused; notes with fewer
    entries are compared by those they have."""
    same = inputs(DataConfig("digits", data_dir=str(digits_dir)))
    assert same.identity["fingerprint"] == "1.0.0" and same.identity["train"] == 1437
    (tmp_path / "data.json").write_text(
        json.dumps({**same.identity, "fingerprint": "2.0.0", "train": 5})
    )
    with pytest.raises(UserError, match="1437 training images, then 5; put"):
        same.require_same(tmp_path)
    (tmp_path / "data.json").write_text(
        json.dumps({"name": "digits", "class_names": list("1023456789")})
    )
    with pytest.raises(UserError, match="the classes are in another order"):
        same.require_same(tmp_path)
    (tmp_path / "data.json").write_text(
        json.dumps({"name": "digits"})
    )  # as from a token cache, which records less
    same.require_same(tmp_path)


def test_rows_of_a_batch_reach_the_devices_without_a_copy_on_the_host(digits_dir, monkeypatch):
    """What a device gets is a view of the batch; a process that holds some of the rows finds them
    by their place."""
    config = small.train_config(
        "tokenizer", "", data=DataConfig("digits", data_dir=str(digits_dir))
    )
    rows = NamedSharding(Mesh(jax.devices()[:4], "data"), PartitionSpec("data"))
    opened, values = Inputs(registry.with_frozen_shapes(config), NoFrozen(), rows), []
    monkeypatch.setattr(
        jax,
        "make_array_from_callback",
        lambda shape, sharding, of: (
            values.extend(of((slice(start, start + 2),)) for start in held) or "array"
        ),
    )
    for held in (
        (0, 2, 4, 6),
        (0, 4),
    ):  # of all rows, and of a process whose devices hold every second part
        opened._held = np.concatenate([np.arange(start, start + 2) for start in held])
        batch = {"label": 10 * opened._held}
        values.clear()
        assert opened.on_devices(batch) == {"label": "array"}
        assert [part.tolist() for part in values] == [
            [10 * start, 10 * start + 10] for start in held
        ]
        assert all(np.shares_memory(part, batch["label"]) for part in values)


def test_data_lines_name_classes_counts_and_splits(opened, folder):
    """Which id is which class is nowhere else to be seen before images are drawn."""
    data, classes = described(opened())
    counts = opened().class_counts
    identity = opened().identity
    assert all(
        text in data
        for text in (
            "image_folder",
            str(folder),
            f"{identity['train']} training images (train)",
            f"{identity['held_out']} held out (test)",
            "gray",
        )
    )
    assert classes == f"2 classes (training images): 0 cat ({counts[0]}), 1 dog ({counts[1]})"
    for i in range(30):
        (folder / f"class{i}").mkdir()
        (folder / f"class{i}" / "0.png").write_bytes((folder / "cat" / "0.png").read_bytes())
    assert described(opened())[1].endswith(
        "18 class17 (1), 19 class18 (1), and 12 more, all in data.json"
    )


def test_log_data_warns_of_empty_classes_and_dropped_color(opened, folder, tmp_path):
    """Rows of the class embedding that no image trains draw noise; a gray tokenizer drops color
    without a trace."""
    data = DataConfig(
        "image_folder", source_dir=str(folder), data_dir=str(tmp_path / "tfds"), resize="stretch"
    )
    assert warnings_of(opened()) == []
    (warning,) = warnings_of(inputs(data, "transformer"))
    assert (
        "transformer.num_classes is 10" in warning
        and "2 classes" in warning
        and "labels 2 to 9" in warning
    )
    fitting = dataclasses.replace(small.TRANSFORMER, num_classes=2)
    assert warnings_of(inputs(data, "transformer", transformer=fitting)) == []
    for i in range(6):
        Image.new("RGB", (8, 6), "red").save(folder / "cat" / f"{i}.png")
    (warning,) = warnings_of(inputs(data, "transformer", transformer=fitting))
    assert "have color" in warning and "the tokenizer has one channel" in warning
    assert "tokenizer.in_channels is 1" in warnings_of(opened())[0]


def test_inputs_of_a_resumed_run_keep_the_order_of_classes(folder, tmp_path):
    """Numbers were sorted as texts by earlier versions: a run of one goes on, in a directory
    without its copy too."""
    for i in range(12):
        (folder / f"{i}").mkdir()
        (folder / f"{i}" / "0.png").write_bytes((folder / "cat" / "0.png").read_bytes())
    data = DataConfig(
        "image_folder", source_dir=str(folder), data_dir=str(tmp_path / "tfds"), resize="stretch"
    )
    new = inputs(data).identity
    older = sorted(new["class_names"])
    assert new["class_names"] != older
    first = inputs(data, manifest={"class_names": older}).identity
    assert first["class_names"] == older and first["fingerprint"] != new["fingerprint"]
    (tmp_path / "data.json").write_text(json.dumps(first))
    staged = dataclasses.replace(data, data_dir=str(tmp_path / "other"))
    inputs(staged, manifest=first).require_same(tmp_path)
    with pytest.raises(UserError, match="the classes are in another order"):
        inputs(dataclasses.replace(data, data_dir=str(tmp_path / "third"))).require_same(tmp_path)
