"""The tokenizer's CNN encoder and decoder (VQGAN f16) around the multi-scale quantizer, in Flax
Linen, NHWC."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from var_jax.config.model import TokenizerConfig
from var_jax.devices.sharding import constrain, parameter
from var_jax.ops import vq
from var_jax.ops.products import add_bias, convolution

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray


# The collection of random keys that training gives; without it nothing is dropped.
DROPOUT = "dropout"


class Conv(nn.Module):
    """A convolution that names its logical axes; `size` 1 or 3, padding given as ((top, bottom),
    (left, right))."""

    features: int
    config: TokenizerConfig
    size: int = 3
    stride: int = 1
    padding: str | tuple = "SAME"
    names: tuple[str, str] = ("conv_in", "conv_out")

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b H W f"]:
        stored, dtype = jnp.dtype(self.config.param_dtype), jnp.dtype(self.config.dtype)
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = parameter(
            self, "kernel", conv_init(self.config), shape, ("kernel", "kernel", *self.names), stored
        )
        bias = parameter(self, "bias", nn.initializers.zeros, shape[-1:], self.names[1:], stored)
        summed = jnp.dtype(self.config.gradient_dtype)
        y = convolution(x, kernel, (self.stride, self.stride), self.padding, dtype, summed)
        # Held here because the compiler would rather move images to where their channels' weights
        # lie.
        return constrain(add_bias(y, bias, summed), "images", None, None, None)


class GroupNorm(nn.Module):
    """GroupNorm in float32 (Wu and He 2018), eps 1e-6.

    Ours because Flax's splits the channels of the whole map into (groups, channels of a group): of
    160 channels in 32 groups that leaves 5 in the last dimension, which a TPU pads to 128. Here
    sums are taken a channel first, and only they are grouped.
    """

    config: TokenizerConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        stored, channels = jnp.dtype(self.config.param_dtype), x.shape[-1:]
        scale, bias = (
            parameter(self, name, init, channels, ("conv_out",), stored).astype(jnp.float32)
            for name, init in (("scale", nn.initializers.ones), ("bias", nn.initializers.zeros))
        )

        def mean(y):
            groups = rearrange(
                jnp.mean(y, axis=(1, 2)), "b (g c) -> b g c", g=self.config.norm_groups
            )
            return jnp.repeat(jnp.mean(groups, axis=-1), groups.shape[-1], axis=-1)[:, None, None]

        y = x.astype(jnp.float32)
        y -= mean(y)
        return (y * (jax.lax.rsqrt(mean(y**2) + 1e-6) * scale) + bias).astype(x.dtype)


class Norm(nn.Module):
    """The norm under the name that saved parameters have."""

    config: TokenizerConfig

    @nn.compact
    def __call__(self, x):
        return GroupNorm(self.config, name="group")(x)


class ResBlock(nn.Module):
    features: int
    config: TokenizerConfig

    @nn.compact
    def __call__(self, x):
        y = Conv(self.features, self.config, name="conv1")(
            nn.silu(Norm(self.config, name="norm1")(x))
        )
        y = nn.silu(Norm(self.config, name="norm2")(y))
        if self.config.dropout and self.has_rng(DROPOUT):
            y = nn.Dropout(
                self.config.dropout, deterministic=False, rng_collection=DROPOUT, name="dropout"
            )(y)
        y = Conv(self.features, self.config, name="conv2")(y)
        if x.shape[-1] != self.features:
            x = Conv(self.features, self.config, size=1, name="nin_shortcut")(x)
        return x + y


class SelfAttention(nn.Module):
    """Single-head attention over all positions of the map."""

    config: TokenizerConfig

    @nn.compact
    def __call__(self, x):
        b, h, w, c = x.shape
        qkv = Conv(3 * c, self.config, size=1, name="qkv")(Norm(self.config, name="norm")(x))
        q, k, v = jnp.split(rearrange(qkv, "b h w c -> b (h w) c"), 3, axis=-1)
        logits = jnp.einsum("bqc,bkc->bqk", q, k, preferred_element_type=jnp.float32) * c**-0.5
        y = jnp.einsum("bqk,bkc->bqc", nn.softmax(logits, axis=-1).astype(v.dtype), v)
        return x + Conv(c, self.config, size=1, name="proj_out")(y.reshape(b, h, w, c))


class Level(nn.Module):
    """The residual blocks of one resolution, each followed by attention at the lowest."""

    features: int
    blocks: int
    lowest: bool
    config: TokenizerConfig

    @nn.compact
    def __call__(self, x):
        block = nn.remat(ResBlock) if self.config.remat == "full" else ResBlock
        for i in range(self.blocks):
            x = block(self.features, self.config, name=f"block_{i}")(x)
            if self.lowest and self.config.attention:
                x = SelfAttention(self.config, name=f"attn_{i}")(x)
        return x


class Middle(nn.Module):
    config: TokenizerConfig

    @nn.compact
    def __call__(self, x):
        x = ResBlock(x.shape[-1], self.config, name="block_1")(x)
        if self.config.mid_attention:
            x = SelfAttention(self.config, name="attn_1")(x)
        return ResBlock(x.shape[-1], self.config, name="block_2")(x)


class Encoder(nn.Module):
    """Images to features: one level a multiplier, the image halved between levels."""

    config: TokenizerConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b H W i"]) -> Float[Array, "b h w c"]:
        c = self.config
        x = Conv(c.channels, c, names=("image_channels", "conv_out"), name="conv_in")(x)
        for i, width in enumerate(c.widths):
            lowest = i == len(c.widths) - 1
            x = Level(width, c.blocks, lowest, c, name=f"down_{i}")(x)
            if not lowest:  # padded at the right and bottom only, as published
                x = Conv(width, c, stride=2, padding=((0, 1), (0, 1)), name=f"downsample_{i}")(x)
        x = Middle(c, name="mid")(x)
        return Conv(c.z_channels, c, names=("conv_in", "code"), name="conv_out")(
            nn.silu(Norm(c, name="norm_out")(x))
        )


class Decoder(nn.Module):
    """Features to images, the encoder's mirror with one more block a level."""

    config: TokenizerConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b H W i"]:
        c = self.config
        x = Conv(c.widths[-1], c, names=("code", "conv_out"), name="conv_in")(x)
        x = Middle(c, name="mid")(x)
        for i, width in reversed(list(enumerate(c.widths))):
            x = Level(width, c.blocks + 1, i == len(c.widths) - 1, c, name=f"up_{i}")(x)
            if i:
                x = x.repeat(2, axis=1).repeat(2, axis=2)
                x = Conv(width, c, name=f"upsample_{i}")(x)
        x = nn.silu(Norm(c, name="norm_out")(x))
        return Conv(c.in_channels, c, names=("conv_in", "image_channels"), name="conv_out")(
            x
        ).astype(jnp.float32)


