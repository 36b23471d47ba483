"""Sample sets of evaluation size: drawn in files that a kill leaves whole, by any number of hosts,
then joined.

Image i depends on the seed, i and its label alone, and which images lie in which file on what the
set was begun with: a host draws every `shard_count`-th file from its own place on, and what is
there already is kept. Files are renamed into place when they are whole. Whoever finds all of them
there joins them, so hosts need not wait for each other, nor a resumed run have as many. The joined
file is the same to the last byte, on as many devices of one kind a host at one batch size: others
round the last bits of a pixel otherwise, hence a set that is begun goes on with its own alone.
"""

import contextlib
import dataclasses
import functools
import io
import json
import math
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import Int, UInt8
from PIL import Image

from var_jax import Pipeline
from var_jax.config.strict import differences, require
from var_jax.data import token_cache
from var_jax.errors import UserError
from var_jax.evaluate.classifier import Scorer
from var_jax.evaluate.features import progress
from var_jax.io import atomic, model_directory
from var_jax.sampling import validate

FORMAT = 2
SHARD_IMAGES = 64  # of a file at least: smaller ones would be many
ROWS = 256  # written at once
MANIFEST = "manifest.json"
EPOCH = (
    1980,
    1,
    1,
    0,
    0,
    0,
)  # the first time that a zip can tell: the same file whenever it is written
Stored = Callable[[], UInt8[np.ndarray, "n h w c"]]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a set is made of: files of the same settings may be joined, and no others.

    Attributes:
      num: images of the set.
      labels: of the images in turn; image i has label `labels[i % len(labels)]`.
      sampling: keyword arguments of `Pipeline.sample`, the seed among them; it also shuffles the
        set.
      model: fingerprint of its weights and sizes.
      dtype: what the model computes in.
      image_shape: (height, width, channels).
      keep: share of the drawn images of a class that is kept, 1 for no rejection.
      scorer: what they are judged by, "" without rejection.
      then: fingerprint of another model that draws the last scales, "" without one.
      from_scale: the first scale that it draws.
      class_names: of the model, by id, where it carries them.
    """

    num: int
    labels: tuple[int, ...]
    sampling: dict[str, Any]
    model: str
    dtype: str
    image_shape: tuple[int, int, int]
    keep: float = 1.0
    scorer: str = ""
    then: str = ""
    from_scale: int | None = None
    class_names: tuple[str, ...] = ()

    @property
    def drawn(self) -> int:
        """Images that are drawn: for each class enough to keep the share of them."""
        turns = math.ceil(math.ceil(self.num / len(self.labels)) / self.keep)
        return self.num if self.keep == 1 else turns * len(self.labels)

    @property
    def settings(self) -> dict[str, Any]:
        """What makes the set what it is: class names are told beside it (`noted`)."""
        values = json.loads(json.dumps(dataclasses.asdict(self)))
        del values["class_names"]
        return {"format": FORMAT, **values}

    @property
    def noted(self) -> dict[str, Any]:
        """What the set's file says of itself: its settings, and the names of classes where the
        model has them."""
        return {
            **self.settings,
            **({"class_names": list(self.class_names)} if self.class_names else {}),
        }

    def label(self, indices: np.ndarray) -> Int[np.ndarray, " n"]:
        return np.asarray(self.labels, np.int32)[indices % len(self.labels)]

    def shards(self, images: int) -> list[range]:
        """Indices of the drawn images file by file, so many in each but the last."""
        return [
            range(start, min(start + images, self.drawn)) for start in range(0, self.drawn, images)
        ]


def plan(
    model: Pipeline,
    num: int,
    labels: Sequence[int] | None = None,
    *,
    keep: float = 1.0,
    scorer: str = "",
    then: Pipeline | None = None,
    from_scale: int | None = None,
    **sampling: Any,
) -> Plan:
    """The plan of a set.

    Args:
      num: images.
      labels: one an image, repeated in turn; by default every class in turn, so that none has two
        more than another.
      keep, scorer: for rejection, of each class the share that the named scorer likes best.
      then, from_scale: as `Pipeline.sample` takes them.
      sampling: "seed", "cfg", "top_k", "top_p", "temperature" and "smooth" of `Pipeline.sample`.
    Raises:
      UserError: no transformer, a label that the model does not have, a number out of range, or a
        model `then` that does not fit.
    """
    transformer = validate.transformer(model.config)
    classes = transformer.num_classes
    require(1 <= num <= 2**31, "--num", num, "from 1 to 2147483648")
    require(0 < keep <= 1, "--reject-keep", keep, "above 0 and at most 1")
    labels = tuple(range(classes)) if labels is None else tuple(int(x) for x in labels)
    for label in labels:
        require(
            0 <= label <= classes, "label", label, f"from 0 to {classes - 1} ({classes}: no class)"
        )
    require(
        keep == 1 or classes not in labels,
        "a label of a set with rejection",
        f"{classes}, no class",
        f"from 0 to {classes - 1}",
    )
    model.check_sampling(then=then, from_scale=from_scale, **sampling)
    own, partner = (
        token_cache.model_fingerprint(one.config, one.params) if one else ""
        for one in (model, then)
    )
    return Plan(
        num,
        labels,
        sampling,
        own,
        transformer.dtype,
        model.config.tokenizer.image_shape,
        float(keep),
        scorer,
        partner,
        None if from_scale is None else int(from_scale),
        model.class_names,
    )


def generate(
    model: Pipeline,
    made: Plan,
    out: epath.PathLike,
    *,
    then: Pipeline | None = None,
    png: epath.PathLike | None = None,
    score: Scorer | None = None,
    batch_size: int | None = None,
    shard_images: int | None = None,
    shard_index: int | None = None,
    shard_count: int | None = None,
) -> bool:
    """Draws what is missing of a set, and writes it when all of it is there.

    The `.npz` holds `arr_0` (uint8 images, shuffled by the seed), `arr_1` (int32 labels) and
    `settings` (JSON).

    Args:
      then: the other model of a plan with one.
      png: also write PNG files there, named by place and label.
      score: of a plan with rejection.
      batch_size: images that a device draws at once; by default what fits, or what the set was
        begun with.
      shard_images: images a file; by default whole batches of all devices, 64 or more, or what the
        set was begun with.
      shard_index, shard_count: this host's place; by default what JAX says.
    Returns:
      whether the set is complete; False while other hosts still draw.
    Raises:
      UserError: `out` or its parts are of other settings, or its parts of other devices, another
        batch size or another number of images, or they cannot be written.
    """
    out = check(made, out, png)
    partial = out.with_name(f"{out.name}.partial")
    if not out.exists():
        usual = _shard_images(model, then, made, batch_size)
        batch_size, shard_images = _claim(partial, made, batch_size, shard_images, usual)
        shards = made.shards(shard_images)
        host = (
            jax.process_index() if shard_index is None else shard_index,
            jax.process_count() if shard_count is None else shard_count,
        )
        _draw(model, then, made, partial, shards[host[0] :: host[1]], batch_size)
        paths = [_shard(partial, made, shard) for shard in shards]
        if not all(path.exists() for path in paths):
            return out.exists()
        check(made, out)  # two hosts that began at once may each have found nothing there
        try:
            stored = [_stored(path) for path in paths]
            _join(
                out, partial / "joined", made, shards, stored, _chosen(made, shards, stored, score)
            )
        except FileNotFoundError:  # another host has joined them, and taken them away
            if not out.exists():
                raise
    _remove(partial)
    if png is not None and not epath.Path(png).exists():
        _write_pngs(out, epath.Path(png), made)
    return True


def check(made: Plan, out: epath.PathLike, png: epath.PathLike | None = None) -> epath.Path:
    """Where a set may be written, to be asked before hours of work.

    Raises:
      UserError: there is something else there.
    """
    out = epath.Path(out)
    if out.suffix != ".npz" or out.is_dir():
        raise UserError(f"cannot write the samples {str(out)!r}: name a file that ends in .npz")
    partial = out.with_name(f"{out.name}.partial")
    for path, found in ((out, _settings_of), (partial / MANIFEST, _manifest_settings)):
        if path.exists():
            _require_settings(path, made, found(path))
    if png is not None and epath.Path(png).exists():
        manifest = epath.Path(png) / MANIFEST
        if (
            not out.exists()
            or not manifest.exists()
            or _manifest_settings(manifest) != made.settings
        ):
            raise UserError(
                f"{png} is there already, and not of {out}; remove it, or give another --png"
            )
    return out


def _require_settings(path: epath.Path, made: Plan, found: dict[str, Any]):
    if different := differences(made.settings, found):
        told = "; ".join(different[:4])
        raise UserError(f"{path} is of other settings: {told}; remove it, or give another --out")


def _manifest_settings(path: epath.Path) -> dict[str, Any]:
    return {
        key: value for key, value in model_directory.read_json(path).items() if key != "drawn_with"
    }


def _settings_of(path: epath.Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            values = json.loads(str(arrays["settings"]))
            return {key: value for key, value in values.items() if key != "class_names"}
    except (OSError, KeyError, ValueError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} is no sample set of this program; remove it, or give another --out"
        ) from error


def _shard_images(
    model: Pipeline, then: Pipeline | None, made: Plan, batch_size: int | None
) -> int:
    """Images a file by default: whole batches of all devices, so that each of them draws as many at
    once as it may."""
    at_once = len(jax.local_devices()) * (
        batch_size or model.sampling_batch(then=then, **made.sampling)
    )
    return math.ceil(SHARD_IMAGES / at_once) * at_once


def _claim(
    partial: epath.Path, made: Plan, batch_size: int | None, shard_images: int | None, usual: int
) -> tuple[int | None, int]:
    """Marks the directory as one of this plan, before any file of it is there; all hosts write the
    same.

    Args:
      batch_size, shard_images: None for what the set was begun with.
      usual: images a file of a set that is begun here, where none are given.
    Returns:
      batch size (None for what fits) and images a file that the set was begun with.
    Raises:
      UserError: it was begun with others than those given, or on other devices.
    """
    devices = jax.local_devices()
    ours = {
        "batch_size": batch_size,
        "devices": len(devices),
        "device_kind": devices[0].device_kind,
        "shard_images": usual if shard_images is None else shard_images,
    }
    manifest = partial / MANIFEST
    try:
        partial.mkdir(parents=True, exist_ok=True)
        if not manifest.exists():
            atomic.write(manifest, json.dumps({**made.settings, "drawn_with": ours}, indent=1))
    except OSError as error:
        raise UserError(f"cannot write the samples {partial}: {error.strerror or error}") from error
    try:
        theirs = model_directory.read_json(manifest).get("drawn_with", ours)
        _require_settings(
            manifest, made, _manifest_settings(manifest)
        )  # another host may have been first
    except UserError:
        if manifest.exists():
            raise
        theirs = ours  # another host has joined the files, and taken them away
    for name, given in (("batch_size", batch_size), ("shard_images", shard_images)):
        if given is None:
            ours[name] = theirs.get(name)
    if different := differences(ours, theirs):
        raise UserError(
            f"{partial} was begun otherwise, and its pixels would differ in their last bits: "
            f"{'; '.join(different)}; go on with what it was begun with, remove it, or give "
            "another --out"
        )
    return ours["batch_size"], ours["shard_images"]


def _shard(partial: epath.Path, made: Plan, indices: range) -> epath.Path:
    return partial / f"{indices.start:09d}-of-{made.drawn:09d}.npy"


def _draw(
    model: Pipeline,
    then: Pipeline | None,
    made: Plan,
    partial: epath.Path,
    mine: list[range],
    batch_size: int | None,
):
    """This host's files that are not there yet."""
    todo = [shard for shard in mine if not _shard(partial, made, shard).exists()]
    if todo:
        model, then = model.spread(), then and then.spread()
    with progress(sum(map(len, mine)), "samples") as bar:
        bar.update(sum(map(len, mine)) - sum(map(len, todo)))
        for shard in todo:
            images = model.sample(
                made.label(np.asarray(shard)),
                first_index=shard.start,
                batch_size=batch_size,
                as_uint8=True,
                then=then,
                from_scale=made.from_scale,
                **made.sampling,
            )
            atomic.save(_shard(partial, made, shard), [_npy(images)], "the samples")
            bar.update(len(shard))


