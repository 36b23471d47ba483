"""Sample sets of evaluation size: drawn in files that a kill leaves whole, by any number of hosts, then joined.

Image i depends on the seed, i and its label alone, and which images lie in which file on the settings alone: a host
draws every `shard_count`-th file from its own place on, and what is there already is kept. Files are renamed into
place when they are whole. Whoever finds all of them there joins them, so hosts need not wait for each other, nor a
resumed run have as many. The joined file is the same to the last byte, on as many devices of one kind a host at one
batch size: others round the last bits of a pixel otherwise, hence a set that is begun goes on with its own alone.
"""

import contextlib
import dataclasses
import io
import json
import math
import os
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import Int, UInt8
from PIL import Image

from var_jax import Pipeline, inputs, model_directory, pictures, whole_file
from var_jax.config import differences, require
from var_jax.data import tokens
from var_jax.errors import UserError
from var_jax.evaluate.classifier import Scorer
from var_jax.evaluate.features import progress

FORMAT = 1
SHARD_IMAGES = 64  # what a kill loses of a device's work at most
ROWS = 256  # written at once
MANIFEST = "manifest.json"
EPOCH = (1980, 1, 1, 0, 0, 0)  # the first time that a zip can tell: the same file whenever it is written


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a set is made of: files of the same settings may be joined, and no others.

    Attributes:
      num: images of the set.
      labels: of the images in turn; image i has label `labels[i % len(labels)]`.
      sampling: keyword arguments of `Pipeline.sample`, the seed among them; it also shuffles the set.
      model: fingerprint of its weights and sizes.
      image_shape: (height, width, channels).
      keep: share of the drawn images of a class that is kept, 1 for no rejection.
      scorer: what they are judged by, "" without rejection.
      shard_images: images a file.
    """

    num: int
    labels: tuple[int, ...]
    sampling: dict[str, Any]
    model: str
    image_shape: tuple[int, int, int]
    keep: float = 1.0
    scorer: str = ""
    shard_images: int = SHARD_IMAGES

    @property
    def drawn(self) -> int:
        """Images that are drawn: for each class enough to keep the share of them."""
        turns = math.ceil(math.ceil(self.num / len(self.labels)) / self.keep)
        return self.num if self.keep == 1 else turns * len(self.labels)

    @property
    def settings(self) -> dict[str, Any]:
        return {"format": FORMAT, **json.loads(json.dumps(dataclasses.asdict(self)))}

    def label(self, indices: np.ndarray) -> Int[np.ndarray, " n"]:
        return np.asarray(self.labels, np.int32)[indices % len(self.labels)]

    def shards(self) -> list[range]:
        return [range(start, min(start + self.shard_images, self.drawn))
                for start in range(0, self.drawn, self.shard_images)]


def plan(model: Pipeline, num: int, labels: Sequence[int] | None = None, *, keep: float = 1.0, scorer: str = "",
         shard_images: int = SHARD_IMAGES, **sampling: Any) -> Plan:
    """The plan of a set.

    Args:
      num: images.
      labels: one an image, repeated in turn; by default every class in turn, so that none has two more than another.
      keep, scorer: for rejection, of each class the share that the named scorer likes best.
      sampling: "seed", "cfg", "top_k", "top_p", "temperature" and "smooth" of `Pipeline.sample`.
    Raises:
      UserError: no transformer, a label that the model does not have, or a number out of range.
    """
    classes = inputs.transformer(model.config).num_classes
    require(1 <= num <= 2**31, "--num", num, "from 1 to 2147483648")
    require(0 < keep <= 1, "--reject-keep", keep, "above 0 and at most 1")
    labels = tuple(range(classes)) if labels is None else tuple(int(x) for x in labels)
    for label in labels:
        require(0 <= label <= classes, "label", label, f"from 0 to {classes - 1} ({classes}: no class)")
    require(keep == 1 or classes not in labels, "a label of a set with rejection", f"{classes}, no class",
            f"from 0 to {classes - 1}")
    model.check_sampling(**sampling)
    own = tokens.model_fingerprint(model.config, model.params)
    return Plan(num, labels, sampling, own, model.config.tokenizer.image_shape, float(keep), scorer, shard_images)


def generate(model: Pipeline, made: Plan, out: epath.PathLike, *, png: epath.PathLike | None = None,
             score: Scorer | None = None, batch_size: int | None = None, shard_index: int | None = None,
             shard_count: int | None = None) -> bool:
    """Draws what is missing of a set, and writes it when all of it is there.

    The `.npz` holds `arr_0` (uint8 images, shuffled by the seed), `arr_1` (int32 labels) and `settings` (JSON).

    Args:
      png: also write PNG files there, named by place and label.
      score: of a plan with rejection.
      batch_size: images that a device draws at once; by default what fits, or what the set was begun with.
      shard_index, shard_count: this host's place; by default what JAX says.
    Returns:
      whether the set is complete; False while other hosts still draw.
    Raises:
      UserError: `out` or its parts are of other settings, or of other devices or another batch size, or cannot be
        written.
    """
    out = check(made, out, png)
    partial = out.with_name(f"{out.name}.partial")
    if not out.exists():
        batch_size = _claim(partial, made, batch_size)
        host = (jax.process_index() if shard_index is None else shard_index,
                jax.process_count() if shard_count is None else shard_count)
        _draw(model, made, partial, host, batch_size)
        shards = [_shard(partial, made, shard) for shard in made.shards()]
        if not all(path.exists() for path in shards):
            return out.exists()
        try:
            stored = [_stored(path) for path in shards]
            _join(out, partial / "joined", made, stored, _chosen(made, stored, score))
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
        if path.exists() and (different := differences(made.settings, found(path))):
            told = "; ".join(different[:4])
            raise UserError(f"{path} is of other settings: {told}; remove it, or give another --out")
    if png is not None and epath.Path(png).exists():
        manifest = epath.Path(png) / MANIFEST
        if not out.exists() or not manifest.exists() or _manifest_settings(manifest) != made.settings:
            raise UserError(f"{png} is there already, and not of {out}; remove it, or give another --png")
    return out


def _manifest_settings(path: epath.Path) -> dict[str, Any]:
    return {key: value for key, value in model_directory.read_json(path).items() if key != "drawn_with"}


def _settings_of(path: epath.Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return json.loads(str(arrays["settings"]))
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is no sample set of this program; remove it, or give another --out") from error


def _claim(partial: epath.Path, made: Plan, batch_size: int | None) -> int | None:
    """Marks the directory as one of this plan, before any file of it is there; all hosts write the same.

    Returns:
      the batch size that the set was begun with, None for what fits.
    Raises:
      UserError: it was begun with another than the one given, or on other devices.
    """
    devices = jax.local_devices()
    ours = {"batch_size": batch_size, "devices": len(devices), "device_kind": devices[0].device_kind}
    manifest = partial / MANIFEST
    try:
        partial.mkdir(parents=True, exist_ok=True)
        if not manifest.exists():
            whole_file.write(manifest, json.dumps({**made.settings, "drawn_with": ours}, indent=1))
    except OSError as error:
        raise UserError(f"cannot write the samples {partial}: {error.strerror or error}") from error
    try:
        theirs = model_directory.read_json(manifest).get("drawn_with", ours)
    except UserError:
        if manifest.exists():
            raise
        return batch_size  # another host has joined the files, and taken them away
    if batch_size is None:
        ours["batch_size"] = theirs.get("batch_size")
    if different := differences(ours, theirs):
        raise UserError(f"{partial} was begun otherwise, and its pixels would differ in their last bits: "
                        f"{'; '.join(different)}; go on with what it was begun with, remove it, or give another --out")
    return ours["batch_size"]


def _shard(partial: epath.Path, made: Plan, indices: range) -> epath.Path:
    return partial / f"{indices.start:09d}-of-{made.drawn:09d}.npy"


def _draw(model: Pipeline, made: Plan, partial: epath.Path, host: tuple[int, int], batch_size: int | None):
    """This host's files that are not there yet."""
    mine = made.shards()[host[0]::host[1]]
    todo = [shard for shard in mine if not _shard(partial, made, shard).exists()]
    spread = model.spread() if todo else model
    with progress(sum(map(len, mine)), "samples") as bar:
        bar.update(sum(map(len, mine)) - sum(map(len, todo)))
        for shard in todo:
            images = spread.sample(made.label(np.asarray(shard)), first_index=shard.start, batch_size=batch_size,
                                   **made.sampling)
            buffer = io.BytesIO()
            np.save(buffer, pictures.to_uint8(images))
            whole_file.save(_shard(partial, made, shard), [buffer.getbuffer()], "the samples")
            bar.update(len(shard))


