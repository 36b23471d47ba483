"""Fetches models and files from the Hugging Face hub to its cache on this machine.

The environment is that of huggingface_hub: HF_ENDPOINT, HF_HUB_OFFLINE, HF_HUB_CACHE, HF_TOKEN.
"""

import contextlib
import dataclasses
import hashlib
import logging
import os
from collections.abc import Collection
from pathlib import Path

from etils import epath

from var_jax.config.model import ModelConfig
from var_jax.errors import RunFailed, UserError
from var_jax.io import model_directory
from var_jax.io.hub_address import Address, is_address
from var_jax.io.hub_errors import MissingFile, explained
from var_jax.io.hub_library import endpoint, library

log = logging.getLogger(__name__)
# A server that cuts a file off and cannot go on where it did sends the same bytes at every try,
# which the library repeats without end.
MOST_RECEIVED = 3  # times the size of a file
CHUNK = 1 << 20  # bytes that are hashed at once
PARTS = ("tokenizer", "transformer", "refiner")  # of a model, each with a file of weights


def local_directory(address: str, parts: Collection[str] = PARTS) -> Path:
    """Returns the directory in the hub's cache that a model's files are in.

    Files that are missing there are downloaded. All of them are of one commit, which is that of the
    first file. Without a network, the newest commit that was downloaded is taken.

    Args:
      address: `hf://owner/name[@revision][/subfolder]`, of a folder that `publish` wrote.
      parts: the parts of the model whose weights are needed, of those that it has.
    Raises:
      UserError: the address has another form, there is no such repository, revision or model, or a
        file arrives with another content than the hub declares.
      RunFailed: the hub cannot be reached and the model is not in the cache.
    """
    place = Address.parse(address)
    first = fetch(place, "model.json")
    pinned = dataclasses.replace(place, revision=commit_of(first, place))
    config = model_directory.read_config(epath.Path(first.parent))
    weights = [f"{part}.safetensors" for part in parts if getattr(config, part)]
    # Weights that are in the cache were fetched with the model's class names, if it has any.
    if not all((first.parent / file).exists() for file in weights):
        with contextlib.suppress(MissingFile):
            fetch(pinned, "data.json")
    for file in weights:
        fetch(pinned, file)
    log.info("%s is commit %s, in %s", place, pinned.revision[:12], first.parent)
    return first.parent


def model_place(path: str) -> epath.Path:
    """Returns the directory of a model that a config names by its path or its address.

    Raises:
      UserError, RunFailed: as `local_directory` does.
    """
    return epath.Path(local_directory(path) if is_address(path) else path)


def tokenizer_place(path: str) -> epath.Path:
    """Returns the directory of a model whose tokenizer alone is needed, for `load_tokenizer`.

    Of a model on the hub, the weights of its transformer are not fetched.

    Raises:
      UserError, RunFailed: as `local_directory` does.
    """
    return epath.Path(local_directory(path, PARTS[:1]) if is_address(path) else path)


def model_config(path: str) -> ModelConfig:
    """Returns the configuration of a model that a config names by its path or its address.

    Of a model on the hub, `model.json` alone is fetched, as weights may take long.

    Raises:
      UserError: there is no such directory, address, revision or model.
      RunFailed: the hub cannot be reached and the file is not in the cache.
    """
    if not is_address(path):
        return model_directory.load_config(epath.Path(path))
    file = fetch(Address.parse(path), "model.json")
    return model_directory.read_config(epath.Path(file.parent))


def commit_of(file: Path, address: Address) -> str:
    """Returns the commit that a file of `fetch` belongs to."""
    depth = address.path_of(file.name).count("/")
    return file.parents[depth].name


def fetch(address: Address, file: str) -> Path:
    """Returns the path in the hub's cache of one of a folder's files, which is downloaded at need.

    Raises:
      UserError: there is no such repository, revision or file, or it arrives with another content
        than the hub declares; nothing of it is kept then.
      RunFailed: the hub cannot be reached and the file is not in the cache.
    """
    hub, path = library(), address.path_of(file)
    progress = _progress_class(f"{address}: {file}")
    with explained(address, file):
        local = Path(
            hub.hf_hub_download(
                address.repository,
                path,
                revision=address.revision,
                endpoint=endpoint(),
                tqdm_class=progress,
            )
        )
        if progress.is_started:
            _require_declared_content(local, f"{address}: {file}")
    return local


def _progress_class(name: str) -> type:
    """Returns a class of progress bars for the download of one file, with a limit to the tries.

    Its attribute `is_started` says whether anything was downloaded.
    """

    class Progress(library().utils.tqdm):
        is_started = False

        def __init__(self, *args, **options):
            type(self).is_started = True
            self.received = 0
            super().__init__(*args, **options)

        def update(self, n=1):
            self.received += max(n or 0, 0)
            if self.total and self.received > MOST_RECEIVED * self.total:
                raise RunFailed(
                    f"{name} is cut off again and again: {self.received} bytes were received of a "
                    f"file of {self.total}; try again later"
                )
            return super().update(n)

    return Progress


def _require_declared_content(file: Path, name: str):
    """Removes a file from the cache unless its content has the hash that the hub declares.

    That is the name of the entry in the cache that `file` links to: SHA-256 of large files, Git's
    SHA-1 of small ones. Mirrors may give another name, which declares nothing, or plain SHA-1. The
    entry may be a link in turn, to a file that several repositories share under a hash of its
    parts.

    Raises:
      UserError: the hash is another.
    """
    entry = file.parent / os.readlink(file) if file.is_symlink() else file
    declared = entry.name
    size = os.path.getsize(file)
    hashes = {
        64: [hashlib.sha256()],
        40: [hashlib.sha1(f"blob {size}\0".encode()), hashlib.sha1()],
    }.get(len(declared), [])
    with file.open("rb") as content:
        while chunk := content.read(CHUNK):
            for digest in hashes:
                digest.update(chunk)
    if hashes and declared not in [digest.hexdigest() for digest in hashes]:
        for path in (file.resolve(), entry, file):
            path.unlink(missing_ok=True)
        raise UserError(
            f"{name} arrives with another content than the hub declares (hash {declared[:12]}...); "
            "it was removed: try again, or tell its owner"
        )
