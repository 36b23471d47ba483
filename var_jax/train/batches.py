"""The batches of a run's steps: images of a data set or tokens of a cache, over the mesh."""

import functools
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from jax.sharding import NamedSharding

from var_jax.config.strict import plain, require
from var_jax.data import image_fingerprints, loader, sources, streams, token_cache
from var_jax.devices import multihost
from var_jax.devices.mesh import host_rows
from var_jax.errors import UserError
from var_jax.io import atomic
from var_jax.io.json import read_object
from var_jax.io.tokenizer_fingerprint import encoding_fingerprint, tokenizer_fingerprint
from var_jax.objectives import decoder_alignment
from var_jax.objectives.base import Frozen, Objective
from var_jax.train import generated_tokens
from var_jax.train.generated_tokens import GeneratedTokens

HostBatch = Mapping[str, np.ndarray]
CLASS_CHANGES_SHOWN = 5
COLOR_PROBES = 8  # images that are checked for color

log = logging.getLogger(__name__)


class Inputs:
    """Training and held-out batches of a run.

    Args:
      frozen: the objective's frozen weights that its steps use, on the devices.
      rows: the sharding of a batch over the devices; a process loads the rows of its own devices.
      earlier_identity: the `identity` in the run's workdir, whose order of classes an image folder
        then keeps.
    Attributes:
      class_names: class names by label.
      class_counts: training images of each class, if the data set states them; else empty.
      identity: a plain description of the data, which the workdir keeps so that a resumed run's
        steps see the same images: "name", "class_names", the images of "train" and "held_out", the
        "fingerprint" (if a token cache notes it), and that of "generated" tokens (if it uses any).
    Raises:
      UserError: the data, or the cache, is missing or does not match the run's config.
    """

    def __init__(
        self,
        objective: Objective[Frozen],
        frozen: Frozen,
        rows: NamedSharding,
        earlier_identity: Mapping[str, Any] | None = None,
    ):
        config = objective.config
        self._config, self._rows = config, rows
        self._encode: Callable[[jax.Array], dict[str, jax.Array]] | None = None
        if objective.encodes_images:
            encode = jax.jit(objective.encode, out_shardings=rows)
            self._encode = functools.partial(encode, frozen)
        self._held = host_rows(rows, config.batch_size)
        self._processes = multihost.processes_on_host()
        data, self._cache = config.data, None
        if data.tokens_dir:
            require(
                objective.reads_tokens,
                "data.tokens_dir",
                repr(data.tokens_dir),
                "empty, as this run's objective learns from images",
            )
            self._cache = token_cache.open_cache(data.tokens_dir)
            noted = self._cache.manifest.data_fingerprint
            self._cache.check(
                data, config.tokenizer, _tokenizer_fingerprint(objective, self._cache)
            )
            self.class_names, self.class_counts = self._cache.class_names, ()
            counts, fingerprint = self._cache.counts, {"fingerprint": noted} if noted else {}
            sizes = {
                name: counts[role]
                for name, role in (("train", "train"), ("held_out", "test"))
                if role in counts
            }
        else:
            names = (earlier_identity or {}).get("class_names")
            order = (
                [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
            )
            self._train, held_out = sources.open_splits(
                data, [data.train_split, data.eval_split], order
            )
            self._eval = loader.FittedSplit(
                held_out, config.tokenizer.image_shape, data.resize, max(1, data.workers)
            )
            self.class_names, self.class_counts = self._train.class_names, self._train.class_counts
            sizes = {"train": len(self._train), "held_out": len(self._eval)}
            fingerprint = {"fingerprint": self._train.fingerprint}
        self._generated = None
        if decoder_alignment.BATCH_KEY in objective.batch_shapes():
            self._generated = GeneratedTokens(config)
            fingerprint["generated"] = self._generated.fingerprint
        # Room in shared memory is asked for before any worker fills it. A cache without held-out
        # images is refused here, as the last step of every run has an evaluation.
        self._held_out = self._passes()
        names = list(self.class_names)
        labels = objective.model_labels(names)
        own = np.array_equal(labels, np.arange(len(labels)))
        self._model_labels = None if own else labels
        name = data.name if self._cache is None else self._cache.name
        self.identity = {"name": name, "class_names": names, **sizes, **fingerprint}

    def require_same_on_hosts(self):
        """Compares the data of all processes with those of process 0.

        All processes have to call it. The images of a token cache, if process 0 has them, are
        compared with those that were encoded.

        Raises:
          UserError: the data differ (on every process). Images would silently be seen twice, or
            never.
        """
        held = dict(self.identity)
        if self._cache is not None:
            manifest = json.dumps(plain(self._cache.manifest))
            held["cache"] = hashlib.sha256(manifest.encode()).hexdigest()[:16]
        multihost.require_same(
            "the data",
            held,
            functools.partial(_changes, words=ON_HOSTS),
            "give every host the same images, or the same token cache",
        )
        if self._cache is None:
            return
        data = self._config.data
        first = jax.process_index() == 0
        if not self._cache.manifest.data_fingerprint:
            if first:
                log.warning(token_cache.UNKNOWN_IMAGES, data.tokens_dir)
            return
        # One process reads them, and all use its result.
        mine = multihost.run_on_all(
            lambda: image_fingerprints.fingerprint(data, self.class_names) if first else None
        )
        self._cache.check(data, data_fingerprint=multihost.broadcast_text(mine or "") or None)

    @property
    def has_color(self) -> bool:
        """Whether one of a few training images is in color; False if no images are read."""
        if self._cache is not None:
            return False
        count = len(self._train)
        return any(
            self._train[i]["image"].shape[-1] == 3
            for i in range(0, count, max(1, count // COLOR_PROBES))
        )

    def require_same(self, directory: epath.Path):
        """Raises UserError if the run in a workdir was started on other data, naming the changes.

        The order of images follows from their number, and a label is an index into the list of
        classes.
        """
        if changed := _changes(read_kept(directory) or {}, self.identity):
            raise UserError(
                f"{directory} holds a run on other data: {'; '.join(changed)}; put the data back "
                "as they were, or give another --workdir"
            )

    def note(self, directory: epath.Path):
        """Writes data.json, once in a run.

        Raises:
          UserError: it cannot be written.
        """
        path = directory / "data.json"
        if jax.process_index() != 0 or path.exists():
            return
        try:
            atomic.write(path, json.dumps(self.identity, indent=1))
        except OSError as error:
            raise UserError(
                f"cannot write the workdir {directory}: {error.strerror or error}"
            ) from error

    def train(self, start_step: int) -> Iterator[HostBatch]:
        """Returns endless training batches from a step on.

        A step's batch is a function of only the seed and the step.
        """
        c = self._config
        if self._cache is not None:
            return token_cache.train_batches(
                self._cache,
                c.batch_size,
                c.seed,
                start_step,
                rows=self._held,
                workers=c.data.workers,
                processes=self._processes,
            )
        images = loader.train_batches(
            c.data,
            c.tokenizer.image_shape,
            c.batch_size,
            c.seed,
            start_step,
            split=self._train,
            rows=self._held,
            processes=self._processes,
        )
        if self._generated is None:
            return images
        samples = self._generated.batches(start_step, self._held, self._processes)
        return generated_tokens.beside(images, samples, decoder_alignment.BATCH_KEY)

    def held_out(self) -> Iterator[HostBatch]:
        """Returns one pass over the held-out images, and ends the passes begun before.

        "mask" is False on padding. The readers stay for the next pass.
        """
        return self._held_out()

    def _passes(self) -> streams.Passes:
        c = self._config
        if self._cache is not None:
            return token_cache.eval_passes(
                self._cache,
                c.batch_size,
                c.eval_images,
                rows=self._held,
                workers=c.data.workers,
                processes=self._processes,
            )
        return loader.eval_passes(
            c.data,
            c.tokenizer.image_shape,
            c.batch_size,
            c.eval_images,
            split=self._eval,
            rows=self._held,
            processes=self._processes,
        )

    def on_devices(self, batch: HostBatch) -> dict[str, jax.Array]:
        """Returns this process's rows of a batch as arrays over the mesh.

        Images are encoded if the objective learns from codes.
        """
        size = self._config.batch_size

        def spread(values: np.ndarray) -> jax.Array:
            def rows_of(index: tuple[slice, ...]) -> np.ndarray:
                # The rows of one device are neighbors in the batch, and so among those that this
                # process holds: a view.
                start, stop, _ = index[0].indices(size)
                first = int(np.searchsorted(self._held, start))
                return values[first : first + stop - start]

            return jax.make_array_from_callback((size, *values.shape[1:]), self._rows, rows_of)

        if self._model_labels is not None:
            batch = {**batch, "label": self._model_labels[batch["label"]]}
        arrays = {name: spread(values) for name, values in batch.items()}
        if self._encode is not None and "image" in arrays:
            arrays |= self._encode(arrays.pop("image"))
        return arrays

    def train_on_devices(self, start_step: int = 0) -> Iterator[dict[str, jax.Array]]:
        """Yields the batches of `train` as arrays over the mesh."""
        batches = self.train(start_step)
        try:
            for batch in batches:
                yield self.on_devices(batch)
        finally:
            batches.close()


def _tokenizer_fingerprint(objective: Objective[Any], cache: token_cache.Cache) -> str:
    """Returns the fingerprint of the tokenizer of an objective that learns from a token cache.

    It is the cache's for a tokenizer that differs in its decoder alone, whose tokens are the same.

    Raises:
      UserError: the cache's copy of its tokenizer is another one.
    """
    carried = objective.carried_model()
    assert carried is not None
    model, params = carried
    tokenizer, weights = model.tokenizer, params["tokenizer"]
    own, noted = tokenizer_fingerprint(tokenizer, weights), cache.manifest.fingerprint
    if own == noted or not (cache.tokenizer_directory / "model.json").exists():
        return own
    encoder = encoding_fingerprint(*cache.read_tokenizer())
    return noted if encoder == encoding_fingerprint(tokenizer, weights) else own


class Words(NamedTuple):
    """Words that describe a difference between two data sets."""

    other: str
    more: str
    fewer: str


OF_A_RUN = Words("then", "came", "went")
ON_HOSTS = Words("not", "is not on process 0", "is missing")


def read_kept(directory: epath.Path) -> dict[str, Any] | None:
    """Returns the `identity` of the data of a workdir's run; None if it keeps none.

    Raises:
      UserError: data.json cannot be read.
    """
    path = directory / "data.json"
    return read_object(path) if path.exists() else None


def _changes(was: Mapping[str, Any], now: Mapping[str, Any], words: Words = OF_A_RUN) -> list[str]:
    """Returns the differences of two identities, in words; keys of only one do not count."""
    differ = {key for key in was.keys() & now.keys() if was[key] != now[key]}
    changed = []
    if "name" in differ:
        changed.append(f"data set {now['name']!r}, {words.other} {was['name']!r}")
    if "class_names" in differ:
        before, after = was["class_names"], now["class_names"]
        came, went = (
            [name for name in some if name not in set(others)]
            for some, others in ((after, before), (before, after))
        )
        verbs = ((came, words.more), (went, words.fewer))
        changed += [f"class {_shown(names)} {verb}" for names, verb in verbs if names]
        changed += ["the classes are in another order"] if not came and not went else []
    for key, split in (("train", "training"), ("held_out", "held-out")):
        if key in differ:
            changed.append(f"{now[key]} {split} images, {words.other} {was[key]}")
    if (
        not changed
        and "fingerprint" in differ
        and now["fingerprint"] == was["fingerprint"] + sources.NEWLY_DECODED
    ):
        return [
            "the same files, and an earlier version decoded some of them without their "
            "transparency or EXIF orientation"
        ]
    if not changed and "fingerprint" in differ:
        changed.append(
            f"as many images, but other ones or of other names (fingerprint {now['fingerprint']}, "
            f"{words.other} {was['fingerprint']})"
        )
    if "generated" in differ:
        changed.append(
            f"generated tokens of sample set {now['generated']}, {words.other} {was['generated']}"
        )
    if not changed and "cache" in differ:
        changed.append(
            f"another token cache of the same images (manifest {now['cache']}, {words.other} "
            f"{was['cache']})"
        )
    return changed


def _shown(names: Sequence[str]) -> str:
    more = (
        f" and {len(names) - CLASS_CHANGES_SHOWN} more" if len(names) > CLASS_CHANGES_SHOWN else ""
    )
    return ", ".join(map(repr, names[:CLASS_CHANGES_SHOWN])) + more