def _chosen(made: Plan, stored: list[np.ndarray], score: Scorer | None) -> np.ndarray:
    """Indices of the drawn images that make the set, in its order."""
    indices = np.arange(made.num)
    if made.keep < 1:
        if score is None:
            raise ValueError("a plan with rejection needs a scorer")
        wanted = np.bincount(made.label(indices))
        scores = np.concatenate([score(np.asarray(part), made.label(np.asarray(shard)))
                                 for part, shard in zip(stored, made.shards(), strict=True)])
        labels = made.label(np.arange(made.drawn))
        best = np.argsort(-scores, kind="stable")
        indices = np.sort(np.concatenate([best[labels[best] == label][:count] for label, count in enumerate(wanted)]))
    return np.random.default_rng(made.sampling.get("seed", 0)).permutation(indices)


def _join(out: epath.Path, beside: epath.Path, made: Plan, stored: list[np.ndarray], chosen: np.ndarray):
    """Writes the set, under a name like `beside` until it is whole."""
    def images() -> Iterator[bytes]:
        for start in range(0, len(chosen), ROWS):
            places = [divmod(int(i), made.shard_images) for i in chosen[start:start + ROWS]]
            yield np.stack([stored[shard][row] for shard, row in places]).tobytes()

    rows = (len(chosen), *made.image_shape)
    settings = np.array(json.dumps(made.settings))
    members = [("arr_0", _header(np.uint8, rows), images()),
               ("arr_1", b"", [_npy(made.label(chosen))]), ("settings", b"", [_npy(settings)])]
    temporary = whole_file.temporary_name(beside)
    try:
        with temporary.open("wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for name, header, parts in members:
                with archive.open(zipfile.ZipInfo(f"{name}.npy", EPOCH), "w", force_zip64=True) as member:
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
    described = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, described)
    return buffer.getvalue()


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _stored(path: epath.Path) -> UInt8[np.ndarray, "n h w c"]:
    """A file's images; of a local one, read when they are asked for."""
    if "://" not in str(path):
        return np.load(os.fspath(path), mmap_mode="r")
    with path.open("rb") as file:
        return np.load(file)


