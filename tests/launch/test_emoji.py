"""The emoji's split: all drawings of an emoji, in all hands and skin tones, are held out together
or not at all."""

import io
import json
import tarfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.scripts import load_script


@pytest.fixture(scope="module")
def emoji():
    return load_script("emoji")


def described(number: int) -> dict:
    """As the packages' emoji.json has them: half with two skin tones, every tenth not drawn by
    Twitter."""

    def one(code):
        return {
            "unified": code,
            "image": f"{code.lower()}.png",
            "has_img_google": True,
            "has_img_twitter": bool(number % 10),
        }

    code = f"1F{number:03X}"
    tones = {tone: one(f"{code}-{tone}") for tone in ("1F3FB", "1F3FF")} if number % 2 else {}
    return {**one(code), "category": "People & Body", "skin_variations": tones}


def archive(path: Path, emoji: list[dict], vendor: str) -> Path:
    """A package of one vendor; the pixels are see-through but for one."""
    sampled = np.zeros((64, 64, 4), np.uint8)
    sampled[0, 0] = 0, 0, 255, 255
    png = io.BytesIO()
    Image.fromarray(sampled).save(png, "PNG")
    names = [
        x["image"]
        for one in emoji
        for x in (one, *one["skin_variations"].values())
        if x[f"has_img_{vendor}"]
    ]
    with tarfile.open(path, "w:gz") as tar:
        for name, content in [
            ("package/emoji.json", json.dumps(emoji).encode()),
            *((f"package/img/{vendor}/64/{name}", png.getvalue()) for name in names),
        ]:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def test_split_is_by_emoji_never_by_file(emoji, tmp_path):
    """400 emoji of two vendors: all drawings of one are on the same side, and about a tenth is held
    out."""
    known = [described(number) for number in range(400)]
    for vendor in ("google", "twitter"):
        emoji.unpack(archive(tmp_path / f"{vendor}.tgz", known, vendor), vendor, tmp_path / "made")
    sides = defaultdict(set)
    files = list((tmp_path / "made").glob("*/people-body-*/*.png"))
    for file in files:
        code = file.stem.partition("-")[2].partition("-")[0]
        sides[code].add(file.parts[-3])
    assert all(file.parent.name == f"people-body-{file.stem.partition('-')[0]}" for file in files)
    assert len(files) == 400 + 360 + 2 * 2 * 200 - 0 and len(sides) == 400
    assert all(len(side) == 1 for side in sides.values())
    held_out = sum(side == {"test"} for side in sides.values())
    assert 20 < held_out < 60  # a tenth
    with Image.open(files[0]) as image:
        assert (
            image.mode == "RGB"
            and image.getpixel((0, 0)) == (0, 0, 255)
            and image.getpixel((9, 9)) == (255,) * 3
        )
