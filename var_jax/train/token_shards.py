"""The files of a token cache as hosts write them: its directory, and its shards of images.

An image's shard is a function of only the settings. A shard is finished when a small JSON file next
to it says so, which is written after it; a host that sees all shards finished completes the
manifest. So hosts need not wait for each other, and a resumed run may have another number of hosts.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import math
import tempfile
from typing import Any, NamedTuple

from array_record.python import array_record_module
from etils import epath

from var_jax.config.strict import differences, plain
from var_jax.data import token_cache, token_manifest
from var_jax.errors import UserError
from var_jax.io import atomic
from var_jax.io.json import read_object_or_none

log = logging.getLogger(__name__)


class Part(NamedTuple):
    """A shard to be written.

    Attributes:
      role: "train" or "test".
      name: the name of its file.
      view: the pass over the split that it belongs to.
      start: its first image in the split.
      stop: the image after its last.
    """

    role: str
    name: str
    view: int
    start: int
    stop: int


def claim(
    directory: epath.Path, manifest: token_manifest.Manifest, *, is_first_host: bool
) -> token_manifest.Manifest:
    """Claims the directory for this cache, and returns the manifest.

    The manifest includes finished splits of the same settings that the directory held.

    The first host writes the manifest before any shard is written.

    Raises:
      UserError: the directory holds a model, or another cache, or cannot be written.
    """
    for name in ("model.json", "config.json"):
        if (directory / name).exists():
            raise UserError(f"{directory} holds a model; give another --out")
    if (directory / "manifest.json").exists():
        before = token_manifest.read_manifest(directory)
        if before.generated:
            before, manifest = _beside_generated(directory, before, manifest)
        if not before.data_fingerprint:
            if is_first_host:
                log.warning(token_cache.UNKNOWN_IMAGES, directory)
            manifest = dataclasses.replace(manifest, data_fingerprint="")
        there, here = before.settings, manifest.settings
        for role in token_manifest.ROLES:
            old, new = getattr(before, role), getattr(manifest, role)
            if new is None:
                manifest = dataclasses.replace(manifest, **{role: old})
            elif old is not None:
                there[role], here[role] = (
                    plain(dataclasses.replace(info, shards=())) for info in (old, new)
                )
        if different := differences(here, there):
            raise _another(directory, different)
    elif is_first_host:  # without a manifest, the tokenizer's owner would be unknown
        (directory / "tokenizer" / "model.json").unlink(missing_ok=True)
    if is_first_host:
        try:
            for role in token_manifest.ROLES:
                (directory / role).mkdir(parents=True, exist_ok=True)
            atomic.write(directory / "manifest.json", json.dumps(plain(manifest), indent=1))
        except OSError as error:
            raise UserError(
                f"cannot write the token cache {directory}: {error.strerror or error}"
            ) from error
    return manifest


def _beside_generated(
    directory: epath.Path, before: token_manifest.Manifest, manifest: token_manifest.Manifest
) -> tuple[token_manifest.Manifest, token_manifest.Manifest]:
    """Returns the manifests to compare where held-out images join generated training images.

    The first held-out images bring the data set and its settings, which the cache had none of.

    Raises:
      UserError: training images are to be written too.
    """
    if manifest.train is not None:
        raise UserError(
            f"{directory} holds generated training images, which real ones do not join; give "
            "--splits test, or another --out"
        )
    if before.test is None:
        of_data = ("data", "resize", "seed", "data_fingerprint", "flip")
        before = dataclasses.replace(before, **{key: getattr(manifest, key) for key in of_data})
        ids = tuple(map(str, range(len(manifest.class_names))))
        if before.class_names == ids:  # the model that generated them has no names
            before = dataclasses.replace(before, class_names=manifest.class_names)
    return before, dataclasses.replace(manifest, generated=before.generated)


def _another(directory: epath.Path, different: list[str]) -> UserError:
    changed = any(text.startswith("data_fingerprint:") for text in different)
    why = " (its images changed since it was written)" if changed else ""
    return UserError(
        f"{directory} holds another cache: {'; '.join(different)}{why}; give another --out"
    )


def parts_of_split(role: str, info: token_manifest.SplitInfo, shard_images: int) -> list[Part]:
    """Returns the shards of a split: those of its first view, then those of the second, ..."""
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


def _stamp(
    directory: epath.Path, manifest: token_manifest.Manifest, part: Part
) -> tuple[epath.Path, dict[str, Any]]:
    """Returns the file that marks a shard as finished, and the settings that it states.

    A file that states other settings does not count.
    """
    path = directory / part.role
    about = {
        **manifest.digest_settings,
        "split": plain(dataclasses.replace(getattr(manifest, part.role), shards=())),
        "part": part,
    }
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    return path / f"{part.name}.json", {"settings": digest}


def write(
    directory: epath.Path, manifest: token_manifest.Manifest, part: Part, records: list[bytes]
):
    """Writes a shard, and then the file that marks it as finished.

    Raises:
      UserError: they cannot be written.
    """
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
            # Under another name until it is complete: another process may be writing the same
            # shard.
            temporary = atomic.temporary_name(path.parent / part.name)
            try:
                file.copy(temporary, overwrite=True)
                temporary.replace(path.parent / part.name)
            finally:
                with contextlib.suppress(OSError):
                    temporary.unlink(missing_ok=True)
        atomic.write(path, json.dumps({**stamp, "bytes": size}))
    except OSError as error:
        if finished_shard(directory, manifest, part) is not None:
            return  # another process was first, and has cleared up
        raise UserError(
            f"cannot write the token cache {directory}: {error.strerror or error}"
        ) from error


def finished_shard(
    directory: epath.Path, manifest: token_manifest.Manifest, part: Part
) -> token_manifest.Shard | None:
    """Returns a shard that is complete on the disk, or None.

    It is None, too, for a shard that is cut off, or that was made of other inputs.
    """
    path, stamp = _stamp(directory, manifest, part)
    shard = path.parent / part.name
    try:
        size = shard.stat().length
    except OSError:  # missing
        return None
    if read_object_or_none(path) != {**stamp, "bytes": size}:  # or cut off by a kill
        return None
    return token_manifest.Shard(part.name, part.stop - part.start, size)


def complete(
    directory: epath.Path, manifest: token_manifest.Manifest, parts: dict[str, list[Part]]
) -> token_manifest.Manifest:
    """Returns the manifest with the shards of every finished role, and writes it if there is one.

    Hosts that finish at the same time each write it. One that still missed another's last shard
    looks again after it has written, so that the last one to write has seen all of them.
    """
    written: set[str] = set()
    while True:
        shards = {
            role: [finished_shard(directory, manifest, part) for part in some]
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
            for role in complete:  # files that killed processes left
                for leftover in (directory / role).glob("*.tmp"):
                    leftover.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot write the token cache {directory}: {error.strerror or error}"
            ) from error


def _with_roles_of(
    directory: epath.Path, manifest: token_manifest.Manifest, others: set[str]
) -> token_manifest.Manifest:
    """Returns the manifest with some roles as they are in the directory by now.

    Another process may have written them meanwhile.

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
