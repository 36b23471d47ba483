"""Sets of images to compare: archives, folders, data sets, and what is refused."""

import io
import re
import zipfile

import numpy as np
import pytest
from PIL import Image

from helpers.image_bytes import png
from var_jax.config.train import DataConfig
from var_jax.data import image_folder, sources, transforms
from var_jax.errors import UserError
from var_jax.evaluate import image_sets
from var_jax.evaluate.image_sets import open_images

PIXELS = np.random.default_rng(0).integers(0, 256, (7, 5, 6, 3), dtype=np.uint8)


def all_of(images, batch_size=3):
    batches = list(images.read(batch_size))
    labels = [b.labels for b in batches]
    return (
        np.concatenate([b.images for b in batches]),
        None if labels[0] is None else np.concatenate(labels),
    )


def folder(directory, pixels=PIXELS):
    for i, image in enumerate(pixels):
        file = directory / f"{i % 2}" / f"{i:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
    (directory / "notes.txt").write_text("no image")
    return directory


def test_open_images_reads_an_npz(tmp_path):
    """Images and labels come in order for any batch size, compressed or not; a part of them is
    drawn by the seed without repetition."""
    file = tmp_path / "a.npz"
    for save in (np.savez, np.savez_compressed):
        save(file, PIXELS, np.arange(7))
        images = open_images(str(file))
        assert (images.count, images.shape, len(images.class_names)) == (7, (5, 6, 3), 7)
        for size in (1, 3, 7, 100):
            result, labels = all_of(images, size)
            np.testing.assert_array_equal(result, PIXELS)
            np.testing.assert_array_equal(labels, np.arange(7))
    np.savez(file, PIXELS)
    assert all_of(open_images(str(file)))[1] is None
    some = open_images(str(file), num=4, seed=5)
    result = all_of(some, 2)[0]
    assert len(result) == some.count == 4
    places = [int(np.flatnonzero((one == PIXELS).all((1, 2, 3)))[0]) for one in result]
    others = all_of(open_images(str(file), num=4, seed=6), 2)[0]
    assert (
        len(set(places)) == 4
        and others.shape == result.shape
        and not np.array_equal(others, result)
    )
    np.testing.assert_array_equal(result, all_of(open_images(str(file), num=4, seed=5), 7)[0])


def test_open_images_reads_a_folder_by_path(tmp_path):
    """Images come in the order of their paths and are resized as Pillow does by hand."""
    images = open_images(str(folder(tmp_path)))
    order = [0, 2, 4, 6, 1, 3, 5]  # by path
    np.testing.assert_array_equal(all_of(images)[0], PIXELS[order])
    fitted = open_images(str(tmp_path), shape=(4, 4, 1), resize="stretch")
    by_hand = [
        np.asarray(Image.fromarray(PIXELS[i]).convert("L").resize((4, 4), Image.Resampling.LANCZOS))
        for i in order
    ]
    np.testing.assert_array_equal(all_of(fitted)[0][..., 0], by_hand)
    assert (
        fitted.fingerprint != images.fingerprint and fitted.resize == "stretch, centered, to 4 x 4"
    )


