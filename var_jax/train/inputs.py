"""What a run's steps see: images of a data set, or the tokens of a cache, laid over the mesh."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from var_jax.config import require
from var_jax.data import loader, sources, tokens
from var_jax.train import state
from var_jax.train.config import TrainConfig

HostBatch = Mapping[str, np.ndarray]


class Inputs:
    """Training and held-out batches of a run.

    Args:
      frozen: parameters of the tokenizer that a transformer learns from (None in the tokenizer's own stage).
      encode: images to tokens, on devices; unused where tokens come from a cache.
      rows: how a batch lies over the devices; a process loads what its own devices hold.
    Raises:
      UserError: the data, or the cache, is missing or not what the run says.
    """

    def __init__(self, config: TrainConfig, frozen: Any, encode: Callable | None, rows: NamedSharding):
        self._config, self._frozen, self._encode, self._rows = config, frozen, encode, rows
        self._held = state.host_rows(rows, config.batch_size)
        data, self._cache = config.data, None
        if data.tokens_dir:
            require(config.stage == "transformer", "data.tokens_dir", repr(data.tokens_dir),
                    "empty in the tokenizer's stage, which learns from images")
            self._cache = tokens.open_cache(data.tokens_dir)
            self._cache.check(data, config.tokenizer, tokens.fingerprint(config.tokenizer, frozen))
            self.class_names = self._cache.class_names
        else:
            self._train = sources.open_split(data, data.train_split)
            self._eval = sources.open_split(data, data.eval_split)
            self.class_names = self._train.class_names

    def train(self, start_step: int) -> Iterator[HostBatch]:
        """Endless, from a step on: what a step sees is a function of the seed and the step alone."""
        c = self._config
        if self._cache is not None:
            return tokens.train_batches(self._cache, c.batch_size, c.seed, start_step, rows=self._held,
                                        workers=c.data.workers)
        return loader.train_batches(c.data, c.tokenizer.image_shape, c.batch_size, c.seed, start_step,
                                    split=self._train, rows=self._held)

    def held_out(self) -> Iterator[HostBatch]:
        """One pass; "mask" is False on padding."""
        c = self._config
        if self._cache is not None:
            return tokens.eval_batches(self._cache, c.batch_size, c.eval_images, rows=self._held,
                                       workers=c.data.workers)
        return loader.eval_batches(c.data, c.tokenizer.image_shape, c.batch_size, c.eval_images, split=self._eval,
                                   rows=self._held)

    def on_devices(self, batch: HostBatch) -> dict[str, jax.Array]:
        """This process's rows of a batch as arrays over the mesh; images of the second stage are encoded."""
        size = self._config.batch_size
        places = np.arange(size)

        def spread(values: np.ndarray) -> jax.Array:
            return jax.make_array_from_callback(
                (size, *values.shape[1:]), self._rows,
                lambda index: values[np.searchsorted(self._held, places[index[0]])])

        arrays = {name: spread(values) for name, values in batch.items()}
        if self._encode is not None and "image" in arrays:
            arrays["tokens"] = self._encode(self._frozen, arrays.pop("image"))
        return arrays
