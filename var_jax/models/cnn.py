"""The tokenizer's CNN encoder and decoder (VQGAN f16), in Flax Linen, NHWC."""

from __future__ import annotations

from typing import TYPE_CHECKING

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from var_jax.config.model import TokenizerConfig
from var_jax.devices import target
from var_jax.devices.sharding import constrain, parameter
from var_jax.ops import upsampled_convolution
from var_jax.ops.mixed_precision import add_bias, convolution

if TYPE_CHECKING:
    from jaxtyping import Array, Float

# The collection of dropout's random keys, which training passes; without it nothing is dropped.
DROPOUT = "dropout"


def conv_init(
    config: TokenizerConfig, batch_axis: tuple[int, ...] = ()
) -> nn.initializers.Initializer:
    """Returns the initializer of the tokenizer's convolution kernels.

    Args:
      batch_axis: the axes that index a stack of kernels, which count neither as inputs nor as
        outputs.
    """
    if config.init_gain:
        return nn.initializers.variance_scaling(
            config.init_gain**2, "fan_avg", "normal", batch_axis=batch_axis
        )
    # PyTorch's default for convolutions: uniform within 1/sqrt(fan_in).
    return nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform", batch_axis=batch_axis)


class Conv(nn.Module):
    """A convolution with logical axis names.

    Attributes:
      size: height and width of the kernel, 1 or 3.
      padding: "SAME", or ((top, bottom), (left, right)).
      upsample: whether the map is first upsampled by two, each pixel repeated; only with the
        defaults of `size`, `stride` and `padding`.
      names: logical axes of the kernel's inputs and outputs.
    """

    features: int
    config: TokenizerConfig
    size: int = 3
    stride: int = 1
    padding: str | tuple = "SAME"
    upsample: bool = False
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
        if self.upsample:
            assert (self.size, self.stride, self.padding) == (3, 1, "SAME")
        # Where it was measured: accelerators, and kernels of other dtypes, have the plain form.
        if self.upsample and dtype == jnp.float32 and target.is_single_cpu():
            y = upsampled_convolution.by_phase(x.astype(dtype), kernel.astype(dtype))
        else:
            x = upsampled_convolution.upsampled(x) if self.upsample else x
            y = convolution(x, kernel, (self.stride, self.stride), self.padding, dtype, summed)
        # Without the constraint the compiler would move images to the devices that hold their
        # channels' weights.
        return constrain(add_bias(y, bias, summed), "images", None, None, None)


class GroupNorm(nn.Module):
    """GroupNorm in float32 with eps 1e-6 (Wu and He 2018).

    Flax's GroupNorm splits the channels of the whole map into (groups, channels per group): with
    160 channels in 32 groups the last dimension is 5, which a TPU pads to 128. This one takes the
    means per channel first, and groups only them.
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
            channel_means = jnp.mean(y, axis=(1, 2))
            groups = rearrange(channel_means, "b (g c) -> b g c", g=self.config.norm_groups)
            means = jnp.repeat(jnp.mean(groups, axis=-1), groups.shape[-1], axis=-1)
            return means[:, None, None]

        y = x.astype(jnp.float32)
        y -= mean(y)
        return (y * (jax.lax.rsqrt(mean(y**2) + 1e-6) * scale) + bias).astype(x.dtype)


class Norm(nn.Module):
    """GroupNorm one level deeper in the parameter tree, where checkpoints have it."""

    config: TokenizerConfig

    @nn.compact
    def __call__(self, x):
        return GroupNorm(self.config, name="group")(x)


class ResBlock(nn.Module):
    """Two convolutions, each after a norm and SiLU, plus a shortcut."""

    features: int
    config: TokenizerConfig

    @nn.compact
    def __call__(self, x):
        y = nn.silu(Norm(self.config, name="norm1")(x))
        y = Conv(self.features, self.config, name="conv1")(y)
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
    """The residual blocks of one resolution; at the lowest, attention follows each of them."""

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
    """Two residual blocks at the lowest resolution, with attention between them."""

    config: TokenizerConfig

    @nn.compact
    def __call__(self, x):
        x = ResBlock(x.shape[-1], self.config, name="block_1")(x)
        if self.config.mid_attention:
            x = SelfAttention(self.config, name="attn_1")(x)
        return ResBlock(x.shape[-1], self.config, name="block_2")(x)


class Encoder(nn.Module):
    """Images to features: one level per channel multiplier, halving the image between levels."""

    config: TokenizerConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b H W i"]) -> Float[Array, "b h w c"]:
        c = self.config
        x = Conv(c.channels, c, names=("image_channels", "conv_out"), name="conv_in")(x)
        for i, width in enumerate(c.widths):
            lowest = i == len(c.widths) - 1
            x = Level(width, c.blocks, lowest, c, name=f"down_{i}")(x)
            if not lowest:  # the published padding, at the right and bottom only
                x = Conv(width, c, stride=2, padding=((0, 1), (0, 1)), name=f"downsample_{i}")(x)
        x = Middle(c, name="mid")(x)
        x = nn.silu(Norm(c, name="norm_out")(x))
        return Conv(c.z_channels, c, names=("conv_in", "code"), name="conv_out")(x)


class Decoder(nn.Module):
    """Features to images: the encoder's mirror with one more block per level."""

    config: TokenizerConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b H W i"]:
        c = self.config
        x = Conv(c.widths[-1], c, names=("code", "conv_out"), name="conv_in")(x)
        x = Middle(c, name="mid")(x)
        for i, width in reversed(list(enumerate(c.widths))):
            x = Level(width, c.blocks + 1, i == len(c.widths) - 1, c, name=f"up_{i}")(x)
            if i:
                x = Conv(width, c, upsample=True, name=f"upsample_{i}")(x)
        x = nn.silu(Norm(c, name="norm_out")(x))
        conv_out = Conv(c.in_channels, c, names=("conv_in", "image_channels"), name="conv_out")
        return conv_out(x).astype(jnp.float32)