@pytest.mark.parametrize(
    ("resize", "earlier", "expected"),
    [
        ("crop", "crop", "964334cfb53f9979"),
        ("stretch", "whole", "f130b3d106797875"),
        ("whole", "whole", "f130b3d106797875"),
        ("pad", "pad", "b13b5fc7941de8fa"),
    ],
)
def test_open_images_gives_the_fingerprints_of_the_earlier_version(
    tmp_path, resize, earlier, expected
):
    """Caches of features and rows of studies have these, which the version computed that called
    "stretch" by another name; what that version wrote into reports is read in today's words."""
    for number in range(2):
        pixels = np.full((3, 4), number * 50, np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    images = open_images(str(tmp_path), shape=(4, 4, 1), resize=resize)
    assert images.fingerprint == expected
    rest = "; images of that size as they are" if resize == "crop" else ""
    assert image_sets.current_text(f"{earlier}, centred, to 4 x 4{rest}") == images.resize
    assert image_sets.current_text(images.resize) == images.resize
    assert image_sets.current_text("none") == "none"


@pytest.mark.parametrize("resize", ["crop", "stretch", "whole", "pad"])
def test_open_images_takes_images_of_the_size_as_they_are(tmp_path, digits_dir, resize):
    """Whatever the way of resizing, pixels of the wanted height and width come unchanged from
    folders and data sets: "crop" would enlarge them by 1.125 and cut, and set a folder apart from
      itself."""
    same = folder(tmp_path / "same")
    sized = open_images(str(same), shape=(5, 6, 3), resize=resize)
    np.testing.assert_array_equal(all_of(sized)[0], all_of(open_images(str(same)))[0])
    digits = [
        open_images("digits:test[:5]", data_dir=str(digits_dir), shape=shape, resize=resize)
        for shape in (None, (8, 8, 1))
    ]
    np.testing.assert_array_equal(*(all_of(images)[0] for images in digits))
    gray = all_of(open_images(str(same), shape=(5, 6, 1), resize=resize))[0]
    by_hand = np.asarray(Image.fromarray(PIXELS[0]).convert("L"))
    np.testing.assert_array_equal(gray[0, ..., 0], by_hand)


def test_open_images_crops_only_images_of_another_size(tmp_path):
    """In one folder, the image of the wanted size is unchanged and the larger one is cropped as in
    training."""
    large = np.kron(PIXELS[1], np.ones((3, 3, 1), np.uint8))
    for name, pixels in (("a", PIXELS[0]), ("b", large)):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    images = open_images(str(tmp_path), shape=(5, 6, 3))
    cropped = transforms.crop(transforms.fit(large, (5, 6, 3), "crop"), (5, 6, 3))
    np.testing.assert_array_equal(all_of(images)[0], [PIXELS[0], cropped])
    assert images.resize == "crop, centered, to 5 x 6; images of that size as they are"


def test_open_images_and_training_see_the_same_files(tmp_path):
    """Hidden files and folders at any depth are in neither's list, and what else there is, is in
    both."""
    shown = folder(tmp_path / "shown")
    (shown / "notes.txt").unlink()
    for hidden in (
        ".ipynb_checkpoints",
        ".Trash-1000",
        "0/.ipynb_checkpoints",
        "1/.thumbnails/large",
    ):
        (shown / hidden).mkdir(parents=True)
        Image.fromarray(PIXELS[0]).save(shown / hidden / "copy.png")
    for name in ("._00.png", ".DS_Store", "0/._00.png", ".hidden.png"):
        (shown / name).write_bytes(b"no image")
    (shown / "0" / "deep" / "deeper").mkdir(parents=True)
    Image.fromarray(PIXELS[0]).save(shown / "0" / "deep" / "deeper" / "x.PNG")
    images = open_images(str(shown))
    assert images.count == 8 == len(all_of(images)[0])
    assert image_folder.listing(str(shown)).class_names == ("0", "1")
    assert len(image_folder.listing(str(shown)).files) == 8


@pytest.mark.parametrize("channels", [1, 3])
def test_open_images_says_how_dark_all_images_are_together(tmp_path, caplog, channels):
    """One that uses all 16 bits, last, is enough to know the set's white; without it, one line
    names the set's highest value, gray or color, once all images are read."""
    color_type = {1: 0, 3: 2}[channels]
    for name, value in (("0.png", 100), ("1.png", 4095), ("2.png", 65535)):
        pixels = np.full((4, 4, channels), value, np.uint16)
        for directory in ("all", "dark"):
            (tmp_path / directory).mkdir(exist_ok=True)
            if directory == "all" or value < 65535:
                (tmp_path / directory / name).write_bytes(png(pixels, 16, color_type))
    all_of(open_images(str(tmp_path / "all")))
    assert caplog.text == ""
    all_of(open_images(str(tmp_path / "dark")))
    (record,) = caplog.records
    assert "dark is brighter than 15 of 255 (4095 of 65535)" in record.getMessage()


def test_open_images_counts_the_files_it_leaves_out(tmp_path, caplog):
    """Training tries every visible file, so that the sets differ by what has another ending."""
    (folder(tmp_path) / "0" / "read.me").write_text("no image")
    images = open_images(str(tmp_path))
    assert images.count == 7
    (record,) = caplog.records
    assert f"7 images of {tmp_path}; 2 files are left out" in record.getMessage()
    assert "(0/read.me, ...)" in record.getMessage()
    assert len(image_folder.listing(str(tmp_path)).files) == 8


def test_open_images_follows_links_but_not_in_circles(tmp_path):
    """A link to a folder outside counts as a folder; one back to a folder above it ends there."""
    folder(tmp_path / "there")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "link").symlink_to(tmp_path / "there")
    (tmp_path / "there" / "back").symlink_to(tmp_path / "there")
    assert open_images(str(tmp_path / "here")).count == 7


