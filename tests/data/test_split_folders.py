"""Which folders of an image folder are read as splits, which as classes, and which layouts are
refused."""

import pytest

from var_jax.data import image_folder, split_folders
from var_jax.errors import UserError


def make(root, *files):
    """Empty files below a folder."""
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return str(root)


def in_splits(*splits, classes=("cat", "dog")):
    return [f"{split}/{name}/{i}.png" for split in splits for name in classes for i in range(3)]


def counts(directory, **options) -> dict[str, tuple[int, ...]]:
    result = image_folder.listing(directory, **options)
    assert result.class_names == ("cat", "dog")
    return result.counts


@pytest.mark.parametrize(
    ("splits", "roles"),
    [
        (("train", "valid", "test"), {"train", "val", "test"}),
        (("train", "validation"), {"train", "val"}),
        (("train", "dev"), {"train", "val"}),
        (("TRAIN", "Val"), {"train", "val"}),
        (("Training", "Testing"), {"train", "test"}),
        (("train", "eval"), {"train", "val"}),
        (("train2017", "val2017"), {"train", "val"}),
        (("train_images", "test-images"), {"train", "test"}),
        (("\uff54rain", "\uff34EST"), {"train", "test"}),  # letters of full width
    ],
)
def test_listing_reads_folders_named_for_splits(tmp_path, splits, roles):
    """A split taken for a class would be trained on: classes and counts are those inside the
    splits."""
    directory = make(tmp_path, *in_splits(*splits))
    assert counts(directory) == dict.fromkeys(roles, (3, 3))
    assert image_folder.listing(directory).notes == ()


@pytest.mark.parametrize("beside", ["annotations/a.xml", "extra/x/1.png", "README/readme.txt"])
def test_listing_leaves_out_what_lies_beside_splits(tmp_path, beside):
    """Folders that are neither splits nor classes are noted by name."""
    directory = make(tmp_path, *in_splits("train", "test"), beside)
    assert counts(directory) == {"train": (3, 3), "test": (3, 3)}
    (note,) = image_folder.listing(directory).notes
    assert repr(beside.split("/")[0]) in note and "left out" in note


@pytest.mark.parametrize("beside", [(), ("test/1.png", "test/2.png"), ("annotations/a.xml",)])
def test_listing_holds_images_out_where_only_training_has_classes(tmp_path, beside):
    """Test images without class folders (as competitions hand them out) have no labels, and so are
    no class."""
    directory = make(tmp_path, *in_splits("train"), *beside)
    result = counts(directory)
    assert result.keys() == {"train", "test"} and sum(map(sum, result.values())) == 6
    assert all(
        repr(name.split("/")[0]) in image_folder.listing(directory).notes[0] for name in beside[:1]
    )
    assert counts(directory, whole_train=True) == {"train": (3, 3)}


@pytest.mark.parametrize(
    ("files", "named"),
    [
        (("train/1.png", "test/1.png"), ["'test', 'train'", "hold no class folders"]),
        (("test/cat/1.png", "val/cat/1.png"), ["'test', 'val'", "none for training"]),
        (("cat/1.png", "dog/1.png", "test/cat/2.png"), ["'test'", "'cat'"]),
        (("cat/train/1.png", "cat/test/2.png", "dog/train/1.png"), ["'cat'", "'test', 'train'"]),
        (("photos/train/cat/1.png", "photos/test/cat/1.png"), ["'photos'", "data.source_dir="]),
        ((*in_splits("train", "val", "valid"),), ["'val', 'valid'", "the split 'val'"]),
        ((*in_splits("train", "Train", "test"),), ["'Train', 'train'"]),
        ((*in_splits("train", "unlabeled"),), ["'train'", "'unlabeled'", "'cat', 'dog'"]),
        ((*in_splits("Training", "Prüfung"),), ["'Training'", "'Prüfung'"]),
        ((*in_splits("learn", "test_set"),), ["'test_set'", "'learn'"]),
    ],
)
def test_listing_refuses_splits_that_it_could_only_guess(tmp_path, files, named):
    """Each of these would train on held-out images if its folders were taken for classes."""
    directory = make(tmp_path, *files)
    with pytest.raises(UserError) as error:
        image_folder.listing(directory)
    assert all(text in str(error.value) for text in (*named, str(tmp_path))) and "\n" not in str(
        error.value
    )


@pytest.mark.parametrize(
    ("files", "noted"),
    [
        (("bus/1.png", "train/1.png", "car/1.png"), "'train'"),  # a vehicle
        (("bus/1.png", "train/old/1.png", "car/1.png"), "'train'"),
        (("control/1.png", "test/1.png"), "'test'"),
        (("test tube/1.png", "flask/1.png"), "'test tube'"),
    ],
)
def test_listing_notes_classes_named_like_splits(tmp_path, files, noted):
    """The name "train" among other vehicles is a class, and a note says so."""
    result = image_folder.listing(make(tmp_path, *files))
    assert result.class_names == tuple(sorted({file.split("/")[0] for file in files}))
    (note,) = result.notes
    assert noted in note and "taken for classes" in note


@pytest.mark.parametrize(
    "names", [("entrenamiento", "prueba"), ("训练", "测试"), ("trn", "tst"), ("fold1", "fold2")]
)
def test_listing_notes_classes_that_hold_the_same_folders(tmp_path, names):
    """Splits in another language cannot be distinguished from classes by their names; if all of
    them hold the same folders, a user should know before held-out images are trained on."""
    result = image_folder.listing(make(tmp_path, *in_splits(*names)))
    assert result.class_names == tuple(sorted(names))
    (note,) = result.notes
    assert "'cat', 'dog'" in note and all(repr(name) in note for name in names)


def test_listing_notes_a_folder_wrapped_around_the_classes(tmp_path):
    """An archive's one top folder is the only class, and its classes are none: the line says where
    they lie."""
    result = image_folder.listing(make(tmp_path, "photos/cat/1.png", "photos/dog/1.png"))
    assert result.class_names == ("photos",)
    (note,) = result.notes
    assert "one class, 'photos'" in note and f"data.source_dir={tmp_path / 'photos'}" in note
    assert image_folder.listing(str(tmp_path / "photos")).notes == ()


def test_listing_keeps_the_classes_of_a_run_that_took_splits_for_them(tmp_path):
    """Such a run can be resumed as it began; only new runs read the splits."""
    directory = make(tmp_path, *in_splits("train", "valid"))
    assert image_folder.listing(directory, class_names=("train", "valid")).class_names == (
        "train",
        "valid",
    )
    assert image_folder.listing(directory, class_names=("another", "run")).class_names == (
        "cat",
        "dog",
    )


def test_layout_does_not_look_into_hidden_folders(tmp_path):
    """A hidden folder is no split at the top and no class in a split: the layout has the visible
    splits and classes alone."""
    make(tmp_path, *in_splits("train", "test"), ".cache/cat/1.png", "train/.thumbs/cat/1.png")
    parts = split_folders.layout(image_folder.epath.Path(tmp_path)).parts
    assert {part.split: sorted(part.classes) for part in parts} == {
        "train": ["cat", "dog"],
        "test": ["cat", "dog"],
    }
