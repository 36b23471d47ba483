"""Data sets of TFDS and of idx files: what is prepared, read and refused."""

import gzip
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from helpers.image_bytes import idx
from var_jax.config.train import DataConfig
from var_jax.data import builders, loader, prepare, sources
from var_jax.errors import UserError


def pixels_of(split) -> dict[int, bytes]:
    return {i: split[i]["image"].tobytes() for i in range(len(split))}


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> DataConfig:
    return DataConfig(data_dir=str(tmp_path_factory.mktemp("tfds")))


def test_digits_are_split_once_and_for_all(digits):
    """Both parts together are scikit-learn's images, each once, with about as many of each digit
    held out."""
    train, test = sources.open_split(digits, "train"), sources.open_split(digits, "test")
    assert (len(train), len(test)) == (1437, 360)
    assert train.class_names == tuple("0123456789")
    example = train[0]
    assert example["image"].shape == (8, 8, 1) and example["image"].dtype == np.uint8
    counts = np.bincount([test[i]["label"] for i in range(360)])
    assert counts.min() >= 34 and counts.max() <= 37
    # All of scikit-learn's images, each once: 1,797 pictures, of which none is in both parts.
    actual = [*pixels_of(train).values(), *pixels_of(test).values()]
    from sklearn.datasets import load_digits

    expected = np.round(load_digits().images * 255 / 16).astype(np.uint8)
    assert sorted(actual) == sorted(image.tobytes() for image in expected)
    assert not set(pixels_of(train).values()) & set(pixels_of(test).values())