@pytest.mark.parametrize(
    "members",
    [("mu", "sigma"), ("arr_0", "mu", "sigma"), ("arr_0", "mu_s", "sigma_s"), ("arr_0", "mu")],
)
def test_open_images_refuses_statistics_of_a_published_protocol(tmp_path, members):
    """Its arr_0 is a part of what its moments are of: measured alone it gives another figure under
    the same name."""
    arrays = {
        "arr_0": PIXELS,
        "mu": np.zeros(3),
        "sigma": np.eye(3),
        "mu_s": np.zeros(3),
        "sigma_s": np.eye(3),
    }
    np.savez(tmp_path / "reference.npz", **{name: arrays[name] for name in members})
    with pytest.raises(
        UserError, match=f"reference.npz .*{', '.join(members[members[0] == 'arr_0' :])} "
    ) as error:
        open_images(str(tmp_path / "reference.npz"))
    assert "arr_0" in str(error.value) and "\n" not in str(error.value)


def test_open_images_reads_a_data_set(digits_dir):
    """Each image is resized as training resizes it, with its label."""
    images = open_images(
        "digits:test[:5]", data_dir=str(digits_dir), shape=(12, 10, 3), resize="crop"
    )
    result, labels = all_of(images)
    split = sources.open_split(DataConfig("digits", data_dir=str(digits_dir)), "test[:5]")
    for i in range(5):
        fitted = transforms.crop(
            transforms.fit(split[i]["image"], (12, 10, 3), "crop"), (12, 10, 3)
        )
        np.testing.assert_array_equal(result[i], fitted)
        assert labels[i] == split[i]["label"]
    assert images.class_names == tuple("0123456789")
    assert open_images("digits:test[:5]", data_dir=str(digits_dir)).shape == (8, 8, 1)


def test_fingerprint_is_of_the_content(tmp_path, digits_dir):
    """Equal archives and folders agree; another image, number, order, split or size does not."""
    a, b = tmp_path / "a.npz", tmp_path / "b.npz"
    np.savez(a, PIXELS)
    np.savez(b, PIXELS)
    assert open_images(str(a)).fingerprint == open_images(str(b)).fingerprint
    assert open_images(str(a)).fingerprint != open_images(str(a), num=3).fingerprint
    np.savez(b, PIXELS[::-1])
    assert open_images(str(a)).fingerprint != open_images(str(b)).fingerprint
    one, other = folder(tmp_path / "one"), folder(tmp_path / "other")
    assert open_images(str(one)).fingerprint == open_images(str(other)).fingerprint
    Image.fromarray(255 - PIXELS[0]).save(other / "0" / "00.png")
    assert open_images(str(one)).fingerprint != open_images(str(other)).fingerprint
    digits = {
        open_images(
            f"digits:{split}", data_dir=str(digits_dir), shape=shape, resize="pad"
        ).fingerprint
        for split in ("train", "test", "test[:20]")
        for shape in ((8, 8, 1), (9, 9, 1))
    }
    assert len(digits) == 6


