"""Generates sample sets of evaluation size on any number of hosts, resumably.

Hosts write shards, which are then joined to one `.npz` file. Image i depends only on the seed, i
and its label. A host generates every `shard_count`-th shard, and skips those that exist. A shard is
renamed into place when it is complete, so that a killed process leaves none half written. The host
that finds all shards complete joins them: no host waits for another, and a resumed run may have
another number of them.

The joined file is the same to the last byte for the same batch size, number of devices per host and
kind of device. Others round the last bits of a pixel differently, so that a set is only continued
with the ones that it was started with.
"""

import json
import math
from typing import Any

import jax
import numpy as np
from etils import epath

from var_jax import Pipeline
from var_jax.config.strict import differences
from var_jax.errors import UserError
from var_jax.evaluate import sample_files, sample_tokens
from var_jax.evaluate.classifier import Scorer
from var_jax.evaluate.features import progress
from var_jax.evaluate.sample_plan import Plan
from var_jax.io import atomic, npz
from var_jax.io.json import read_object

MIN_SHARD_IMAGES = 64  # least images per shard: smaller files would be too many


def generate(
    model: Pipeline,
    plan: Plan,
    out: epath.PathLike,
    *,
    then: Pipeline | None = None,
    png: epath.PathLike | None = None,
    tokens: sample_tokens.TokenOutput | None = None,
    score: Scorer | None = None,
    batch_size: int | None = None,
    shard_images: int | None = None,
    shard_index: int | None = None,
    shard_count: int | None = None,
) -> bool:
    """Generates this host's missing shards of a set, and joins the set when all shards exist.

    The `.npz` file holds `arr_0` (uint8 images, shuffled by the seed), `arr_1` (int32 labels) and
    `settings` (JSON).

    Args:
      out: path of the `.npz` file.
      then: the second model, if the plan has one.
      png: directory for PNG files of the images, named by position and label.
      tokens: the token cache to write of the images' tokens, in the set's order.
      score: scorer of the images, if the plan rejects some.
      batch_size: images per device and batch; by default as many as fit into memory, or the number
        that the set was started with.
      shard_images: images per shard; by default a multiple of all devices' batches, at least 64, or
        the number that the set was started with.
      shard_index: this host's number; by default JAX's process index.
      shard_count: the number of hosts; by default JAX's process count.
    Returns:
      whether the set is complete; False while other hosts are still generating.
    Raises:
      UserError: `out` or its shards were generated with other settings; the shards with other
        devices, another batch size or another number of images per shard; or a file cannot be
        written.
    """
    out = check(plan, out, png)
    partial = out.with_name(f"{out.name}.partial")
    if not out.exists():
        default = _shard_images(model, then, plan, batch_size)
        batch_size, shard_images = _claim(
            partial, plan, batch_size, shard_images, default, keeps_tokens=tokens is not None
        )
        shards = plan.shards(shard_images)
        host = (
            jax.process_index() if shard_index is None else shard_index,
            jax.process_count() if shard_count is None else shard_count,
        )
        _write_shards(
            model, then, plan, partial, shards[host[0] :: host[1]], batch_size, tokens=tokens
        )
        paths = [_shard(partial, plan, shard) for shard in shards]
        if not all(path.exists() for path in paths):
            return out.exists()
        check(plan, out)  # two hosts that started at once may each have seen no shards
        try:
            stored = [sample_files.open_shard(path) for path in paths]
            chosen = _chosen(plan, shards, stored, score)
            if tokens is not None:
                stored_tokens = [sample_files.open_shard(_tokens_beside(path)) for path in paths]
                sample_tokens.write(tokens, plan, shards, stored_tokens, chosen)
            sample_files.join(out, partial / "joined", plan, shards, stored, chosen)
        except FileNotFoundError:  # another host has joined and removed the shards
            if not out.exists():
                raise
    sample_files.remove(partial)
    if png is not None and not epath.Path(png).exists():
        sample_files.write_pngs(out, epath.Path(png), plan)
    return True


def check(plan: Plan, out: epath.PathLike, png: epath.PathLike | None = None) -> epath.Path:
    """Checks that a set can be written, before hours of work, and returns its path.

    Raises:
      UserError: the path is no `.npz` file, or has something other than this plan's set.
    """
    out = epath.Path(out)
    if out.suffix != ".npz" or out.is_dir():
        why = "it is a directory; " if out.is_dir() else ""
        raise UserError(
            f"cannot write the samples {str(out)!r}: {why}name a file that ends in .npz"
        )
    partial = out.with_name(f"{out.name}.partial")
    for path, read_settings in (
        (out, sample_files.read_npz_settings),
        (partial / sample_files.MANIFEST, sample_files.read_manifest_settings),
    ):
        if path.exists():
            _require_settings(path, plan, read_settings(path))
    if png is not None and epath.Path(png).exists():
        manifest = epath.Path(png) / sample_files.MANIFEST
        if (
            not out.exists()
            or not manifest.exists()
            or sample_files.read_manifest_settings(manifest) != plan.settings
        ):
            raise UserError(
                f"{png} is there already, and not of {out}; remove it, or give another --png"
            )
    return out


def _require_settings(path: epath.Path, plan: Plan, stored: dict[str, Any]):
    """Raises UserError if stored settings differ from the plan's."""
    if different := differences(plan.settings, stored):
        listed = "; ".join(different[:4])
        raise UserError(f"{path} is of other settings: {listed}; remove it, or give another --out")


