"""Settings of the decoder's alignment with generated images (FD-loss, arXiv 2604.28190)."""

import dataclasses

from var_jax.config import key_patterns
from var_jax.config.model import DECODING, TokenizerConfig
from var_jax.config.strict import require


@dataclasses.dataclass(frozen=True)
class AlignmentConfig:
    """Settings of a Fréchet loss that tunes a tokenizer's decoder on generated tokens.

    The loss is the Fréchet distance between features of decoded samples and of real images, beside
    the reconstruction of real ones. Features are EfficientNet-Lite0's, in the leading principal
    components of the real images.

    Attributes:
      weight: weight of the distance, which is divided by the variance of the real images' features
        along the kept components; 0 for none.
      tokens: token cache of samples (`var-jax generate --tokens-out`), of the tokenizer that
        init_from holds.
      decay: decay of the running moments of the samples' features; each step adds its batch with
        the rest of the weight.
      images: real images, and as many samples, from which the moments are taken at the start; at
        most the number of samples in `tokens`.
      components: principal components of the features, fewer than `images`; at most as many as the
        features have.
      feature_size: height and width in pixels at which the network sees images.
      feature_weights: file of the network's weights; "" takes those of the package that the extra
        [perceptual] brings.
    """

    weight: float = 0.0
    tokens: str = ""
    decay: float = 0.999
    images: int = 10000
    components: int = 256
    feature_size: int = 64
    feature_weights: str = ""

    def __post_init__(self):
        require(self.weight >= 0, "alignment.weight", self.weight, "0 or more")
        require(0 <= self.decay < 1, "alignment.decay", self.decay, "from 0 to below 1")
        require(self.images >= 2, "alignment.images", self.images, "at least 2")
        for name in ("components", "feature_size"):
            require(
                getattr(self, name) >= 1, f"alignment.{name}", getattr(self, name), "at least 1"
            )
        require(
            self.images > self.components,
            "alignment.images",
            self.images,
            f"above alignment.components {self.components}, as fewer images have no variance along "
            "some of them",
        )

    def check(self, tokenizer: TokenizerConfig, trainable: str, *, microbatches: int, start: str):
        """Raises UserError if a run cannot align its decoder.

        Args:
          tokenizer: the run's.
          trainable: `config.trainable`, which has to leave tokens as they are.
          microbatches: parts of a batch, over which the distance is no mean.
          start: `config.init_from` or `config.branch_from`.
        """
        if not self.weight:
            return
        require(
            start,
            "init_from",
            repr(start),
            "the tokenizer whose decoder is aligned (--config.init_from=DIR) with alignment.weight",
        )
        require(
            microbatches == 1,
            "microbatches",
            microbatches,
            "1 with alignment.weight: the Fréchet distance of a batch is no mean over its parts",
        )
        require(
            tokenizer.quantizes,
            "alignment.weight",
            self.weight,
            f"0 with tokenizer.codes {tokenizer.codes!r}, which has no tokens",
        )
        require(
            self.tokens,
            "alignment.tokens",
            repr(self.tokens),
            "the token cache of `var-jax generate --tokens-out` with alignment.weight",
        )
        parts = [pattern.split("/")[0] for pattern in key_patterns.split(trainable)]
        require(
            parts and all(part in DECODING for part in parts),
            "trainable",
            repr(trainable),
            f"{' or '.join(map(repr, DECODING))} or parts of them with alignment.weight, so that "
            "tokens keep their meaning",
        )