class Forward(NamedTuple):
    """What the training forward gives.

    Attributes:
      reconstruction: not clamped.
      tokens: of all scales, coarse to fine.
      vq_loss: of the scales that counted.
      residuals: the vectors whose nearest codes the tokens are (`vq.Quantized`).
      counted: tokens of scales that quantizer dropout left in; all of them without it.
    """

    reconstruction: Float[Array, "b H W i"]
    tokens: Int[Array, "b L"]
    vq_loss: Float[Array, ""]
    residuals: Float[Array, "b L c"]
    counted: Bool[Array, "b L"]


class Tokenizer(nn.Module):
    """Images in [-1, 1] to tokens of all scales and back."""

    config: TokenizerConfig

    def setup(self):
        c = self.config
        code = ("code", None)
        self.encoder = Encoder(c)
        self.decoder = Decoder(c)
        self.quantize = MultiScaleQuantizer(c)
        self.quant_conv = Conv(c.z_channels, c, names=code)
        self.post_quant_conv = Conv(c.z_channels, c, names=code)

    def __call__(self, images: Float[Array, "b H W i"]):
        """The training forward.

        Returns:
          reconstruction (b, H, W, i), not clamped; tokens (b, L); the VQ loss.
        """
        return self.forward(images)[:3]

    def forward(self, images: Float[Array, "b H W i"], rng: PRNGKeyArray | None = None) -> Forward:
        """As the call, with what training looks at besides; quantizer dropout acts when `rng` is
        given, dropout in the residual blocks when `apply` has a key for `DROPOUT`."""
        c = self.config
        feature = self.features(images)
        num_scales = None
        if rng is not None and c.quantizer_dropout:
            num_scales = vq.sample_num_scales(
                rng,
                images.shape[0],
                len(c.scales),
                rate=c.quantizer_dropout,
                start=c.quantizer_dropout_from,
            )
        tokens, f_hats, residuals = vq.quantize(self.quantize(), feature, num_scales)
        loss = vq.vq_loss(feature, f_hats, c.vq_beta, num_scales)
        passed = feature + jax.lax.stop_gradient(f_hats[-1] - feature)  # straight-through
        counted = jnp.ones(tokens.shape, bool)
        if num_scales is not None:
            counted = vq.active_tokens(c.scales, num_scales)
        return Forward(self.reconstruct(passed), tokens, loss, residuals, counted)

    def features(self, images: Float[Array, "b H W i"]) -> Float[Array, "b h w c"]:
        """What the quantizer quantises, in float32."""
        return self.quant_conv(self.encoder(images)).astype(jnp.float32)

    def encode(self, images: Float[Array, "b H W i"]) -> Int[Array, "b L"]:
        """Tokens of all scales, coarse to fine."""
        return vq.quantize(self.quantize(), self.features(images)).tokens

    def reconstruct(self, feature: Float[Array, "b h w c"]) -> Float[Array, "b H W i"]:
        """The image of a quantised feature map, not clamped."""
        return self.decoder(self.post_quant_conv(feature))

    def decode_feature(self, feature: Float[Array, "b h w c"]) -> Float[Array, "b H W i"]:
        """The image of a quantised feature map, in [-1, 1]."""
        return jnp.clip(self.reconstruct(feature), -1, 1)

    def decode(self, tokens: Int[Array, "b L"]) -> Float[Array, "b H W i"]:
        """The image of tokens of all scales, in [-1, 1]."""
        return self.decode_feature(vq.decode(self.quantize(), tokens)[-1])

    def teacher_input(self, tokens: Int[Array, "b L"]) -> Float[Array, "b L-1 c"]:
        """The transformer's input for scales 2..K, before its word embedding."""
        return vq.teacher_input(self.quantize(), tokens)

    def quantizer(self) -> vq.Quantizer:
        """The quantizer's weights, for functions in `ops.vq`."""
        return self.quantize()


