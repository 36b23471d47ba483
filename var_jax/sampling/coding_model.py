"""A model that turns images into tokens and back, and tokens into logits."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from var_jax.config.model import ModelConfig
from var_jax.config.strict import require
from var_jax.devices import batched
from var_jax.models import networks, programs
from var_jax.sampling import validate
from var_jax.sampling.batch_size import max_batch
from var_jax.sampling.refined_model import RefinedModel
from var_jax.sampling.settings import is_integer

if TYPE_CHECKING:
    from jaxtyping import Float, Int


class CodingModel(RefinedModel):
    """A trained model's encoding, decoding and teacher-forced logits; `Pipeline` samples too."""

    def encode(self, images: Float[np.ndarray, "b H W c"]) -> Int[np.ndarray, "b L"]:
        """Returns tokens of all scales, coarse to fine, of images in [-1, 1].

        Raises:
          UserError: the images do not fit the model, or its objective has no tokens.
        """
        networks.require_tokens(self.config, "`encode`")
        return self._run(programs.encode, validate.images(self.config.tokenizer, images))

    def decode(self, tokens: Int[np.ndarray, "b L"]) -> Float[np.ndarray, "b H W c"]:
        """Returns images in [-1, 1] of tokens of all scales.

        Raises:
          UserError: the tokens do not fit the model, or its tokenizer has none.
        """
        networks.require_tokens(ModelConfig(self.config.tokenizer), "`decode`")
        return self._run(programs.decode, validate.tokens(self.config.tokenizer, tokens))

    def reconstruct(
        self, images: Float[np.ndarray, "b H W c"]
    ) -> list[Float[np.ndarray, "b H W c"]]:
        """Returns images in [-1, 1] decoded after the first scale, the first two, ... and all.

        Of a tokenizer without codes there is one.
        """
        return self._run(programs.reconstruct, validate.images(self.config.tokenizer, images))

    def logits(
        self, tokens: Int[np.ndarray, "b L"], labels: Int[np.ndarray, " b"]
    ) -> Float[np.ndarray, "b L V"]:
        """Returns logits of all tokens, without dropout; those at i predict token i.

        Args:
          tokens: the true ones, for teacher forcing; for a model of masked prediction, V means
            "masked".
          labels: class ids; `num_classes` means "no class".
        Raises:
          UserError: an argument does not fit the model, or its objective has no tokens.
        """
        transformer = validate.transformer(self.config)
        networks.require_tokens(self.config, "`logits`")
        takes_mask = networks.find(transformer).takes_mask_token
        tokens = validate.tokens(self.config.tokenizer, tokens, allow_masked=takes_mask)
        labels = self._labels(labels)
        require_as_many("labels", len(labels), "token rows", len(tokens))
        return self._run(programs.logits, tokens, labels)

    def _labels(self, labels) -> Int[np.ndarray, " b"]:
        return validate.labels(self.config, labels, self.class_names)

    def _run(self, function: Callable, *arrays: np.ndarray, batch_size: int | None = None):
        """Returns `function(config, params, *rows)` of all rows, computed in equal batches."""
        require(len(arrays[0]) > 0, "the batch", "empty", "at least one row")
        if batch_size is None:
            batch_size = max_batch(self.config, self.params)
        require(
            is_integer(batch_size) and batch_size >= 1,
            "batch_size",
            batch_size,
            "a whole number of at least 1",
        )
        return batched.run_in_batches(
            functools.partial(function, self.config, self.params),
            arrays,
            batch_size=int(batch_size),
            sharding=self._sharding,
        )


def require_as_many(name: str, count: int, of: str, expected: int):
    """Raises UserError unless there are as many of one thing as of another."""
    require(count == expected, f"the number of {name}", count, f"that of the {of}, {expected}")
