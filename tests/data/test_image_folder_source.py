"""Image folders as a data set: what is held out, what changes, and what cannot be read."""

import logging

import numpy as np
import pytest
from PIL import Image

from var_jax.config.train import DataConfig
from var_jax.data import image_folder, sources
from var_jax.errors import UserError


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    rng = np.random.default_rng(1)
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for i in range(10):
            Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(
                root / name / f"{i}.png"
            )
    Image.new("RGB", (9, 9), "red").convert("P").save(root / "dog" / "palette.gif")
    Image.new("RGBA", (9, 9), "red").save(root / "dog" / "alpha.webp", lossless=True)
    (root / "dog" / "deeper").mkdir()
    Image.new("L", (9, 9), 7).save(root / "dog" / "deeper" / "gray.JPG")
    (root / "dog" / ".hidden").write_text("no image")
    return root, DataConfig(
        name="image_folder", source_dir=str(root), data_dir=str(tmp_path / "tfds")
    )


def test_image_folder_of_many_formats_with_a_held_out_share(folder):
    """Each of 23 files of five formats, below its class's folder at any depth, is in one of both
    parts with its label, and its pixels are its own: transparent and palette images come out as
    red."""
    root, data = folder
    train, test = sources.open_split(data, "train"), sources.open_split(data, "test")
    assert train.class_names == ("cat", "dog")
    assert len(train) + len(test) == 23 and 2 <= len(test) <= 6
    assert {e["label"] for e in test} == {0, 1}
    examples = [*train, *test]
    sides = [
        {e["image"].tobytes() for e in side if e["image"].shape == (20, 30, 3)}
        for side in (train, test)
    ]
    assert len(sides[0] | sides[1]) == len(sides[0]) + len(sides[1]) == 20
    red = [e for e in examples if e["image"].shape == (9, 9, 3)]
    assert len(red) == 2 and all((e["image"] == (255, 0, 0)).all() and e["label"] == 1 for e in red)
    assert [
        e["label"]
        for e in examples
        if e["image"].shape == (9, 9, 1) and abs(int(e["image"].max()) - 7) < 3
    ] == [1]


def test_image_folder_that_changes_is_read_anew(folder):
    """An image more is there at the next opening and changes the fingerprint; what was held out
    before is held out still."""
    root, data = folder
    before = image_folder.listing(str(root))
    assert len(sources.open_split(data, "train+test")) == 23
    Image.new("L", (9, 9)).save(root / "cat" / "new.png")
    assert len(sources.open_split(data, "train+test")) == 24
    after = image_folder.listing(str(root))
    # What was held out before is held out still.
    held = {f.name for f in before.files if f.split == "test"}
    assert held <= {f.name for f in after.files if f.split == "test"}
    assert before.fingerprint != after.fingerprint


def test_image_folder_keeps_what_is_held_out(tmp_path):
    """About a tenth of 2,000 files is held out by name alone: files that come or go move no other
    file to the other part. A class of one file stays in training, one of five has both parts."""
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(1000):
            (tmp_path / name / f"{i}.png").touch()
    (tmp_path / "rare").mkdir()
    (tmp_path / "rare" / "only.png").touch()

    def held() -> set[str]:
        return {f.name for f in image_folder.listing(str(tmp_path)).files if f.split == "test"}

    first = held()
    assert 170 <= len(first) <= 230 and not any(name.startswith("rare") for name in first)
    for i in range(1000, 1300):
        (tmp_path / "cat" / f"{i}.png").touch()
    grown = held()
    assert first == {name for name in grown if int(name.split("/")[1][:-4]) < 1000} and len(
        grown
    ) > len(first)
    for i in range(900):  # and when files go
        (tmp_path / "cat" / f"{i}.png").unlink()
    assert held() == {
        name for name in grown if name.startswith("dog") or int(name.split("/")[1][:-4]) >= 900
    }
    for i in range(4):
        (tmp_path / "rare" / f"{i}.png").touch()
    sides = {
        f.split for f in image_folder.listing(str(tmp_path)).files if f.name.startswith("rare")
    }
    assert sides == {"train", "test"}