def _shard_images(
    model: Pipeline, then: Pipeline | None, plan: Plan, batch_size: int | None
) -> int:
    """Returns the default number of images per shard: a multiple of all devices' batches."""
    batch = len(jax.local_devices()) * (
        batch_size or model.default_batch_size(then=then, **plan.sampling)
    )
    return math.ceil(MIN_SHARD_IMAGES / batch) * batch


def _claim(
    partial: epath.Path,
    plan: Plan,
    batch_size: int | None,
    shard_images: int | None,
    default_shard_images: int,
    *,
    keeps_tokens: bool,
) -> tuple[int | None, int]:
    """Writes the manifest of the shards' directory before any shard; all hosts write the same.

    Args:
      batch_size, shard_images: None for the values that the set was started with.
      default_shard_images: images per shard of a set that is started here without `shard_images`.
      keeps_tokens: whether the shards have the images' tokens too.
    Returns:
      the batch size (None for as many as fit) and the images per shard that the set was started
      with.
    Raises:
      UserError: the set was started with other values, or on other devices.
    """
    devices = jax.local_devices()
    in_use = {
        "batch_size": batch_size,
        "devices": len(devices),
        "device_kind": devices[0].device_kind,
        "shard_images": default_shard_images if shard_images is None else shard_images,
    }
    if keeps_tokens:
        in_use["tokens"] = True
    manifest = partial / sample_files.MANIFEST
    try:
        partial.mkdir(parents=True, exist_ok=True)
        if not manifest.exists():
            atomic.write(manifest, json.dumps({**plan.settings, "drawn_with": in_use}, indent=1))
    except OSError as error:
        raise UserError(f"cannot write the samples {partial}: {error.strerror or error}") from error
    try:
        stored = read_object(manifest).get("drawn_with", in_use)
        _require_settings(
            manifest, plan, sample_files.read_manifest_settings(manifest)
        )  # another host may have been first
    except UserError:
        if manifest.exists():
            raise
        stored = in_use  # another host has joined and removed the shards
    if stored.get("tokens", False) != keeps_tokens:
        begun = "without" if keeps_tokens else "with"
        raise UserError(
            f"{partial} was begun {begun} {sample_tokens.OPTION}; go on as it was begun, remove "
            "it, or give another --out"
        )
    for name, value in (("batch_size", batch_size), ("shard_images", shard_images)):
        if value is None:
            in_use[name] = stored.get(name)
    if different := differences(in_use, stored):
        raise UserError(
            f"{partial} was begun otherwise, and its pixels would differ in their last bits: "
            f"{'; '.join(different)}; go on with what it was begun with, remove it, or give "
            "another --out"
        )
    return in_use["batch_size"], in_use["shard_images"]


def _shard(partial: epath.Path, plan: Plan, indices: range) -> epath.Path:
    return partial / f"{indices.start:09d}-of-{plan.num_drawn:09d}.npy"


def _tokens_beside(shard: epath.Path) -> epath.Path:
    """Returns the file of a shard's tokens; it is written first, so that none lacks it."""
    return shard.with_suffix(".tokens")


def _write_shards(
    model: Pipeline,
    then: Pipeline | None,
    plan: Plan,
    partial: epath.Path,
    own_shards: list[range],
    batch_size: int | None,
    *,
    tokens: sample_tokens.TokenOutput | None,
):
    """Generates those of this host's shards that do not exist."""
    todo = [shard for shard in own_shards if not _shard(partial, plan, shard).exists()]
    if todo:
        model, then = model.spread(), then and then.spread()
    with progress(sum(map(len, own_shards)), "samples") as bar:
        bar.update(sum(map(len, own_shards)) - sum(map(len, todo)))
        for shard in todo:
            sampled = model.sample(
                plan.label(np.asarray(shard)),
                first_index=shard.start,
                batch_size=batch_size,
                as_uint8=True,
                return_tokens=tokens is not None,
                then=then,
                keep_scales=plan.keep_scales,
                **plan.sampling,
            )
            path, images = _shard(partial, plan, shard), sampled
            if tokens is not None:
                images, sampled_tokens = sampled
                packed = sample_tokens.stored_tokens(tokens, sampled_tokens)
                atomic.save(_tokens_beside(path), [npz.array_bytes(packed)], "the tokens")
            atomic.save(path, [npz.array_bytes(images)], "the samples")
            bar.update(len(shard))


def _chosen(
    plan: Plan, shards: list[range], stored: list[sample_files.Shard], score: Scorer | None
) -> np.ndarray:
    """Returns the indices of the generated images that make up the set, in its order."""
    indices = np.arange(plan.num)
    if plan.keep < 1:
        if score is None:
            raise ValueError("a plan with rejection needs a scorer")
        counts = np.bincount(plan.label(indices))
        scores = np.concatenate(
            [
                score(np.asarray(images()), plan.label(np.asarray(shard)))
                for images, shard in zip(stored, shards, strict=True)
            ]
        )
        labels = plan.label(np.arange(plan.num_drawn))
        best = np.argsort(-scores, kind="stable")
        indices = np.sort(
            np.concatenate(
                [best[labels[best] == label][:count] for label, count in enumerate(counts)]
            )
        )
    return np.random.default_rng(plan.sampling.get("seed", 0)).permutation(indices)