def _chosen(
    made: Plan, shards: list[range], stored: list[Stored], score: Scorer | None
) -> np.ndarray:
    """Indices of the drawn images that make the set, in its order."""
    indices = np.arange(made.num)
    if made.keep < 1:
        if score is None:
            raise ValueError("a plan with rejection needs a scorer")
        wanted = np.bincount(made.label(indices))
        scores = np.concatenate(
            [
                score(np.asarray(images()), made.label(np.asarray(shard)))
                for images, shard in zip(stored, shards, strict=True)
            ]
        )
        labels = made.label(np.arange(made.drawn))
        best = np.argsort(-scores, kind="stable")
        indices = np.sort(
            np.concatenate(
                [best[labels[best] == label][:count] for label, count in enumerate(wanted)]
            )
        )
    return np.random.default_rng(made.sampling.get("seed", 0)).permutation(indices)


def _join(
    out: epath.Path,
    beside: epath.Path,
    made: Plan,
    shards: list[range],
    stored: list[Stored],
    chosen: np.ndarray,
):
    """Writes the set, under a name like `beside` until it is whole."""

    def images() -> Iterator[bytes]:
        for start in range(0, len(chosen), ROWS):
            files, places = np.divmod(chosen[start : start + ROWS], len(shards[0]))
            part = np.empty((len(files), *made.image_shape), np.uint8)
            for file in np.unique(files):
                here = files == file
                part[here] = stored[file]()[places[here]]
            yield part.tobytes()

    rows = (len(chosen), *made.image_shape)
    settings = np.array(json.dumps(made.noted))
    members = [
        ("arr_0", _header(np.uint8, rows), images()),
        ("arr_1", b"", [_npy(made.label(chosen))]),
        ("settings", b"", [_npy(settings)]),
    ]
    temporary = atomic.temporary_name(beside)
    try:
        with (
            temporary.open("wb") as file,
            zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive,
        ):
            for name, header, parts in members:
                with archive.open(
                    zipfile.ZipInfo(f"{name}.npy", EPOCH), "w", force_zip64=True
                ) as member:
                    member.write(header)
                    for part in parts:
                        member.write(part)
        temporary.replace(out)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and out.exists():
            raise
        raise UserError(f"cannot write the samples {out}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _header(dtype: Any, shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    described = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
        "fortran_order": False,
        "shape": shape,
    }
    np.lib.format.write_array_header_1_0(buffer, described)
    return buffer.getvalue()


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _stored(path: epath.Path) -> Stored:
    """What gives a file's images: a local one's are read when they are asked for, a bucket's file
    whole and once.

    A local file is opened anew at every call and closed with the array that comes of it: all files
    of a large set open at once are more than a process may have.
    """
    if "://" not in str(path):
        return functools.partial(np.load, os.fspath(path), mmap_mode="r")
    with path.open("rb") as file:
        images = np.load(file)
    return lambda: images


