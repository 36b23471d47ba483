"""What the files of an image folder hold, seen once when the folder is prepared.

A run starts with lines of what a user would not expect and cannot see in a loss: images composited
on a background, frames that are left out, sets that are nearly black. The findings lie beside the
prepared copy, so that a large folder is decoded for them once.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import itertools
import json
import logging
from collections.abc import Sequence
from typing import NamedTuple

from etils import epath

from var_jax.data import image_file, readahead, transforms
from var_jax.data.image_folder import FILES_A_TASK, Listing, printable
from var_jax.errors import UserError
from var_jax.io import atomic

FILE = "survey.json"
# 1 dropped transparency and EXIF orientation, and read each 16-bit sample as if its white were
# 65535.
DECODING = 2
KINDS = ("transparent", "turned", "rescaled", "thin", "several")
NAMES_SHOWN = 3
log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Survey:
    """Findings over the files of a folder.

    Attributes:
      images: how many decode.
      bad: {name: message} of those that do not.
      transparent, turned, rescaled, thin, several: names of images that are transparent somewhere,
        that EXIF turns, whose white is not the usual one of their depth, that are too long to be
        cropped whole, and of files with more frames or pages than the one that is read.
      brightest: highest value of all images, of 255.
      brightest_deep: highest value of those with 16 bits, of 65535; None without any.
    """

    images: int = 0
    bad: dict[str, str] = dataclasses.field(default_factory=dict)
    transparent: tuple[str, ...] = ()
    turned: tuple[str, ...] = ()
    rescaled: tuple[str, ...] = ()
    thin: tuple[str, ...] = ()
    several: tuple[str, ...] = ()
    brightest: int = 0
    brightest_deep: int | None = None

    @property
    def decoding(self) -> int:
        """The version of the decoder that first gave the images' pixels as they are now."""
        return DECODING if self.transparent or self.turned or self.rescaled or self.thin else 1

    def remarks(self, directory: str) -> list[str]:
        """Returns what a user should know before training, a line each."""
        most = transforms.MAX_ASPECT
        lines = [
            f"{_some(names, self.images)} of {directory} {what}"
            for names, what in (
                (self.transparent, "are transparent in places and are composited on white"),
                (self.several, "have several frames or pages, of which the first is used"),
                (
                    self.thin,
                    f"are more than {most} times as long as wide; crops come from their middle",
                ),
            )
            if names
        ]
        brightest = self.brightest if self.images else 255
        return [*lines, *dark_remarks(directory, brightest, self.brightest_deep)]


def dark_remarks(directory: str, brightest: int, brightest_deep: int | None = None) -> list[str]:
    """Returns a line that says how dark a set of images is, where its white seems to be another.

    Args:
      directory: of the set, for the line.
      brightest, brightest_deep: as `Survey` has them.
    """
    if brightest_deep is not None and brightest_deep < 65535 * image_file.DARK:
        return [
            f"no 16-bit image of {directory} is brighter than {brightest_deep // 257} of 255 "
            f"({brightest_deep} of 65535): if their white is lower than 65535, as that of 10, "
            "12 or 14 bits, scale them first"
        ]
    if brightest < 255 * image_file.DARK:
        return [
            f"no image of {directory} is brighter than {brightest} of 255: if their white is "
            "lower than 255, scale them first"
        ]
    return []


class _Facts(NamedTuple):
    """What counts of one file: its pixels are let go at once. `error` is "" of one that decodes."""

    name: str
    error: str = ""
    kinds: tuple[str, ...] = ()
    brightest: int = 0
    deep: bool = False


def survey(files: Listing) -> Survey:
    """Returns the findings over a folder's files, each of which is decoded to its end."""
    starts = range(0, len(files.files), FILES_A_TASK)

    def some(start: int) -> list[_Facts]:
        return [_facts(files, file.name) for file in files.files[start : start + FILES_A_TASK]]

    # Pillow decodes outside Python's lock.
    with concurrent.futures.ThreadPoolExecutor(readahead.available_cpus()) as pool:
        facts = list(itertools.chain.from_iterable(pool.map(some, starts)))
    fine = [fact for fact in facts if not fact.error]
    kinds = {kind: tuple(fact.name for fact in fine if kind in fact.kinds) for kind in KINDS}
    return Survey(
        images=len(fine),
        bad={fact.name: fact.error for fact in facts if fact.error},
        brightest=max((fact.brightest // (257 if fact.deep else 1) for fact in fine), default=0),
        brightest_deep=max((fact.brightest for fact in fine if fact.deep), default=None),
        **kinds,
    )


def load(directory: epath.Path) -> Survey | None:
    """Returns the findings beside a prepared copy; None of a copy without, or of another
    version's."""
    try:
        values = json.loads((directory / FILE).read_text())
        kept = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in values.pop("findings").items()
        }
        return Survey(**kept) if values == {"decoding": DECODING} else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def save(found: Survey, directory: epath.Path):
    """Writes the findings beside a prepared copy; where that fails, the next run looks again."""
    values = {"decoding": DECODING, "findings": dataclasses.asdict(found)}
    with contextlib.suppress(OSError):
        atomic.write(directory / FILE, json.dumps(values, indent=1))


@functools.cache
def say(line: str):
    """Logs a line once in a process, which opens a data set for each of its splits."""
    log.warning("%s", line)


def _facts(files: Listing, name: str) -> _Facts:
    path = files.root / name
    try:
        samples = image_file.read(path.read_bytes(), str(path))
        image_file.pixels_of(samples, str(path))
    except UserError as error:
        return _Facts(name, str(error))
    except OSError as error:
        return _Facts(name, f"{path} cannot be read ({error.strerror or error})")
    height, width = samples.values.shape[:2]
    is_thin = max(height, width) > transforms.MAX_ASPECT * min(height, width)
    holds = {
        "transparent": samples.alpha is not None,
        "turned": samples.turned,
        "rescaled": samples.rescaled,
        "thin": is_thin,
        "several": samples.several,
    }
    kinds = tuple(kind for kind in KINDS if holds[kind])
    return _Facts(name, "", kinds, int(samples.values.max()), samples.white == 65535)


def _some(names: Sequence[str], count: int) -> str:
    shown = ", ".join(map(printable, names[:NAMES_SHOWN]))
    return f"{len(names)} of the {count} images ({shown}{', ...' * (len(names) > NAMES_SHOWN)})"
