"""Sizes of the tokenizer and of a whole model, as frozen dataclasses."""

import dataclasses
from typing import Literal

from var_jax.config.refiner_config import RefinerConfig
from var_jax.config.scales import SCALES_256, Scales
from var_jax.config.strict import require, require_from_data
from var_jax.config.transformer_config import DType, TransformerConfig

ImageShape = tuple[int, int, int]  # (height, width, channels)
MAX_BITS = 30  # of a binary code: tokens are int32, and one number beyond the last must be too
CONTINUOUS = ("none", "kl")  # kinds of `codes` without codes
DECODING = ("decoder", "post_quant_conv")  # parts of the parameters that no token depends on


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """The multi-scale residual VQ tokenizer (VAR, section 3.2 and appendix; VQGAN's CNN f16).

    Attributes:
      scales: token-map sizes, coarse to fine; the image is the finest times `downsampling`.
      in_channels: 1 (gray) or 3 (RGB); 0 stands for those of the data, until a run has seen them.
      channels: width of the first level.
      multipliers: factors on that width, level by level; the image is halved between two levels.
      blocks: residual blocks per level in the encoder (the decoder has one more).
      attention: whether the blocks at the lowest resolution have self-attention.
      mid_attention: whether there is self-attention between the middle blocks.
      norm_groups: groups of every GroupNorm; divides every level's width.
      z_channels: width of a code; for "bsq" codes their number of bits, at most 30.
      vocab_size: number of codes V; for "bsq" codes 2 ** z_channels.
      phi: number of residual convolutions: 1 for all scales, n shared by nearest tick, 0 for one
        per scale.
      phi_ratio: share r of the convolution in phi(x) = (1 - r) x + r conv(x).
      codes: "euclidean" nearest code; "cosine": residual and codes are normalized for the search
        only; "bsq": binary spherical codes without a codebook (`ops.vq`), for vocabularies of any
        size. Two kinds leave features as they are, for diffusion alone, and have a single scale:
        "none", a plain autoencoder; "kl", whose features are Gaussians with `loss.kl` (Latent
        Diffusion, arXiv 2112.10752).
      vq_beta: weight of the commitment half of the VQ loss.
      init_codes: initial standard deviation of the codes; with that of the features, many codes are
        used from the start.
      init_gain: gain of the Xavier-normal initialization of convolutions (Glorot and Bengio 2010);
        0 for PyTorch's default, uniform within 1 / sqrt(fan_in).
      dropout: rate of dropout in every residual block, before its second convolution; only in
        training.
      quantizer_dropout: share of training images whose finest scales are left out, from a random
        one on.
      quantizer_dropout_from: the first scale, counted from 0, that may then be an image's last.
      remat: recomputation in the backward pass: "none", every residual block ("full"), or "auto",
        in training the least that is estimated to fit (`train.memory_rule`).
      dtype: dtype of the computation.
      param_dtype: dtype of the stored parameters; float32 if the tokenizer is trained.
      gradient_dtype: dtype in which gradients of weights are summed over rows and devices;
        "bfloat16" halves the bytes that devices reduce where `dtype` is bfloat16, and has no effect
        where it is float32.
    """

    scales: Scales = Scales.parse(SCALES_256)
    in_channels: int = 3
    channels: int = 160
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    blocks: int = 2
    attention: bool = True
    mid_attention: bool = True
    norm_groups: int = 32
    z_channels: int = 32
    vocab_size: int = 4096
    phi: int = 4
    phi_ratio: float = 0.5
    codes: Literal["euclidean", "cosine", "bsq", "none", "kl"] = "euclidean"
    vq_beta: float = 0.25
    init_codes: float = 0.1
    init_gain: float = 0.0
    dropout: float = 0.0
    quantizer_dropout: float = 0.0
    quantizer_dropout_from: int = 3
    remat: Literal["none", "full", "auto"] = "none"
    dtype: DType = "float32"
    param_dtype: DType = "float32"
    gradient_dtype: DType = "float32"

    def __post_init__(self):
        require(
            self.in_channels in (0, 1, 3),
            "tokenizer.in_channels",
            self.in_channels,
            "1 or 3, or 0 for those of the data",
        )
        for name in ("channels", "blocks", "norm_groups", "z_channels", "vocab_size"):
            require(
                getattr(self, name) >= 1, f"tokenizer.{name}", getattr(self, name), "at least 1"
            )
        require(
            min(self.multipliers, default=0) >= 1,
            "tokenizer.multipliers",
            self.multipliers,
            "at least one level, each at least 1",
        )
        for width in self.widths:
            require(
                width % self.norm_groups == 0,
                "tokenizer.norm_groups",
                self.norm_groups,
                f"a divisor of every level's width {self.widths}",
            )
        require(self.phi >= 0, "tokenizer.phi", self.phi, "0 (one per scale) or more")
        if self.codes == "bsq":
            require(
                self.z_channels <= MAX_BITS,
                "tokenizer.z_channels",
                self.z_channels,
                f"at most {MAX_BITS} with codes 'bsq', whose vocab_size is 2 ** z_channels: "
                "12 for 4096 codes",
            )
            require(
                self.vocab_size == 2**self.z_channels,
                "tokenizer.vocab_size",
                self.vocab_size,
                f"2 ** z_channels = {2**self.z_channels} with codes 'bsq'",
            )
        if not self.quantizes:
            self._check_continuous()
        for name in ("init_codes", "init_gain"):
            require(getattr(self, name) >= 0, f"tokenizer.{name}", getattr(self, name), "0 or more")
        require(0 <= self.dropout < 1, "tokenizer.dropout", self.dropout, "from 0 to below 1")
        require(
            0 <= self.quantizer_dropout <= 1,
            "tokenizer.quantizer_dropout",
            self.quantizer_dropout,
            "from 0 to 1",
        )
        finest = len(self.scales) - 1
        require(
            self.quantizer_dropout == 0 or 0 <= self.quantizer_dropout_from <= finest,
            "tokenizer.quantizer_dropout_from",
            self.quantizer_dropout_from,
            f"a scale of {self.scales}, counted from 0: at most {finest}",
        )

    def _check_continuous(self):
        """Raises UserError for a value that goes with a quantizer alone."""
        height, width = self.scales.finest
        require(
            len(self.scales) == 1,
            "tokenizer.scales",
            self.scales,
            f"one map, such as {height}x{width}, with tokenizer.codes {self.codes!r}, which leaves "
            "nothing to quantize by scale",
        )
        require(
            self.quantizer_dropout == 0,
            "tokenizer.quantizer_dropout",
            self.quantizer_dropout,
            f"0 with tokenizer.codes {self.codes!r}, which has no quantizer",
        )

    @property
    def quantizes(self) -> bool:
        """Whether the tokenizer makes tokens; plain and KL autoencoders do not."""
        return self.codes not in CONTINUOUS

    @property
    def feature_channels(self) -> int:
        """Channels of the encoder's output: two per latent channel for "kl", else one."""
        return self.z_channels * (2 if self.codes == "kl" else 1)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level of the encoder, from the finest resolution to the coarsest."""
        return tuple(self.channels * m for m in self.multipliers)

    @property
    def downsampling(self) -> int:
        """Side in pixels of a token of the finest scale: two to the number of halvings."""
        return 2 ** (len(self.multipliers) - 1)

    @property
    def codebook_parameters(self) -> int:
        """Number of parameters of the codebook; 0 where codes are computed, or there are none."""
        learned = self.quantizes and self.codes != "bsq"
        return self.vocab_size * self.z_channels if learned else 0

    @property
    def phi_count(self) -> int:
        """Number of residual convolutions (phi): as configured, or one per scale."""
        return self.phi or len(self.scales)

    @property
    def pixel_channels(self) -> int:
        """Number of values in the pixels that one token of the finest scale represents."""
        return self.downsampling**2 * self.in_channels

    @property
    def image_shape(self) -> ImageShape:
        """The shape of an image as an array, in pixels."""
        require_from_data("tokenizer.in_channels", self.in_channels)
        h, w = self.scales.finest
        return h * self.downsampling, w * self.downsampling, self.in_channels


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The config of a model, or of only a tokenizer (`transformer` None).

    Attributes:
      refiner: the logit refiner that samples within the scales; None without one.
    """

    tokenizer: TokenizerConfig
    transformer: TransformerConfig | None = None
    refiner: RefinerConfig | None = None

    def __post_init__(self):
        for name in ("vocab_size", "z_channels", "scales") if self.transformer else ():
            value, expected = getattr(self.transformer, name), getattr(self.tokenizer, name)
            require(value == expected, f"transformer.{name}", value, f"the tokenizer's {expected}")
        require_from_data("tokenizer.in_channels", self.tokenizer.in_channels)
        if self.transformer:
            require_codes(self.tokenizer, self.transformer)
            followed = with_pixel_channels(self.transformer, self.tokenizer)
            channels = self.transformer.pixel_channels
            require(
                channels in (0, followed.pixel_channels),
                "transformer.pixel_channels",
                channels,
                f"the tokenizer's {followed.pixel_channels}",
            )
            object.__setattr__(self, "transformer", followed)
            require_from_data("transformer.num_classes", self.transformer.num_classes)
        if self.refiner is not None:
            require(self.transformer is not None, "transformer", None, "given with a refiner")
            assert self.transformer is not None
            self.refiner.check(self.transformer)


def with_pixel_channels(
    transformer: TransformerConfig, tokenizer: TokenizerConfig
) -> TransformerConfig:
    """Returns the config of a transformer of pixels with the tokenizer's `pixel_channels`.

    A transformer of other latents is returned as it is; so is one of pixels while the number of
    image channels is left to the data.
    """
    if transformer.latents != "pixels" or tokenizer.in_channels == 0:
        return transformer
    return dataclasses.replace(transformer, pixel_channels=tokenizer.pixel_channels)


def require_codes(tokenizer: TokenizerConfig, transformer: TransformerConfig):
    """Raises UserError for a transformer that learns tokens of a tokenizer without codes."""
    require(
        tokenizer.quantizes or transformer.objective == "diffusion",
        "transformer.objective",
        repr(transformer.objective),
        f"'diffusion' over a tokenizer with tokenizer.codes {tokenizer.codes!r}, which makes no "
        "tokens",
    )