def _write_pngs(out: epath.Path, directory: epath.Path, made: Plan):
    """The images of a set as PNGs, and its settings: the directory is there when all of them are in
    it."""
    temporary = atomic.temporary_name(directory)
    try:
        temporary.mkdir(parents=True)
        (temporary / MANIFEST).write_text(json.dumps(made.settings, indent=1))
        for place, (image, label) in enumerate(_images(out)):
            pixels = image[..., 0] if image.shape[-1] == 1 else image
            with (temporary / f"{place:06d}_{label}.png").open("wb") as file:
                Image.fromarray(pixels).save(file, "PNG")
        temporary.rename(directory)
    except OSError as error:
        if (directory / MANIFEST).exists() and _manifest_settings(
            directory / MANIFEST
        ) == made.settings:
            return  # another host was first
        raise UserError(
            f"cannot write the pictures {directory}: {error.strerror or error}"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            _remove(temporary)


def _images(out: epath.Path) -> Iterator[tuple[UInt8[np.ndarray, "h w c"], int]]:
    """Images and labels of a set one by one: all pixels may be more than the memory takes."""
    with out.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        labels = arrays["arr_1"]
    with (
        out.open("rb") as file,
        zipfile.ZipFile(file) as archive,
        archive.open("arr_0.npy") as member,
    ):
        np.lib.format.read_magic(member)
        shape = np.lib.format.read_array_header_1_0(member)[0][1:]
        for label in labels:
            yield np.frombuffer(member.read(math.prod(shape)), np.uint8).reshape(shape), int(label)


def _remove(partial: epath.Path):
    if "://" not in str(partial):
        shutil.rmtree(os.fspath(partial), ignore_errors=True)
    elif partial.exists():
        partial.rmtree()