def _write_pngs(out: epath.Path, directory: epath.Path, made: Plan):
    """The images of a set as PNGs, and its settings: the directory is there when all of them are in it."""
    temporary = whole_file.temporary_name(directory)
    try:
        temporary.mkdir(parents=True)
        (temporary / MANIFEST).write_text(json.dumps(made.settings, indent=1))
        for place, (image, label) in enumerate(_images(out)):
            pixels = image[..., 0] if image.shape[-1] == 1 else image
            with (temporary / f"{place:06d}_{label}.png").open("wb") as file:
                Image.fromarray(pixels).save(file, "PNG")
        temporary.rename(directory)
    except OSError as error:
        if (directory / MANIFEST).exists() and _manifest_settings(directory / MANIFEST) == made.settings:
            return  # another host was first
        raise UserError(f"cannot write the pictures {directory}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            _remove(temporary)


def _images(out: epath.Path) -> Iterator[tuple[UInt8[np.ndarray, "h w c"], int]]:
    """Images and labels of a set one by one: all pixels may be more than the memory takes."""
    with out.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        labels = arrays["arr_1"]
    with out.open("rb") as file, zipfile.ZipFile(file) as archive, archive.open("arr_0.npy") as member:
        np.lib.format.read_magic(member)
        shape = np.lib.format.read_array_header_1_0(member)[0][1:]
        for label in labels:
            yield np.frombuffer(member.read(math.prod(shape)), np.uint8).reshape(shape), int(label)


def _remove(partial: epath.Path):
    if "://" not in str(partial):
        shutil.rmtree(os.fspath(partial), ignore_errors=True)
    elif partial.exists():
        partial.rmtree()