@pytest.mark.long
def test_sources_read_without_tensorflow(digits):
    """A process of its own reads batches and has not imported it."""
    code = (
        "import sys; from var_jax.data import loader; from var_jax.config.train import DataConfig\n"
        "assert 'tensorflow_datasets' not in sys.modules\n"
        f"next(loader.train_batches(DataConfig(data_dir={digits.data_dir!r}), (16, 16, 1), 8, 0))\n"
        "assert 'tensorflow' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_open_split_takes_names_and_slices(digits):
    """A tenth has a tenth of the images; an unknown name and an empty slice are named."""
    assert len(sources.open_split(digits, "train[:10%]")) == 144
    with pytest.raises(
        UserError, match="'digits' has no split 'tset' with images; did you mean 'test'"
    ):
        sources.open_split(digits, "tset")
    with pytest.raises(UserError, match="no split .* with images"):
        sources.open_split(digits, "train[:0]")


def test_sources_prepare_twice_at_once_and_after_a_stop(tmp_path, monkeypatch):
    """What an interrupted or killed process leaves is no data set, two at once leave one, and a
    damaged one is named."""
    data = DataConfig(data_dir=str(tmp_path))
    generate = builders.Digits._split_generators
    calls = []

    def interrupted(self, manager):
        calls.append(self)
        if len(calls) == 1:
            raise KeyboardInterrupt
        if len(calls) == 2:  # while this one writes, another process begins and ends
            assert len(sources.open_split(data, "train")) == 1437
        return generate(self, manager)

    monkeypatch.setattr(builders.Digits, "_split_generators", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sources.open_split(data, "train")
    (tmp_path / "digits" / "incomplete.ABCDEF_1.0.0").mkdir(
        parents=True
    )  # what a killed process leaves
    assert len(sources.open_split(data, "test")) == 360
    assert len(calls) == 3
    assert len(sources.open_split(data, "test")) == 360 and len(calls) == 3
    (tmp_path / "digits" / "1.0.0" / "features.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        sources.open_split(data, "test")


@pytest.fixture
def fashion(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "idx"
    folder.mkdir()
    arrays = {}
    for stem, count, pack in (("train", 7, gzip.compress), ("t10k", 3, bytes)):
        arrays[stem] = (
            rng.integers(0, 256, (count, 28, 28), np.uint8),
            np.arange(count, dtype=np.uint8),
        )
        suffix = ".gz" if pack is gzip.compress else ""
        (folder / f"{stem}-images-idx3-ubyte{suffix}").write_bytes(pack(idx(arrays[stem][0])))
        (folder / f"{stem}-labels-idx1-ubyte{suffix}").write_bytes(pack(idx(arrays[stem][1])))
    return (
        DataConfig(
            name="fashion_mnist_idx", source_dir=str(folder), data_dir=str(tmp_path / "tfds")
        ),
        arrays,
        folder,
    )


def test_sources_read_idx_files_gzipped_or_not(fashion):
    """Images and labels are those written, and other files under the same names are read anew."""
    data, arrays, folder = fashion
    for name, stem in (("train", "train"), ("test", "t10k")):
        split = sources.open_split(data, name)
        images, labels = arrays[stem]
        assert split.class_names[9] == "Ankle boot"
        assert len(split) == len(labels)
        read = {split[i]["label"]: split[i]["image"][..., 0] for i in range(len(split))}
        for image, label in zip(images, labels, strict=True):
            np.testing.assert_array_equal(read[int(label)], image)
    # Other files under the same names are another data set.
    (folder / "t10k-labels-idx1-ubyte").write_bytes(idx(np.array([5, 5, 5], np.uint8)))
    os.utime(folder / "t10k-labels-idx1-ubyte", (1, 1))
    assert [e["label"] for e in sources.open_split(data, "test")] == [5, 5, 5]


def test_idx_files_of_zeros_and_ones_are_called_dark(fashion, caplog):
    """Binary digits saved as 0 and 1 are nearly black to a model, which no loss shows."""
    data, arrays, folder = fashion
    for stem, pack, suffix in (("train", gzip.compress, ".gz"), ("t10k", bytes, "")):
        (folder / f"{stem}-images-idx3-ubyte{suffix}").write_bytes(
            pack(idx(arrays[stem][0] // 128))
        )
    sources.open_split(data, "train")
    assert "brighter than 1 of 255" in caplog.text and str(folder) in caplog.text


@pytest.mark.parametrize(
    ("name", "damage", "reason"),
    [
        ("train-images-idx3-ubyte.gz", lambda c: c[:200], "damaged gzip"),
        ("t10k-images-idx3-ubyte", lambda c: c[:200], "bytes for the shape"),
        ("t10k-labels-idx1-ubyte", lambda c: b"\0\0\x0d" + c[3:], "no idx file"),
        ("t10k-labels-idx1-ubyte", lambda c: idx(np.zeros(4, np.uint8)), "4 labels"),
        ("t10k-labels-idx1-ubyte", lambda c: idx(np.full(3, 10, np.uint8)), "label 10"),
        ("t10k-labels-idx1-ubyte", None, "neither"),
    ],
)
def test_open_split_names_a_damaged_idx_file(fashion, name, damage, reason):
    """One line has the file and the damage, and nothing is prepared."""
    data, _, folder = fashion
    if damage is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(damage((folder / name).read_bytes()))
    with pytest.raises(UserError, match=reason) as error:
        sources.open_split(data, "train")
    assert name in str(error.value) and "\n" not in str(error.value)
    assert not list((folder.parent / "tfds").rglob("dataset_info.json"))
    with pytest.raises(UserError, match="dataset-fashion-mnist"):
        sources.open_split(
            DataConfig(name="fashion_mnist_idx", source_dir=str(folder / "none")), "train"
        )


def test_open_split_takes_any_tfds_name():
    """A data set of images and labels gives batches without TensorFlow, and one without either is
    named with the features that it has."""
    import tensorflow_datasets as tfds

    data = DataConfig(name="imagenet2012")
    with tfds.testing.mock_data(num_examples=11):
        split = sources.open_split(data, "train")
        assert len(split) == 11 and len(split.class_names) == 1000
        batch = next(loader.train_batches(data, (24, 32, 3), 4, 0))
        assert batch["image"].shape == (4, 24, 32, 3) and batch["image"].dtype == np.uint8
        masks = [b["mask"] for b in loader.eval_batches(data, (32, 32, 1), 8, split="validation")]
        assert [m.sum() for m in masks] == [8, 3]
        with pytest.raises(
            UserError, match=r"'lfw' has no ClassLabel feature 'label'; it has .*label \(Text\)"
        ):
            sources.open_split(DataConfig(name="lfw"), "train")
        with pytest.raises(
            UserError, match=r"'penguins' has no Image feature 'image'; it has .*features \(Tensor"
        ):
            sources.open_split(DataConfig(name="penguins"), "train")
    assert "tensorflow" not in sys.modules


def test_images_of_floats_are_refused(monkeypatch):
    """TFDS stores the bytes of floats as if they were four channels of color."""
    import tensorflow_datasets as tfds

    image = tfds.features.Image(shape=(None, None, 1), dtype=np.float32)
    builder = SimpleNamespace(info=SimpleNamespace(features={"image": image}))
    monkeypatch.setattr(prepare, "prepare_data_set", lambda data: builder)
    with pytest.raises(UserError, match="'depths' has images of float32.*uint8 or uint16"):
        sources.open_split(DataConfig(name="depths"), "train")


@pytest.mark.parametrize("name", ["lsun/bedroom", "open_images_v4"])
def test_open_split_of_images_without_a_label_has_one_class(name):
    """A data set of images without labels opens with one class, "all": its records and its training
    batches have label 0 and three channels."""
    import tensorflow_datasets as tfds

    data = DataConfig(name=name)
    with tfds.testing.mock_data(num_examples=5):
        split = sources.open_split(data, "train")
        assert split.class_names == ("all",) and len(split) == 5
        assert {split[i]["label"] for i in range(5)} == {0} and split[0]["image"].shape[-1] == 3
        batch = next(loader.train_batches(data, (24, 32, 3), 4, 0))
    assert batch["image"].shape == (4, 24, 32, 3) and batch["label"].tolist() == [0] * 4


def test_fingerprint_of_another_prepared_copy_is_another(tmp_path):
    """The version of a data set that is not our own says only as much as its makers mean it to, so
    that content decides."""
    import tensorflow_datasets as tfds

    class Theirs(builders.Digits, skip_registration=True):
        name = "theirs"

        def __init__(self, *, data_dir, rows, config="small"):
            self._rows = rows
            super().__init__(data_dir=data_dir, config=tfds.core.BuilderConfig(name=config))

        def _split_generators(self, dl_manager):
            pixels = np.random.default_rng(0).integers(0, 256, (20, 8, 8), np.uint8)
            pixels[10] = 0  # of which the file is smaller
            return {
                split: self._generate_examples(pixels, np.zeros(20), rows)
                for split, rows in self._rows.items()
            }

    def fingerprint(place: str, train, test=(0, 1), **options) -> str:
        builder = Theirs(
            data_dir=str(tmp_path / place), rows={"train": train, "test": test}, **options
        )
        builder.download_and_prepare(file_format="array_record")
        prepared = tfds.builder_from_directory(builder.data_dir)
        splits = [sources.TfdsSplit(prepared, split) for split in ("train", "test")]
        assert splits[0].fingerprint == splits[1].fingerprint
        return splits[0].fingerprint

    first = fingerprint("first", range(5))
    assert fingerprint("again", range(5)) == first
    others = (
        fingerprint("longer", range(6)),
        fingerprint("test", range(5), (0, 1, 2)),
        fingerprint("bytes", (0, 1, 2, 3, 10)),
        fingerprint("config", range(5), config="large"),
    )
    assert len({first, *others}) == 5


def test_open_split_names_what_tfds_cannot_give(tmp_path):
    """Unknown names come with the nearest one or the known ones, and a download that needs a hand
    and a directory that cannot be written are named."""
    with pytest.raises(
        UserError, match="unknown data set 'imagenet2013'; did you mean 'imagenet2012'"
    ):
        sources.open_split(DataConfig(name="imagenet2013", data_dir=str(tmp_path)), "train")
    with pytest.raises(UserError, match="unknown data set 'qqqqqqqqq'; known: digits"):
        sources.open_split(DataConfig(name="qqqqqqqqq", data_dir=str(tmp_path)), "train")
    with pytest.raises(UserError, match="TFDS cannot prepare 'imagenet2012' here") as error:
        sources.open_split(DataConfig(name="imagenet2012", data_dir=str(tmp_path)), "train")
    assert "\n" not in str(error.value)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        sources.open_split(DataConfig(data_dir=str(tmp_path / "file")), "train")
