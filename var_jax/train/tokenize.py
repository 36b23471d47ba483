"""Writes token caches (`data.tokens`): every image is encoded once a view instead of once an epoch.

Which image lies in which shard is a function of the settings alone, and a host writes every
`shard_count`-th shard from its own place on. A shard is done when a small JSON file beside it says
so, which is written after it; whoever finds the last one done completes the manifest. So hosts need
not wait for each other, nor a resumed run have as many.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import math
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import grain
import jax
import numpy as np
from array_record.python import array_record_module
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec
from tqdm import tqdm

from var_jax.config.model import ModelConfig
from var_jax.config.strict import differences, plain, require
from var_jax.config.train import MeshConfig, TrainConfig
from var_jax.data import (
    fingerprints,
    loader,
    readahead,
    sources,
    streams,
    token_cache,
    token_manifest,
    transforms,
)
from var_jax.devices import multihost
from var_jax.devices.mesh import make_mesh
from var_jax.errors import UserError
from var_jax.io import atomic, model_directory
from var_jax.models.encode import encode_pixels

SHARD_IMAGES = 16384
BATCH_PIXELS = 2**20  # of the default batch of one device: 16 images of 256 x 256
MAX_BATCH = 128

log = logging.getLogger(__name__)


class Part(NamedTuple):
    """A shard to be: its role and file name, its view, and the images start to stop of the
    split."""

    role: str
    name: str
    view: int
    start: int
    stop: int


def tokenize(
    config: TrainConfig,
    model: str,
    out: str,
    *,
    views: int = 1,
    roles: tuple[str, ...] = tuple(token_manifest.ROLES),
    batch: int | None = None,
    shard_images: int = SHARD_IMAGES,
    shard_index: int | None = None,
    shard_count: int | None = None,
) -> token_manifest.Manifest:
    """Encodes the data of a config; what is there already of the same settings is kept.

    Args:
      config: its `data`, and its `seed` for the crops.
      model: model directory of the tokenizer.
      views: passes over the training split, each with random crops of its own; without crops there
        is but one.
      roles: "train" (`data.train_split`) and "test" (`data.eval_split`, one view, centre crops).
      batch: images a device encodes at once; by default by their size.
      shard_images: images a file.
      shard_index: this host's number; by default JAX's process index.
      shard_count: the number of hosts; by default JAX's process count.
    Returns:
      the manifest; a split's shards are empty as long as other hosts still write some of them.
    Raises:
      UserError: wrong settings, no tokenizer, data that do not read, or a directory with another
        cache or a model.
    """
    config, directory = dataclasses.replace(config, tokenizer_dir=model), epath.Path(out)
    host = (
        jax.process_index() if shard_index is None else shard_index,
        jax.process_count() if shard_count is None else shard_count,
    )
    processes = multihost.processes_on_host()
    require(views >= 1, "--views", views, "at least 1")
    require(
        views == 1 or config.data.resize == "crop" or config.data.flip,
        "--views",
        views,
        f"1 with data.resize {config.data.resize!r}, which makes the same image every time",
    )
    require(batch is None or batch >= 1, "--batch", batch, "at least 1")
    loaded, params = model_directory.load(epath.Path(model))
    config, params = config.with_tokenizer(loaded.tokenizer), params["tokenizer"]
    # Labels are by the order of classes that the cache has already.
    begun = (
        token_manifest.read_manifest(directory).class_names
        if (directory / "manifest.json").exists()
        else ()
    )
    shape = loaded.tokenizer.image_shape
    transforms.check(shape, config.data.resize)
    opened = sources.open_splits(
        config.data, [getattr(config.data, token_manifest.ROLES[role]) for role in roles], begun
    )
    splits = dict(zip(roles, opened, strict=True))
    manifest = _manifest(config, params, splits, views)
    multihost.require_same(
        "tokenizer, data and settings",
        plain(manifest),
        lambda first, mine: differences(mine, first),
        "give every host the same command, tokenizer and images",
    )
    manifest = _claim(directory, manifest, host[0] == 0)
    if host[0] == 0 and not (directory / "tokenizer" / "model.json").exists():
        model_directory.save(
            directory / "tokenizer", ModelConfig(loaded.tokenizer), {"tokenizer": params}
        )

    parts = {role: _parts(role, getattr(manifest, role), shard_images) for role in roles}
    mine = [part for role in roles for part in parts[role]][host[0] :: host[1]]
    todo = [part for part in mine if _done(directory, manifest, part) is None]
    encode, devices = _encoder(config, params)
    largest = max(part.stop - part.start for role in roles for part in parts[role])
    fitting = np.clip(
        BATCH_PIXELS // (shape[0] * shape[1]), 1, min(MAX_BATCH, math.ceil(largest / devices))
    )
    batch = devices * (batch or int(fitting))
    plan = readahead.plan(batch, math.prod(shape), config.data.workers, processes)
    images, kept = (
        sum(part.stop - part.start for part in some) for some in (mine, set(mine) - set(todo))
    )
    with tqdm(
        total=images,
        initial=kept,
        unit=" images",
        disable=host[0] != 0,
        smoothing=0.05,
        mininterval=0.1 if sys.stderr.isatty() else 10,
    ) as bar:
        for role in roles:
            rows = [part for part in todo if part.role == role]
            fitted = loader.FittedSplit(
                splits[role], shape, config.data.resize, max(1, config.data.workers)
            )
            load = _Load(fitted, shape, config.seed if role == "train" else None, config.data.flip)
            for part, records in _encoded(rows, load, encode, batch, config, bar.update, plan=plan):
                _write(directory, manifest, part, records)
    return _complete(directory, manifest, parts)


def _manifest(
    config: TrainConfig, params: Any, splits: dict[str, sources.Split], views: int
) -> token_manifest.Manifest:
    names = {split.class_names for split in splits.values()}
    require(len(names) == 1, "the number of splits with classes of their own", len(names), "1")
    for role, split in splits.items():
        require(len(split) > 0, f"the {role} split", "empty", "of at least one image")
    infos = {
        role: token_manifest.SplitInfo(
            getattr(config.data, token_manifest.ROLES[role]),
            len(split),
            views if role == "train" else 1,
        )
        for role, split in splits.items()
    }
    tokenizer = config.tokenizer
    images = next(iter(splits.values())).fingerprint  # all splits tell that of the whole data set
    return token_manifest.Manifest(
        fingerprints.tokenizer_fingerprint(tokenizer, params),
        config.data.name,
        config.data.resize,
        tokenizer.image_shape,
        tokenizer.scales,
        tokenizer.vocab_size,
        names.pop(),
        config.seed,
        data_fingerprint=images,
        flip=config.data.flip,
        **infos,
    )


def _claim(
    directory: epath.Path, manifest: token_manifest.Manifest, first_host: bool
) -> token_manifest.Manifest:
    """The manifest with what the directory held of the same settings; host 0 writes it before any
    shard is.

    Raises:
      UserError: the directory holds a model, or another cache, or cannot be written.
    """
    for name in ("model.json", "config.json"):
        if (directory / name).exists():
            raise UserError(f"{directory} holds a model; give another --out")
    if (directory / "manifest.json").exists():
        before = token_manifest.read_manifest(directory)
        if not before.data_fingerprint:
            if first_host:
                log.warning(token_cache.UNKNOWN_IMAGES, directory)
            manifest = dataclasses.replace(manifest, data_fingerprint="")
        theirs, ours = before.settings, manifest.settings
        for role in token_manifest.ROLES:
            old, new = getattr(before, role), getattr(manifest, role)
            if new is None:
                manifest = dataclasses.replace(manifest, **{role: old})
            elif old is not None:
                theirs[role], ours[role] = (
                    plain(dataclasses.replace(info, shards=())) for info in (old, new)
                )
        if different := differences(ours, theirs):
            raise _another(directory, different)
    elif first_host:  # without a manifest, nobody can say whose tokenizer it would be
        (directory / "tokenizer" / "model.json").unlink(missing_ok=True)
    if first_host:
        try:
            for role in token_manifest.ROLES:
                (directory / role).mkdir(parents=True, exist_ok=True)
            atomic.write(directory / "manifest.json", json.dumps(plain(manifest), indent=1))
        except OSError as error:
            raise UserError(
                f"cannot write the token cache {directory}: {error.strerror or error}"
            ) from error
    return manifest


def _another(directory: epath.Path, different: list[str]) -> UserError:
    changed = any(text.startswith("data_fingerprint:") for text in different)
    why = " (its images changed since it was written)" if changed else ""
    return UserError(
        f"{directory} holds another cache: {'; '.join(different)}{why}; give another --out"
    )


def _parts(role: str, info: token_manifest.SplitInfo, shard_images: int) -> list[Part]:
    count = math.ceil(info.images / shard_images)
    return [
        Part(
            role,
            f"view{view:02d}-{k:05d}-of-{count:05d}.array_record",
            view,
            k * shard_images,
            min((k + 1) * shard_images, info.images),
        )
        for view in range(info.views)
        for k in range(count)
    ]


def _encoder(config: TrainConfig, params: Any) -> tuple[Callable, int]:
    """(uint8 images -> tokens over this host's devices, their number); other hosts have no part in
    it."""
    devices = jax.local_devices()
    mesh = make_mesh(MeshConfig(), devices)
    rows, replicated = (
        NamedSharding(mesh, PartitionSpec("data")),
        NamedSharding(mesh, PartitionSpec()),
    )
    run = jax.jit(
        functools.partial(encode_pixels, config.tokenizer),
        in_shardings=(replicated, rows),
        out_shardings=rows,
    )
    params = jax.device_put(params, replicated)

    def encode(images: np.ndarray) -> jax.Array:
        with jax.set_mesh(mesh):
            return run(params, jax.device_put(images, rows))

    return encode, len(devices)


class _Load(grain.transforms.Map):
    """(view, index) -> the image, cropped (and flipped, if asked for) by the seed, the view and the
    index, or cropped in the center without a seed."""

    def __init__(
        self,
        fitted: loader.FittedSplit,
        image_shape: tuple[int, int, int],
        seed: int | None,
        flip: bool,
    ):
        self._fitted, self._image_shape, self._seed, self._flip = fitted, image_shape, seed, flip

    def map(self, element: np.ndarray) -> dict[str, Any]:
        view, index = map(int, element)
        rng = (
            None if self._seed is None else np.random.default_rng([self._seed % 2**64, view, index])
        )
        fitted = self._fitted[index]
        image = transforms.crop(fitted["image"], self._image_shape, rng)
        return {
            **fitted,
            "image": image if rng is None or not self._flip else transforms.flip(image, rng),
        }


def _encoded(
    parts: list[Part],
    load: _Load,
    encode: Callable,
    batch: int,
    config: TrainConfig,
    progress: Callable[[int], Any],
    *,
    plan: readahead.Plan,
) -> Iterator[tuple[Part, list[bytes]]]:
    """Each part with its records. One stream of batches over all of them, each part padded to whole
    batches, so that its records do not depend on what else is to be done; a batch is encoded while
    the one before it is packed."""
    places = [[(part.view, i) for i in range(part.start, part.stop)] for part in parts]
    places = [[*p, *p[-1:] * (-len(p) % batch)] for p in places]
    if not places:
        return
    source = grain.MapDataset.source(np.concatenate([np.asarray(p) for p in places])).map(load)
    stream = streams.read(source, batch, range(batch), plan)

    def dispatched() -> Iterator[tuple[np.ndarray, jax.Array]]:
        unread = None
        for rows in stream:
            ahead = rows["label"], encode(rows["image"])
            if unread is not None:
                yield unread
            unread = ahead
        yield unread

    results = dispatched()
    for part in parts:
        length, records = part.stop - part.start, []
        while len(records) < length:
            labels, found = next(results)
            count = min(length - len(records), batch)
            records += [
                token_manifest.record(label, row, config.tokenizer.vocab_size)
                for label, row in zip(labels[:count], np.asarray(found)[:count], strict=True)
            ]
            progress(count)
        yield part, records


def _stamp(
    directory: epath.Path, manifest: token_manifest.Manifest, part: Part
) -> tuple[epath.Path, dict[str, Any]]:
    """Where it is said that a part is done, and of what: a stamp of other settings does not
    count."""
    path = directory / part.role
    about = {
        **manifest.settings,
        "split": plain(dataclasses.replace(getattr(manifest, part.role), shards=())),
        "part": part,
    }
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    return path / f"{part.name}.json", {"settings": digest}


def _write(
    directory: epath.Path, manifest: token_manifest.Manifest, part: Part, records: list[bytes]
):
    path, stamp = _stamp(directory, manifest, part)
    try:
        # array_record writes to a local file only, and the directory may be a bucket.
        with tempfile.TemporaryDirectory() as local:
            file = epath.Path(local) / part.name
            writer = array_record_module.ArrayRecordWriter(str(file), "group_size:1")
            for one in records:
                writer.write(one)
            writer.close()
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            size = file.stat().length
            # Under another name until it is whole: another process may be at the same shard.
            temporary = atomic.temporary_name(path.parent / part.name)
            try:
                file.copy(temporary, overwrite=True)
                temporary.replace(path.parent / part.name)
            finally:
                with contextlib.suppress(OSError):
                    temporary.unlink(missing_ok=True)
        atomic.write(path, json.dumps({**stamp, "bytes": size}))
    except OSError as error:
        if _done(directory, manifest, part) is not None:
            return  # another process was first, and has cleared up
        raise UserError(
            f"cannot write the token cache {directory}: {error.strerror or error}"
        ) from error


def _done(
    directory: epath.Path, manifest: token_manifest.Manifest, part: Part
) -> token_manifest.Shard | None:
    """The shard, when it is on the disk as it was written."""
    path, stamp = _stamp(directory, manifest, part)
    shard = path.parent / part.name
    try:
        found = json.loads(path.read_text())
        if found == {**stamp, "bytes": shard.stat().length}:
            return token_manifest.Shard(part.name, part.stop - part.start, found["bytes"])
    except (OSError, ValueError):  # missing, or cut off by a kill
        pass
    return None


def _complete(
    directory: epath.Path, manifest: token_manifest.Manifest, parts: dict[str, list[Part]]
) -> token_manifest.Manifest:
    """The manifest with the shards of every role whose last one is done, written where there is
    such a role.

    Hosts that finish at the same time each write it. One that still missed another's last shard
    looks again after it has written, so that the last one to write has seen all of them.
    """
    written: set[str] = set()
    while True:
        shards = {
            role: [_done(directory, manifest, part) for part in some]
            for role, some in parts.items()
        }
        complete = {role for role, some in shards.items() if all(some)}
        if complete == written:
            return manifest
        manifest = _with_roles_of(directory, manifest, set(token_manifest.ROLES) - set(parts))
        infos = {
            role: dataclasses.replace(getattr(manifest, role), shards=tuple(shards[role]))
            for role in complete
        }
        manifest, written = dataclasses.replace(manifest, **infos), complete
        try:
            atomic.write(directory / "manifest.json", json.dumps(plain(manifest), indent=1))
            for role in complete:  # what killed processes left
                for leftover in (directory / role).glob("*.tmp"):
                    leftover.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot write the token cache {directory}: {error.strerror or error}"
            ) from error


def _with_roles_of(
    directory: epath.Path, manifest: token_manifest.Manifest, others: set[str]
) -> token_manifest.Manifest:
    """The manifest with some roles as they lie in the directory: another process may have written
    them meanwhile.

    Raises:
      UserError: the directory holds another cache by now.
    """
    now = (
        token_manifest.read_manifest(directory)
        if (directory / "manifest.json").exists()
        else manifest
    )
    if different := differences(manifest.settings, now.settings):
        raise _another(directory, different)
    return dataclasses.replace(manifest, **{role: getattr(now, role) for role in others})
