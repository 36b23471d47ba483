"""Sizes and kind of the transformer, as a frozen dataclass."""

import dataclasses
from typing import Literal

from var_jax.config import rematerialization
from var_jax.config.scales import SCALES_256, Scales
from var_jax.config.strict import require

DType = Literal["float32", "bfloat16"]
ParamDType = Literal["float32", "bfloat16", "int8"]
INT8_REST: DType = "bfloat16"  # of the parameters beside those in int8
Mask = Literal["block_causal", "markov", "block_diagonal"]  # `ops.masks` defines them
ObjectiveName = Literal["next_scale", "next_token", "masked", "diffusion"]
LatentShape = tuple[int, int, int]  # (height, width, channels)
# Keys that are those of the tokenizer, and none of a config file.
OF_TOKENIZER = ("vocab_size", "z_channels", "scales", "pixel_channels")
ONE_MAP = ("next_token", "masked")  # objectives whose tokenizer has one token map


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """The class-conditional transformer (VAR, section 3.3; sizes in table 1 and the appendix).

    Attributes:
      objective: the training objective: "next_scale" (VAR), or one of its rivals, "next_token" (one
        token after the other), "masked" (MaskGIT) and "diffusion" (DiT, SiT), over the same
        tokenizer. Keys that an objective does not use are refused (`objective_keys`).
      depth: blocks; also sets the defaults below.
      width: model width, 0 for 64 * depth.
      heads: attention heads, 0 for depth.
      num_classes: classes; label `num_classes` means "no class". 0 stands for as many as the data
        have, until a run has seen them.
      vocab_size, z_channels, scales: those of the tokenizer whose tokens it models.
      mlp_ratio: hidden width of the MLP over `width`.
      shared_adaln: one AdaLN linear for all blocks plus a learned offset per block, instead of
        one linear per block.
      qk_norm: L2-normalized q and k with a learned scale per head; without it logits are scaled by
        0.25/sqrt(d).
      drop_path: rate of the last block (ramped linearly from 0); negative for 0.1 * depth / 24.
      class_dropout: share of training labels replaced by "no class".
      progressive: for how long only the first scales are trained on, one more after the other (the
        published `pg`); from 1 on a number of steps, below it a share of the run's, 0 for never.
      progressive_from: the last of them, counted from 0, until the learning rate's warm-up is over
        (the published `pg0`).
      progressive_warmup: how long the loss of a scale that is added grows from a hundredth of its
        weight to all of it (the published `pgwp`); steps or a share, as above.
      scale_weights: factor on the loss of each scale's tokens in "next_scale", coarse to fine; the
        sum over all tokens keeps its weight. Empty for the same everywhere.
      flip_share: the largest share of an image's tokens that are replaced at random in the inputs
        of "next_scale"; later scales then learn to correct them (`ops.self_correction`). 0 for
        none.
      init_std: standard deviation of every weight and embedding; negative for sqrt(1 / (3 width)).
      init_head: factor on the head's initial weights.
      init_adaln: factor on AdaLN's initial weights.
      init_adaln_gamma: factor on the initial weights of AdaLN's gamma rows ("alng").
      order: the order in which "next_token" takes the tokens of its map: "raster", "zcurve",
        "spiral_out" (also "spiral"), "spiral_in", "alternate", "subsample" (`ops.orders`), or a
        permutation of their raster indices such as "2,0,1,3"; in a config file also the path of a
        text file with one.
      class_conditioning: how "next_token" and "next_scale" know the class: "adaln", in every block
        and as the first token, or "start_token", only as the first token, with plain LayerNorm (as
        VQGAN).
      mask: which scales a scale attends to (`ops.masks`); only for "next_scale".
      latents: what "diffusion" generates: "features", the tokenizer's feature maps before
        quantization, or "pixels", in which a place of the map is the block of pixels that the
        tokenizer makes one token of. Either is normalized by channel.
      pixel_channels: numbers in such a block of pixels, those of the tokenizer's images; 0 without
        one.
      patch: side, in places of the map, of the squares that "diffusion" makes one token of.
      prediction: the prediction of "diffusion": "velocity", on the straight line from noise to data
        (SiT), or "epsilon", the noise of 1000 steps of DDPM (DiT).
      learn_sigma: whether it predicts the variance of DDPM's reverse steps too, in as many further
        output channels; only with prediction "epsilon".
      key_bias: whether the keys of "diffusion" have a bias, as DiT's have. It changes nothing but
        the number of parameters without `qk_norm`.
      attention: how attention is computed (`ops.attention`): "auto" is "splash" on a TPU, "cudnn"
        on a GPU in bfloat16, else "xla". It changes no result beyond rounding.
      remat: recomputation in the backward pass: "none", "dots" (all but matrix products), "offload"
        (as "dots", with the products in the host's memory until then), "full", or "auto", in
        training what is estimated to fit, from "dots" to "full" (`train.memory_rule`). "dots:8" is
        "dots" in the last 8 blocks and "full" in the others, and so on
        (`config.rematerialization`).
      dtype: dtype of the computation; softmax, norms, logits and loss are always float32.
      param_dtype: dtype of the stored parameters; float32 if the transformer is trained. "int8" is
        that of the blocks' weight matrices, with bfloat16 for the rest (`models.int8_weights`).
      gradient_dtype: dtype in which gradients of weights are summed over rows and devices;
        "bfloat16" halves the bytes that devices reduce where `dtype` is bfloat16, and has no effect
        where it is float32.
    """

    objective: ObjectiveName = "next_scale"
    depth: int = 16
    width: int = 0
    heads: int = 0
    num_classes: int = 1000
    vocab_size: int = 4096
    z_channels: int = 32
    scales: Scales = Scales.parse(SCALES_256)
    mlp_ratio: float = 4.0
    shared_adaln: bool = False
    qk_norm: bool = True
    drop_path: float = -1.0
    class_dropout: float = 0.1
    progressive: float = 0.0
    progressive_from: int = 4
    progressive_warmup: float = 1 / 300
    scale_weights: tuple[float, ...] = ()
    flip_share: float = 0.0
    init_std: float = -1.0
    init_head: float = 0.02
    init_adaln: float = 0.5
    init_adaln_gamma: float = 1e-3
    order: str = "raster"
    class_conditioning: Literal["adaln", "start_token"] = "adaln"
    mask: Mask = "block_causal"
    latents: Literal["features", "pixels"] = "features"
    pixel_channels: int = 0
    patch: int = 2
    prediction: Literal["velocity", "epsilon"] = "velocity"
    learn_sigma: bool = False
    key_bias: bool = False
    attention: Literal["auto", "xla", "splash", "cudnn"] = "auto"
    remat: str = "none"
    dtype: DType = "float32"
    param_dtype: ParamDType = "float32"
    gradient_dtype: DType = "float32"

    def __post_init__(self):
        for name in ("depth", "vocab_size", "z_channels"):
            require(
                getattr(self, name) >= 1, f"transformer.{name}", getattr(self, name), "at least 1"
            )
        require(
            self.num_classes >= 0,
            "transformer.num_classes",
            self.num_classes,
            "at least 1, or 0 for as many as the data have",
        )
        for name in ("width", "heads"):
            require(
                getattr(self, name) >= 0,
                f"transformer.{name}",
                getattr(self, name),
                "0 (by depth) or more",
            )
        derived = {
            "width": (self.width == 0, 64 * self.depth),
            "heads": (self.heads == 0, self.depth),
            "drop_path": (self.drop_path < 0, 0.1 * self.depth / 24),
        }
        for name, (unset, value) in derived.items():
            if unset:
                object.__setattr__(self, name, value)
        if self.init_std < 0:
            object.__setattr__(self, "init_std", (1 / (3 * self.width)) ** 0.5)
        require(
            self.width % self.heads == 0,
            "transformer.heads",
            self.heads,
            f"a divisor of the width {self.width}",
        )
        require(
            0 < self.mlp_ratio < float("inf") and self.hidden >= 1,
            "transformer.mlp_ratio",
            self.mlp_ratio,
            "positive, for a hidden width of at least 1",
        )
        require(self.drop_path < 1, "transformer.drop_path", self.drop_path, "below 1")
        require(
            0 <= self.class_dropout < 1,
            "transformer.class_dropout",
            self.class_dropout,
            "from 0 to below 1",
        )
        for name in ("progressive", "progressive_warmup"):
            require(
                getattr(self, name) >= 0, f"transformer.{name}", getattr(self, name), "0 or more"
            )
        require(
            0 <= self.flip_share < 1, "transformer.flip_share", self.flip_share, "from 0 to below 1"
        )
        require(
            all(0 <= weight < float("inf") for weight in self.scale_weights)
            and (not self.scale_weights or any(self.scale_weights)),
            "transformer.scale_weights",
            self.scale_weights,
            "numbers of 0 or more that are not all 0",
        )
        require(
            self.objective not in ONE_MAP or len(self.scales) == 1,
            "tokenizer.scales",
            self.scales,
            f"one token map, such as {self.scales.sizes[-1][0]}x{self.scales.sizes[-1][1]}, with "
            f"transformer.objective {self.objective!r}",
        )
        if self.objective == "diffusion":
            self._check_diffusion()
        if self.remat != rematerialization.AUTO:
            rematerialization.groups(self.remat, self.depth)
        finest = len(self.scales) - 1
        require(
            self.objective != "next_scale"
            or self.progressive == 0
            or 0 <= self.progressive_from <= finest,
            "transformer.progressive_from",
            self.progressive_from,
            f"a scale of {self.scales}, counted from 0: at most {finest}",
        )

    def _check_diffusion(self):
        """Raises UserError for a value that a diffusion model cannot have."""
        require(
            self.patch >= 1 and all(side % self.patch == 0 for side in self.scales.finest),
            "transformer.patch",
            self.patch,
            f"a divisor of both sides of the latents, {'x'.join(map(str, self.scales.finest))}",
        )
        require(
            self.width % 4 == 0,
            "transformer.width",
            self.width,
            "a multiple of 4 for sines and cosines of two coordinates, with "
            "transformer.objective 'diffusion'",
        )
        require(
            not self.learn_sigma or self.prediction == "epsilon",
            "transformer.learn_sigma",
            self.learn_sigma,
            f"False with transformer.prediction {self.prediction!r}; the variances are those of "
            "'epsilon'",
        )
        require(
            self.pixel_channels >= 0,
            "transformer.pixel_channels",
            self.pixel_channels,
            "0 or more",
        )

    @property
    def float_param_dtype(self) -> DType:
        """The dtype of the stored parameters that are floats."""
        return INT8_REST if self.param_dtype == "int8" else self.param_dtype

    @property
    def sequence(self) -> Scales:
        """The blocks of tokens that are generated at once, in their order.

        Each block attends to itself and, by `mask`, to earlier ones. The blocks are the scales,
        single tokens ("next_token"), or one block of all tokens ("masked", and "diffusion", whose
        tokens are patches).
        """
        if self.objective == "next_scale":
            return self.scales
        if self.objective == "next_token":
            return Scales(((1, 1),) * self.scales.total)
        height, width = self.scales.finest
        if self.objective == "diffusion":
            return Scales(((height // self.patch, width // self.patch),))
        return Scales(((height, width),))

    @property
    def latent_channels(self) -> int:
        """Channels of the latents that a diffusion model generates."""
        return self.pixel_channels if self.latents == "pixels" else self.z_channels

    @property
    def output_channels(self) -> int:
        """Channels that a diffusion model predicts: twice as many where it learns a variance."""
        return self.latent_channels * (2 if self.learn_sigma else 1)

    @property
    def latent_shape(self) -> LatentShape:
        """(height, width, channels) of the latents that a diffusion model generates."""
        return *self.scales.finest, self.latent_channels

    @property
    def head_dim(self) -> int:
        """Channels of each attention head."""
        return self.width // self.heads

    @property
    def hidden(self) -> int:
        """Channels of the hidden layer of each MLP."""
        return round(self.width * self.mlp_ratio)
