"""What a run says of a folder's images before it trains on them."""

import dataclasses
import json

import numpy as np
import pytest
from etils import epath
from PIL import Image

from helpers.image_bytes import png, saved, tiff
from var_jax.config.train import DataConfig
from var_jax.data import image_folder, sources, survey
from var_jax.errors import UserError


def noise(*shape: int, top: int = 256, dtype=np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, top, shape, dtype)


def on_its_side() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(Image.fromarray(noise(6, 8)), "PNG", exif=exif)


def two_frames() -> bytes:
    first, second = (Image.fromarray(noise(6, 8) // (i + 1)) for i in range(2))
    return saved(first, "TIFF", save_all=True, append_images=[second])


PLAIN = saved(Image.fromarray(noise(6, 8)), "PNG")
KINDS = {
    "transparent": saved(Image.fromarray(noise(6, 8, 4)), "PNG"),
    "turned": on_its_side(),
    "rescaled": tiff(noise(6, 8, dtype=np.uint16, top=65536).tobytes(), 6, 8, 16, 0),
    "thin": saved(Image.fromarray(noise(1, 50)), "PNG"),
    "several": two_frames(),
}


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for i in range(3):
            (root / name / f"{i}.png").write_bytes(PLAIN)
    return root


@pytest.fixture
def data(folder, tmp_path):
    return DataConfig("image_folder", source_dir=str(folder), data_dir=str(tmp_path / "tfds"))


def survey_of(folder) -> survey.Survey:
    return survey.survey(image_folder.listing(str(folder)))


def copy_of(data: DataConfig) -> epath.Path:
    (path,) = epath.Path(data.data_dir).glob("image_folder/*/*/dataset_info.json")
    return path.parent


def test_survey_of_plain_images_has_nothing_to_say(folder):
    """Ordinary 8-bit images give no remark."""
    seen = survey_of(folder)
    assert (seen.images, seen.bad, seen.decoding) == (6, {}, 1)
    assert seen.remarks("photos") == []


@pytest.mark.parametrize("kind", KINDS)
def test_survey_names_the_images_of_each_kind(folder, kind):
    """Holds that a kind is found in the one file that has it, and that the data set counts as
    decoded anew where an earlier version gave that file other pixels."""
    (folder / "cat" / "odd.png").write_bytes(KINDS[kind])
    seen = survey_of(folder)
    names = {other: getattr(seen, other) for other in KINDS}
    assert names == {other: ("cat/odd.png",) if other == kind else () for other in KINDS}
    assert seen.decoding == (1 if kind == "several" else survey.DECODING)
    spoken = [line for line in seen.remarks("photos") if "cat/odd.png" in line]
    assert len(spoken) == (0 if kind in ("turned", "rescaled") else 1)
    assert all("1 of the 7 images" in line and "photos" in line for line in spoken)


@pytest.mark.parametrize(("bits", "brightest"), [(10, 3), (12, 15), (14, 63)])
def test_survey_says_how_dark_fewer_bits_in_sixteen_are(folder, bits, brightest):
    """The remark comes beside 8-bit images too, whose brightness says nothing of the others'."""
    values = noise(6, 8, dtype=np.uint16, top=2**bits)
    values[0, 0] = 2**bits - 1
    (folder / "cat" / "deep.png").write_bytes(saved(Image.fromarray(values), "PNG"))
    (line,) = survey_of(folder).remarks("photos")
    assert f"brighter than {brightest} of 255 ({2**bits - 1} of 65535)" in line


def test_survey_says_how_dark_sixteen_bit_colors_are(folder):
    """Only the upper byte of 16-bit colors is read, and the warning comes also if other images have
    8 bits."""
    values = np.full((6, 8, 3), 4095, np.uint16)
    (folder / "cat" / "deep.png").write_bytes(png(values, 16, 2))
    (line,) = survey_of(folder).remarks("photos")
    assert "brighter than 15 of 255 (4095 of 65535)" in line


def test_survey_says_how_dark_eight_bits_are(folder):
    """Images of the values 0 and 1 are remarked on."""
    for file in folder.glob("*/*.png"):
        file.write_bytes(saved(Image.fromarray(noise(6, 8, top=2)), "PNG"))
    assert "brighter than 1 of 255" in survey_of(folder).remarks("photos")[0]


def test_open_split_says_the_survey_of_a_folder_once(folder, data, caplog):
    """Two splits of the folder are opened, and the remark is logged once."""
    (folder / "cat" / "odd.png").write_bytes(KINDS["transparent"])
    for split in ("train", "test"):
        sources.open_split(data, split)
    assert caplog.text.count("composited on white") == 1


def test_fingerprint_changes_with_the_decoding_where_pixels_do(folder, data, caplog):
    """A set of plain images keeps the fingerprint that earlier versions gave it; one with a
    transparent image does not, as its pixels are others."""
    plain = sources.open_split(data, "train").fingerprint
    assert not plain.endswith(sources.NEWLY_DECODED)
    (folder / "cat" / "odd.png").write_bytes(KINDS["transparent"])
    assert sources.open_split(data, "train").fingerprint.endswith(sources.NEWLY_DECODED)


def test_survey_looks_once_through_a_copy_of_an_earlier_version(folder, data, monkeypatch):
    """An earlier version left no survey beside its copy: it is made, kept, and counts as now's."""
    (folder / "cat" / "odd.png").write_bytes(KINDS["turned"])
    now = sources.open_split(data, "train").fingerprint
    (copy_of(data) / survey.FILE).unlink()
    assert sources.open_split(data, "train").fingerprint == now
    assert json.loads((copy_of(data) / survey.FILE).read_text())["decoding"] == survey.DECODING
    monkeypatch.setattr(survey, "survey", lambda files: pytest.fail("looked through again"))
    assert sources.open_split(data, "train").fingerprint == now


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"decoding": 1, "findings": {}}',
        '{"decoding": 2, "findings": {"colors": 3}}',
    ],
)
def test_survey_that_does_not_read_is_made_again(folder, data, content):
    """Files cut short, or of another version, count as none."""
    sources.open_split(data, "train")
    (copy_of(data) / survey.FILE).write_text(content)
    assert survey.load(copy_of(data)) is None
    sources.open_split(data, "train")
    assert survey.load(copy_of(data)) == survey_of(folder)


def test_survey_names_files_of_a_copy_that_are_refused_now(folder, data, monkeypatch):
    """A copy of an earlier version may hold images that are refused today: their names, and the
    copy to remove, are in the error."""
    odd = folder / "cat" / "odd.tif"
    odd.write_bytes(PLAIN)
    sources.open_split(data, "train")
    (copy_of(data) / survey.FILE).unlink()
    refused = survey.Survey(images=6, bad={"cat/odd.tif": f"{odd} does not decode: floats"})
    monkeypatch.setattr(survey, "survey", lambda files: refused)
    with pytest.raises(UserError, match="odd.tif does not decode: floats; .*skip_bad_images"):
        sources.open_split(data, "train")
    with pytest.raises(UserError, match="odd.tif .* remove it") as error:
        sources.open_split(dataclasses.replace(data, skip_bad_images=True), "train")
    assert str(copy_of(data)) in str(error.value)
