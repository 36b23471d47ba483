"""Color images for configs/emoji.py: the 64-pixel emoji of two npm packages, as an image folder.

  python launch/emoji.py photos/emoji

Needs npm. `emoji-datasource-google` (Noto Color Emoji) and `emoji-datasource-twitter` (Twemoji) are
fetched as they are published; none of their code is run. An image is laid on white, as training
drops transparency. A class is a category in one vendor's hand, such as `food-drink-google`: a file
goes to OUT/train/CLASS or OUT/test/CLASS, a tenth to the test
split: all drawings of an emoji, by both hands and in all skin tones, to the same side, so that none
is held out which training has seen in another form.
"""

import argparse
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from PIL import Image

PACKAGES = {
    "google": "emoji-datasource-google@16.0.0",
    "twitter": "emoji-datasource-twitter@16.0.0",
}
TEST_PERCENT = 10


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="the image folder to make; must not exist")
    out = parser.parse_args(argv).out
    if out.exists():
        return fail(f"{out} exists; name a new directory")
    if shutil.which("npm") is None:
        return fail("npm is not on the PATH; install Node.js")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        made = Path(scratch) / "made"
        counts = {
            vendor: unpack(fetch(package, Path(scratch)), vendor, made)
            for vendor, package in PACKAGES.items()
        }
        made.rename(out)
    parts = ", ".join(f"{count} images of {vendor}" for vendor, count in counts.items())
    print(f"{out}: {parts}, of them {len(list(out.glob('test/*/*.png')))} held out")
    return 0


def fail(message: str) -> int:
    print(message, file=sys.stderr)
    return 2


def fetch(package: str, directory: Path) -> Path:
    """The package's archive, as `npm pack` downloads it."""
    packed = subprocess.run(
        ["npm", "pack", "--silent", package], cwd=directory, check=True, stdout=subprocess.PIPE
    )
    return directory / packed.stdout.decode().split()[-1]


def unpack(archive: Path, vendor: str, out: Path) -> int:
    """Sorts one vendor's 64-pixel images into `out`, and counts them."""
    with tarfile.open(archive) as tar:
        emoji = json.loads(content(tar, "package/emoji.json"))
        places = {image: place(one, vendor) for one in emoji for image in images(one, vendor)}
        count = 0
        for member in tar:
            folder, _, name = member.name.rpartition("/")
            if folder.endswith("/64") and member.isfile() and name in places:
                target = out / places[name] / f"{vendor}-{name}"
                target.parent.mkdir(parents=True, exist_ok=True)
                on_white(content(tar, member)).save(target)
                count += 1
    return count


def content(tar: tarfile.TarFile, member: tarfile.TarInfo | str) -> bytes:
    file = tar.extractfile(member)
    assert file is not None, f"{member} is no file"
    return file.read()


def on_white(png: bytes) -> Image.Image:
    with Image.open(io.BytesIO(png)) as image:
        rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def images(emoji: dict, vendor: str) -> list[str]:
    """Files of an emoji: itself and its skin tones."""
    variants = [emoji, *emoji.get("skin_variations", {}).values()]
    return [one["image"] for one in variants if one[f"has_img_{vendor}"]]


def place(emoji: dict, vendor: str) -> str:
    """SPLIT/CATEGORY-VENDOR of an emoji; the split by a hash of its code points."""
    held_out = int(hashlib.sha256(emoji["unified"].encode()).hexdigest(), 16) % 100 < TEST_PERCENT
    category = emoji["category"].lower().replace(" & ", "-").replace(" ", "-")
    return f"{'test' if held_out else 'train'}/{category}-{vendor}"


if __name__ == "__main__":
    sys.exit(main())