def test_image_folder_names_or_leaves_out_files_that_do_not_decode(folder, caplog):
    """The error has a file, how many more there are, and the key that leaves them out; a copy made
    with that key does not serve a run without it."""
    root, data = folder
    full = (root / "cat" / "3.png").read_bytes()
    (root / "cat" / "3.png").write_bytes(full[: len(full) // 2])
    (root / "dog" / "notes.txt").write_text("hello")
    with pytest.raises(
        UserError, match=r"cat/3.png does not decode: .* \(and 1 more files\); .*skip_bad_images"
    ):
        sources.open_split(data, "train")
    assert not list((root.parent / "tfds").rglob("dataset_info.json"))

    skipping = DataConfig(**{**data.__dict__, "skip_bad_images": True})
    for _ in range(2):  # also when the copy is there already
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert len(sources.open_split(skipping, "train+test")) == 22
        assert "left out 2 files" in caplog.text and "cat/3.png, dog/notes.txt" in caplog.text
    with pytest.raises(UserError, match="cat/3.png does not decode"):
        sources.open_split(data, "train")  # a copy made by skipping does not hide them


def test_image_folder_survives_links_that_lead_nowhere_or_back(folder):
    """Broken and circular links are named as files that cannot be read, and a link to a folder is
    read as one."""
    root, data = folder
    (root / "cat" / "gone.png").symlink_to(root / "none.png")
    (root / "cat" / "itself.png").symlink_to("itself.png")
    (root / "dog" / "deeper" / "up").symlink_to(root / "dog")
    (root / "cat" / "elsewhere").symlink_to(
        root / "dog" / "deeper"
    )  # a link like any folder, its own "up" but once
    with pytest.raises(
        UserError, match=r"cannot be read \(.*\) \(and \d more files\); .*skip_bad_images"
    ) as error:
        sources.open_split(data, "train")
    assert "\n" not in str(error.value)
    split = sources.open_split(
        DataConfig(**{**data.__dict__, "skip_bad_images": True}), "train+test"
    )
    assert len(split) == 24 + 12  # elsewhere, and all of the dogs once more below it


def test_image_folder_with_folders_for_splits(tmp_path, caplog):
    """Each split has its own images with labels in the order of class names, and the only held-out
    split is found by its other names."""
    for i, path in enumerate(("train/b/0.png", "train/a/1.png", "train/b/2.png", "val/a/3.png")):
        (tmp_path / "images" / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), i).save(tmp_path / "images" / path)
    data = DataConfig(
        name="image_folder", source_dir=str(tmp_path / "images"), data_dir=str(tmp_path / "tfds")
    )
    train, val = sources.open_split(data, "train"), sources.open_split(data, "val")
    assert sorted((int(e["image"][0, 0, 0]), e["label"]) for e in train) == [(0, 1), (1, 0), (2, 1)]
    assert [(int(e["image"][0, 0, 0]), e["label"]) for e in val] == [(3, 0)]
    for name in ("test", "validation"):  # by any name, the only images that are held out
        assert [(int(e["image"][0, 0, 0]), e["label"]) for e in sources.open_split(data, name)] == [
            (3, 0)
        ]
    assert "no split 'test'; its held-out images are those of its split 'val'" in caplog.text
    with pytest.raises(
        UserError, match="no split 'rest' with images; (did you mean 'test'|known: train, val)"
    ):
        sources.open_split(data, "rest")


def test_image_folder_names_what_it_lacks(tmp_path):
    """The errors for a missing directory, missing class folders and an empty class differ."""
    data = DataConfig(name="image_folder", source_dir=str(tmp_path / "x"), data_dir=str(tmp_path))

    def attempt():
        sources.open_split(data, "train")

    with pytest.raises(UserError, match="is no directory"):
        attempt()
    (tmp_path / "x").mkdir()
    with pytest.raises(UserError, match="has no folders"):
        attempt()
    (tmp_path / "x" / "cat").mkdir()
    with pytest.raises(UserError, match="'cat' of .* holds no files"):
        attempt()
