"""The order and the names of the classes of an image folder."""

import os

import numpy as np
import pytest
from PIL import Image

from var_jax.config.train import DataConfig
from var_jax.data import builders, image_folder, prepare, sources, survey
from var_jax.errors import UserError


def photos(root, names, images=2):
    """Images whose pixels tell their folder, by its place in `names`."""
    for place, name in enumerate(names):
        folder = os.path.join(os.fsencode(root), os.fsencode(name))
        os.makedirs(folder)
        for i in range(images):
            with open(os.path.join(folder, b"%d.png" % i), "wb") as file:
                Image.fromarray(np.full((4, 4), 10 * place + i, np.uint8)).save(file, "PNG")
    return DataConfig("image_folder", source_dir=str(root), data_dir=f"{root}-tfds")


def labels_of(split) -> dict[str, int]:
    """{class name: place in the list that `photos` was given}, by pixels and labels."""
    return {split.class_names[one["label"]]: int(one["image"][0, 0, 0]) // 10 for one in split}


@pytest.mark.parametrize(
    "names",
    [
        [str(i) for i in range(12)],
        ["class_1", "class_2", "class_10"],
        ["img2x3", "img2x10", "img10x1"],
        ["a", "a0", "a1", "a01", "a1b"],
        ["B", "a", "c"],
        ["n01440764", "n01443537", "n15075141"],
    ],
)
def test_class_ids_follow_the_numbers_in_names(tmp_path, names):
    """`sample --labels 2` of folders 0 to 11 is folder 2, and not "10", which texts sort before
    it."""
    data = photos(tmp_path / "photos", names)
    split = sources.open_split(data, "train+test")
    assert split.class_names == tuple(names)
    assert labels_of(split) == {name: i for i, name in enumerate(names)}


def test_prepared_copy_keeps_its_order(tmp_path):
    """A copy that sorted numbers as texts stays in use for the same files, as models that learned
    from it do."""
    names = [str(i) for i in range(12)]
    data = photos(tmp_path / "photos", names)
    files = image_folder.listing(data.source_dir)
    assert files.class_names == tuple(names)
    older = files.in_order(sorted(names))
    earlier = older.earlier_fingerprint
    builders.ImageFolder(files=older, data_dir=data.data_dir, state=earlier).download_and_prepare(
        file_format="array_record"
    )
    split = sources.open_split(data, "train+test")
    assert split.class_names == tuple(sorted(names)) == older.class_names
    assert labels_of(split) == {name: i for i, name in enumerate(names)}
    os.utime(
        tmp_path / "photos" / "0" / "0.png", (1, 1)
    )  # other files than those that were prepared
    assert sources.open_split(data, "train").class_names == tuple(names)


def gray_folder(folder, value, seconds) -> DataConfig:
    """Writes images of one gray value, all files of one size and one time."""
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(4):
            file = folder / name / f"{i}.bmp"
            Image.fromarray(np.full((12, 16), value, np.uint8)).save(file)
            os.utime(file, (seconds, seconds))
    return DataConfig(
        "image_folder", source_dir=str(folder), data_dir=str(folder.parent / "prepared")
    )


def test_folders_of_equal_names_sizes_and_times_have_copies_of_their_own(tmp_path):
    """Folders that one archive made, or one second, differ in nothing but their bytes: the second
    must not read the first one's images."""
    dark, light = (gray_folder(tmp_path / str(v), v, seconds=1_700_000_000) for v in (20, 230))
    for data, value in ((dark, 20), (light, 230), (dark, 20)):
        assert np.all(sources.open_split(data, "train")[0]["image"] == value)


def test_files_written_anew_within_a_second_are_read_anew(tmp_path):
    """The time of a file counts with its fraction of a second."""
    for value, seconds in ((20, 1_700_000_000.25), (230, 1_700_000_000.5)):
        data = gray_folder(tmp_path / "photos", value, seconds)
        assert np.all(sources.open_split(data, "train")[0]["image"] == value)


def test_copy_of_an_earlier_version_serves_the_folder_that_it_was_made_of(tmp_path, monkeypatch):
    """The name of such a copy does not depend on the folder, so that its content decides whether it
    serves."""
    dark, light = (gray_folder(tmp_path / str(v), v, seconds=1_700_000_000) for v in (20, 230))
    files = image_folder.listing(dark.source_dir)
    builders.ImageFolder(
        files=files, data_dir=dark.data_dir, state=files.earlier_fingerprint
    ).download_and_prepare(file_format="array_record")
    assert np.all(sources.open_split(light, "train")[0]["image"] == 230)
    monkeypatch.setattr(survey, "survey", lambda files: survey.Survey(images=8, brightest=255))
    monkeypatch.setattr(prepare, "_download_and_prepare", lambda _: pytest.fail("copied again"))
    assert np.all(sources.open_split(dark, "train")[0]["image"] == 20)


def test_train_batches_keep_their_order_wherever_the_copy_lies(tmp_path):
    """The order that a run began with holds in another data_dir too, and content has the
    fingerprint of that order."""
    names = [str(i) for i in range(12)]
    data = photos(tmp_path / "photos", names)
    first = sources.open_split(data, "train+test", class_names=sorted(names))
    elsewhere = DataConfig(
        "image_folder", source_dir=data.source_dir, data_dir=str(tmp_path / "elsewhere")
    )
    again = sources.open_split(elsewhere, "train+test", class_names=sorted(names))
    assert again.class_names == first.class_names == tuple(sorted(names))
    assert again.fingerprint == first.fingerprint
    assert labels_of(again) == labels_of(first) == {name: i for i, name in enumerate(names)}
    # Another set of classes has no such order.
    assert sources.open_split(elsewhere, "train", class_names=["cat", "dog"]).class_names == tuple(
        names
    )


def test_names_that_are_not_utf8_are_read_like_any_other(tmp_path):
    r"""Bytes of old archives in the names of a file and of a class are printed as \xe9, and so is a
    line break escaped."""
    data = photos(tmp_path / "photos", [b"caf\xe9", b"two\nlines", "naïve".encode(), b"plain"])
    os.rename(
        os.fsencode(tmp_path / "photos") + b"/plain/1.png",
        os.fsencode(tmp_path / "photos") + b"/plain/\xff.png",
    )
    split = sources.open_split(data, "train+test")
    assert labels_of(split) == {"caf\\xe9": 0, "two\\nlines": 1, "naïve": 2, "plain": 3}
    assert len(split) == 8
    (tmp_path / "photos" / "plain" / "0.png").write_bytes(b"no image")
    os.rename(
        tmp_path / "photos" / "plain" / "0.png",
        os.fsencode(tmp_path / "photos") + b"/plain/\xe9.png",
    )
    with pytest.raises(UserError, match="does not decode") as error:
        sources.open_split(data, "train")
    assert "\udce9.png" in str(error.value)
    skipping = DataConfig(**{**vars(data), "skip_bad_images": True})
    assert len(sources.open_split(skipping, "train+test")) == 7


def test_listing_names_two_folders_that_would_be_one_class(tmp_path):
    """A name that is no UTF-8 and its escaped form are the same text."""
    photos(tmp_path / "photos", [b"caf\xe9", rb"caf\xe9"])
    with pytest.raises(UserError, match="would all be the class") as error:
        image_folder.listing(str(tmp_path / "photos"))
    assert "udce9" in str(error.value) and "\n" not in str(error.value)


def test_class_counts_are_those_of_the_split(tmp_path):
    """The counts are those of each split's labels; files that were left out are not counted, and a
    slice of a split has no counts."""
    data = photos(tmp_path / "photos", ["cat", "dog"], images=6)
    (tmp_path / "photos" / "dog" / "bad.png").write_text("no image")
    data = DataConfig(**{**vars(data), "skip_bad_images": True})
    for split in sources.open_splits(data, ["train", "test"]):
        labels = [one["label"] for one in split]
        assert (
            split.class_counts == tuple(labels.count(i) for i in range(2))
            and min(split.class_counts) > 0
        )
    assert sources.open_split(data, "train[:3]").class_counts == ()  # a slice's are not counted