def npy(array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize("label", [-1, 1_000_000, 2**33])
def test_open_images_refuses_a_label_that_is_no_class_id(tmp_path, label):
    """A million classes is the limit, so that a label cannot exhaust the memory."""
    file = tmp_path / "a.npz"
    np.savez(file, PIXELS, np.array([0, 1, 2, 3, 4, 5, label]))
    output = f"a label in arr_1 of {file} is {label}; it must be from 0 to 999,999"
    with pytest.raises(UserError, match=f"^{re.escape(output)}$"):
        open_images(str(file))
    np.savez(file, PIXELS, np.array([0, 1, 2, 3, 4, 5, 999_999]))
    assert len(open_images(str(file)).class_names) == 10**6


@pytest.mark.parametrize("lost", [0, 1])
def test_open_images_refuses_an_array_shorter_than_its_header(tmp_path, lost):
    """The line has both numbers of bytes."""
    arrays = [npy(PIXELS), npy(np.arange(7))]
    full = len(arrays[lost])
    arrays[lost] = arrays[lost][:-16]  # two labels
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for i, content in enumerate(arrays):
            archive.writestr(f"arr_{i}.npy", content)
    promised = full - 128  # of the header
    with pytest.raises(
        UserError,
        match=f"a.npz is cut off: arr_{lost} holds {promised - 16} bytes of the {promised} ",
    ):
        open_images(str(tmp_path / "a.npz"))


@pytest.mark.parametrize("lost", [0, 1])
def test_open_images_refuses_an_archive_shorter_than_its_list(tmp_path, lost):
    """The archive's list promises more bytes than there are, which is noticed while reading."""
    names, arrays = ["arr_0.npy", "arr_1.npy"], [npy(PIXELS), npy(np.arange(7))]
    size = len(arrays[lost])
    arrays[lost] = arrays[lost][:-16]
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name, content in zip(names, arrays, strict=True):
            archive.writestr(name, content)
        archive.getinfo(names[lost]).file_size = size  # as the list at the end will say
    with pytest.raises(
        UserError,
        match=f"a.npz is cut off: arr_{lost} ends before its 7 {('images', 'labels')[lost]}",
    ):
        all_of(open_images(str(tmp_path / "a.npz")), 7)


def test_open_images_refuses_damaged_compressed_bytes(tmp_path):
    """An archive whose compressed bytes were overwritten is refused with its name, and gives no
    images."""
    file = tmp_path / "a.npz"
    np.savez_compressed(file, np.zeros((7, 50, 60, 3), np.uint8))
    content = bytearray(file.read_bytes())
    content[len("arr_0.npy") + 60 : len("arr_0.npy") + 90] = bytes(30)
    file.write_bytes(content)
    with pytest.raises(UserError, match="a.npz does not read as .npz"):
        all_of(open_images(str(file)))


def test_open_images_names_mistakes(tmp_path, digits_dir):
    """Each error is one line with the file or the option and what would be right."""
    file = str(tmp_path / "a.npz")

    def refused(spec, *arrays, named=None, **options) -> str:
        if arrays or named:
            np.savez(file, *arrays, **(named or {}))
        with pytest.raises(UserError) as error:
            all_of(open_images(spec, **options))
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "has no arr_0, but images; it must hold arr_0, uint8" in refused(
        file, named={"images": PIXELS}
    )
    assert "float32 of (7, 5, 6, 3); it must be uint8" in refused(file, PIXELS.astype(np.float32))
    assert "uint8 of (7, 5, 6)" in refused(file, PIXELS[..., 0])
    assert "uint8 of (7, 5, 6, 2)" in refused(file, PIXELS[..., :2])
    assert "empty" in refused(file, PIXELS[:0])
    assert "(5, 6, 3); it must be (8, 8, 1)" in refused(file, PIXELS, shape=(8, 8, 1))
    assert "--num is 8; it must be at most the number of images, 7" in refused(file, PIXELS, num=8)
    (tmp_path / "bad.npz").write_bytes(b"PK nothing")
    assert "does not read as .npz" in refused(str(tmp_path / "bad.npz"))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:300])
    assert "does not read as .npz" in refused(str(tmp_path / "cut.npz"))
    assert "no file" in refused(str(tmp_path / "none.npz"))
    assert "give FILE.npz, a directory of images, or DATASET:SPLIT" in refused(
        str(tmp_path / "none")
    )
    (tmp_path / "empty").mkdir()
    assert "holds no image files" in refused(str(tmp_path / "empty"))
    mixed = folder(tmp_path / "mixed")
    Image.fromarray(PIXELS[0, :3]).save(mixed / "1" / "99.png")
    assert "images of different sizes, (5, 6, 3) and (3, 6, 3)" in refused(str(mixed))
    (mixed / "1" / "99.png").write_bytes(b"nothing")
    assert "99.png does not decode" in refused(str(mixed))
    assert "unknown data set 'digist'; did you mean 'digits'" in refused("digist:test")
    assert "has no split 'val'" in refused("digits:val", data_dir=str(digits_dir))
