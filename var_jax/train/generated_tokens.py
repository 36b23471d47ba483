"""Generated tokens that a step sees beside its images, in an order of their own."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from var_jax.config.model import TokenizerConfig
from var_jax.config.strict import differences, require
from var_jax.config.train import TrainConfig
from var_jax.data import token_cache
from var_jax.data.token_manifest import Manifest


class GeneratedTokens:
    """The samples of a run that aligns its decoder with them (`alignment.tokens`).

    Attributes:
      fingerprint: fingerprint of the sample set.
    Raises:
      UserError: the cache is missing or damaged, is of real images, has tokens of other sizes, or
        has fewer than `alignment.images`.
    """

    def __init__(self, config: TrainConfig):
        self._config = config
        directory, tokenizer = config.alignment.tokens, config.tokenizer
        self._cache = token_cache.open_cache(directory)
        manifest = self._cache.manifest
        require(
            manifest.generated,
            "alignment.tokens",
            directory,
            "samples' tokens (`var-jax generate --tokens-out`), and these are of real images",
        )
        other = differences(_sizes(tokenizer), _sizes(manifest))
        require(
            not other,
            "alignment.tokens",
            directory,
            f"tokens of the run's tokenizer ({'; '.join(other)})",
        )
        samples = len(self._cache.train)
        require(
            config.alignment.images <= samples,
            "alignment.images",
            config.alignment.images,
            f"at most {samples}, the number of samples in alignment.tokens {directory}",
        )
        self.fingerprint = manifest.generated

    def batches(
        self, start_step: int, rows: Sequence[int], processes: int
    ) -> Iterator[dict[str, np.ndarray]]:
        """Returns endless batches from a step on; see `token_cache.train_batches`."""
        config = self._config
        return token_cache.train_batches(
            self._cache,
            config.batch_size,
            config.seed,
            start_step,
            rows=rows,
            processes=processes,
        )


def _sizes(one: TokenizerConfig | Manifest) -> dict[str, Any]:
    return {
        "scales": str(one.scales),
        "vocab_size": one.vocab_size,
        "image shape": list(one.image_shape),
    }


def beside(images: Any, generated: Any, key: str) -> Iterator[dict[str, np.ndarray]]:
    """Yields batches of images with generated tokens as a further array; closes both streams."""
    try:
        for batch, samples in zip(images, generated, strict=False):  # both are endless
            yield {**batch, key: samples["tokens"]}
    finally:
        for stream in (images, generated):
            stream.close()
