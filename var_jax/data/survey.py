"""Surveys the files of an image folder once, when the folder is prepared.

A run starts with warnings of surprises that a loss does not show: images composited on a
background, frames that are left out, data sets that are nearly black. The findings are saved next
to the prepared copy, so that a large folder is decoded for them only once.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import itertools
import json
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

from etils import epath

from var_jax.data import image_file, readahead, transforms
from var_jax.data.image_folder import FILES_PER_TASK, Listing, printable
from var_jax.errors import UserError
from var_jax.io import atomic
from var_jax.io.json import read_object_or_none

FILE = "survey.json"
# Version 1 dropped transparency and EXIF orientation, and took the white of every 16-bit sample for
# 65535.
DECODING = 2
FINDINGS = ("transparent", "turned", "rescaled", "thin", "several")
IMAGES_SHOWN = 3
log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Survey:
    """Findings over the files of a folder.

    Attributes:
      images: number of images that decode.
      bad: {name: error message} of files that do not decode.
      transparent: names of images with transparent pixels.
      turned: names of images that their EXIF orientation turns.
      rescaled: names of images whose white is not the usual one of their bit depth.
      thin: names of images that are too long to be cropped as a whole.
      several: names of files with several frames or pages; the first one is read.
      brightest: highest value of all images, out of 255.
      brightest_deep: highest value of the 16-bit images, out of 65535; None if there are none.
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
        """The first version of the decoder that gave the images' present pixels."""
        return DECODING if self.transparent or self.turned or self.rescaled or self.thin else 1

    def remarks(self, directory: str) -> list[str]:
        """Returns warnings for the user to read before training, one line each."""
        most = transforms.MAX_ASPECT
        lines = [
            f"{_some(names, self.images)} of {directory} {what}"
            for names, what in (
                (self.transparent, "are transparent in places and are composited on white"),
                (self.several, "have several frames or pages; the first one is used"),
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
    """Returns a warning if images are so dark that their white is probably not the nominal one.

    Args:
      directory: the images' directory, for the message.
      brightest: as in `Survey`.
      brightest_deep: as in `Survey`.
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
    """Findings on one file, whose pixels are not kept; `error` is "" if it decodes."""

    name: str
    error: str = ""
    kinds: tuple[str, ...] = ()
    brightest: int = 0
    deep: bool = False


def survey(files: Listing) -> Survey:
    """Decodes every file of a folder to its end, and returns the findings."""
    starts = range(0, len(files.files), FILES_PER_TASK)

    def survey_chunk(start: int) -> list[_Facts]:
        return [_facts(files, file.name) for file in files.files[start : start + FILES_PER_TASK]]

    # Pillow decodes outside Python's lock.
    with concurrent.futures.ThreadPoolExecutor(readahead.available_cpus()) as pool:
        facts = list(itertools.chain.from_iterable(pool.map(survey_chunk, starts)))
    return _summary(facts)


class Reading:
    """Findings over files that are read one by one; logs them when all files have been read.

    Commands that read a folder's images only once use it instead of `survey`.
    """

    def __init__(self, directory: str, count: int):
        """Makes a reading of `count` files; `directory` is named in the warnings."""
        self._directory = directory
        self._count = count
        self._facts: dict[int, _Facts] = {}

    def add(self, index: int, name: str, samples: image_file.Samples):
        """Records a file's samples; once all files are recorded, logs the warnings about them."""
        if index in self._facts:
            return
        self._facts[index] = _facts_of(name, samples)
        if len(self._facts) == self._count:
            facts = [self._facts[index] for index in sorted(self._facts)]
            for line in _summary(facts).remarks(self._directory):
                say(line)


def _summary(facts: Sequence[_Facts]) -> Survey:
    fine = [fact for fact in facts if not fact.error]
    kinds = {kind: tuple(fact.name for fact in fine if kind in fact.kinds) for kind in FINDINGS}
    return Survey(
        images=len(fine),
        bad={fact.name: fact.error for fact in facts if fact.error},
        brightest=max((fact.brightest // (257 if fact.deep else 1) for fact in fine), default=0),
        brightest_deep=max((fact.brightest for fact in fine if fact.deep), default=None),
        **kinds,
    )


def load(directory: epath.Path) -> Survey | None:
    """Returns the survey next to a prepared copy; None if it is missing, damaged or outdated."""
    try:
        values = read_object_or_none(directory / FILE) or {}
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in values.pop("findings").items()
        }
        return Survey(**fields) if values == {"decoding": DECODING} else None
    except (KeyError, TypeError, AttributeError):
        return None


def save(findings: Survey, directory: epath.Path):
    """Saves the findings next to a prepared copy; if that fails, the next run surveys it again."""
    values = {"decoding": DECODING, "findings": dataclasses.asdict(findings)}
    with contextlib.suppress(OSError):
        atomic.write(directory / FILE, json.dumps(values, indent=1))


@functools.cache
def say(line: str):
    """Logs a warning once per process, although a data set is opened once per split."""
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
    return _facts_of(name, samples)


def _facts_of(name: str, samples: image_file.Samples) -> _Facts:
    height, width = samples.values.shape[:2]
    is_thin = max(height, width) > transforms.MAX_ASPECT * min(height, width)
    holds = {
        "transparent": samples.alpha is not None,
        "turned": samples.turned,
        "rescaled": samples.rescaled,
        "thin": is_thin,
        "several": samples.several,
    }
    kinds = tuple(kind for kind in FINDINGS if holds[kind])
    brightest = int(samples.values.max())
    if samples.deep and samples.white == 255:
        brightest = brightest * 256 + 255  # only the upper byte is known
    return _Facts(name, "", kinds, brightest, samples.deep)


def _some(names: Sequence[str], count: int) -> str:
    shown = ", ".join(map(printable, names[:IMAGES_SHOWN]))
    return f"{len(names)} of the {count} images ({shown}{', ...' * (len(names) > IMAGES_SHOWN)})"
