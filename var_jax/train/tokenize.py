"""Writes token caches (`data.token_cache`), encoding each image once per view.

Training without a cache encodes it once per epoch.

A host writes every `shard_count`-th shard from its own place on (`train.token_shards`).
"""

import dataclasses
import functools
import logging
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any

import grain
import jax
import numpy as np
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec
from tqdm import tqdm

from var_jax.config.model import ModelConfig
from var_jax.config.strict import differences, plain, require
from var_jax.config.train import MeshConfig, TrainConfig
from var_jax.data import loader, readahead, sources, streams, token_manifest, transforms
from var_jax.devices import multihost
from var_jax.devices.mesh import make_mesh
from var_jax.io import model_directory
from var_jax.io.tokenizer_fingerprint import tokenizer_fingerprint
from var_jax.models import networks
from var_jax.models.encode import encode_pixels
from var_jax.train import token_shards

SHARD_IMAGES = 16384
BATCH_PIXELS = 2**20  # pixels of a device's default batch: 16 images of 256 x 256
MAX_ENCODED_PER_DEVICE = 128  # images of a default batch, however small they are

log = logging.getLogger(__name__)


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
    """Encodes the data of a config; finished shards of the same settings are kept.

    Args:
      config: the config whose `data` is encoded, and whose `seed` seeds the crops.
      model: the tokenizer's model directory.
      views: number of passes over the training split, each with its own random crops; without crops
        it is 1.
      roles: "train" (`data.train_split`) and "test" (`data.eval_split`, one view, center crops).
      batch: images that a device encodes at once; by default their size determines it.
      shard_images: images per file.
      shard_index: this host's number; by default JAX's process index.
      shard_count: the number of hosts; by default JAX's process count.
    Returns:
      the manifest; a split's shards are empty as long as other hosts still write some of them.
    Raises:
      UserError: settings are wrong, there is no tokenizer, the data cannot be read, or the
        directory has another cache or a model.
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
    networks.require_tokens(ModelConfig(loaded.tokenizer), "a token cache")
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
    manifest = token_shards.claim(directory, manifest, is_first_host=host[0] == 0)
    if host[0] == 0 and not (directory / "tokenizer" / "model.json").exists():
        model_directory.save(
            directory / "tokenizer", ModelConfig(loaded.tokenizer), {"tokenizer": params}
        )

    parts = {
        role: token_shards.parts_of_split(role, getattr(manifest, role), shard_images)
        for role in roles
    }
    mine = [part for role in roles for part in parts[role]][host[0] :: host[1]]
    todo = [part for part in mine if token_shards.finished_shard(directory, manifest, part) is None]
    encode, devices = _encoder(config, params)
    largest = max(part.stop - part.start for role in roles for part in parts[role])
    fitting = np.clip(
        BATCH_PIXELS // (shape[0] * shape[1]),
        1,
        min(MAX_ENCODED_PER_DEVICE, math.ceil(largest / devices)),
    )
    batch = devices * (batch or int(fitting))
    plan = readahead.plan(batch, math.prod(shape), config.data.workers, processes)
    images, finished = (
        sum(part.stop - part.start for part in some) for some in (mine, set(mine) - set(todo))
    )
    with tqdm(
        total=images,
        initial=finished,
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
            seed = config.seed if role == "train" else None
            load = _Load(fitted, shape, seed, flip=config.data.flip)
            for part, records in _encoded(rows, load, encode, batch, config, bar.update, plan=plan):
                token_shards.write(directory, manifest, part, records)
    return token_shards.complete(directory, manifest, parts)


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
    images = next(iter(splits.values())).fingerprint  # all splits state that of the whole data set
    return token_manifest.Manifest(
        tokenizer_fingerprint(tokenizer, params),
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


def _encoder(config: TrainConfig, params: Any) -> tuple[Callable, int]:
    """Returns a function from uint8 images to tokens over this host's devices, and their number."""
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
    """Turns (view, index) into the image, cropped and, if requested, flipped.

    The seed, the view and the index determine crop and flip; without a seed, the center is
    cropped.
    """

    def __init__(
        self,
        fitted: loader.FittedSplit,
        image_shape: tuple[int, int, int],
        seed: int | None,
        *,
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
    parts: list[token_shards.Part],
    load: _Load,
    encode: Callable,
    batch: int,
    config: TrainConfig,
    progress: Callable[[int], Any],
    *,
    plan: readahead.Plan,
) -> Iterator[tuple[token_shards.Part, list[bytes]]]:
    """Yields each part with its records.

    There is one stream of batches over all parts, each part padded to whole batches, so that its
    records do not depend on the other parts. A batch is encoded while the one before it is packed.
    """
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
            labels, tokens = next(results)
            count = min(length - len(records), batch)
            records += [
                token_manifest.record(label, row, config.tokenizer.vocab_size)
                for label, row in zip(labels[:count], np.asarray(tokens)[:count], strict=True)
            ]
            progress(count)
        yield part, records