def conv_init(
    config: TokenizerConfig, batch_axis: tuple[int, ...] = ()
) -> nn.initializers.Initializer:
    """How kernels of a tokenizer start.

    Args:
      batch_axis: dimensions of a kernel that lie over each other and are no part of it.
    """
    if config.init_gain:
        return nn.initializers.variance_scaling(
            config.init_gain**2, "fan_avg", "normal", batch_axis=batch_axis
        )
    # PyTorch's default for convolutions: uniform within 1/sqrt(fan_in).
    return nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform", batch_axis=batch_axis)


class MultiScaleQuantizer(nn.Module):
    """Holds the codebook (none for "bsq") and the residual convolutions; gives them in float32
    whatever the dtype."""

    config: TokenizerConfig

    @nn.compact
    def __call__(self) -> vq.Quantizer:
        c = self.config
        stored, n, z = jnp.dtype(c.param_dtype), c.phi_count, c.z_channels
        codebook = None
        if c.codes != "bsq":
            code_init = nn.initializers.normal(c.init_codes)
            codebook = parameter(
                self, "codebook", code_init, (c.vocab_size, z), ("vocab", "code"), stored
            )
        kernel_init = conv_init(c, batch_axis=(0,))
        kernel = parameter(
            self,
            "phi_kernel",
            kernel_init,
            (n, 3, 3, z, z),
            ("phi", "kernel", "kernel", "code", None),
            stored,
        )
        bias = parameter(self, "phi_bias", nn.initializers.zeros, (n, z), ("phi", "code"), stored)
        arrays = (None if x is None else x.astype(jnp.float32) for x in (codebook, kernel, bias))
        return vq.Quantizer(*arrays, scales=c.scales, phi_ratio=c.phi_ratio, codes=c.codes)
