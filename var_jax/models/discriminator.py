"""Discriminators of a tokenizer's adversarial training: PatchGAN, or heads on a frozen network.

Both return logits (b, n) in float32, one column per position. Neither has running statistics or
pix2pix's batch norm, which would make an image's logit depend on the other images of its device or
microbatch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import flax.linen as nn
import jax
import jax.numpy as jnp

from var_jax.devices import gathering
from var_jax.devices.sharding import constrain, parameter
from var_jax.ops.normalize import l2_normalize

if TYPE_CHECKING:
    from jaxtyping import Array, Float

SPECTRAL = "spectral"  # the collection of power iteration's vectors
FIRST_ITERATIONS = 15  # power iterations at initialization; then one per step
SLOPE = 0.2  # negative slope of every leaky ReLU
LOCAL_BATCH = 8  # images that share batch-local statistics
KERNEL_INIT = nn.initializers.normal(0.02)  # as pix2pix
HEAD_INIT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class PatchDiscriminator(nn.Module):
    """PatchGAN (pix2pix's NLayerDiscriminator): strided 4x4 convolutions and a logit per patch.

    Group norm takes the place of pix2pix's batch norm. Every layer halves the image, and at least
    4 x 4 positions should remain: 2 layers for 32 pixels, 3 from 64 on.

    Attributes:
      channels: width of the first layer; each layer doubles it, up to eight times as many.
      layers: number of strided convolutions.
      groups: number of groups of group norm.
    """

    channels: int = 64
    layers: int = 3
    groups: int = 8

    @nn.compact
    def __call__(self, images: Float[Array, "b H W c"]) -> Float[Array, "b n"]:
        x = nn.leaky_relu(Conv(self.channels, 4, stride=2, name="conv_0")(images), SLOPE)
        for i in range(1, self.layers + 1):
            width = self.channels * min(2**i, 8)
            stride = 2 if i < self.layers else 1
            x = Conv(width, 4, stride=stride, use_bias=False, name=f"conv_{i}")(x)
            names = ("conv_out",)
            x = nn.GroupNorm(
                self.groups,
                epsilon=1e-5,
                name=f"norm_{i}",
                scale_init=nn.with_logical_partitioning(nn.initializers.ones, names),
                bias_init=nn.with_logical_partitioning(nn.initializers.zeros, names),
            )(x)
            x = constrain(nn.leaky_relu(x, SLOPE), "images", None, None, None)
        x = Conv(1, 4, name="logit")(x)
        return x.reshape(x.shape[0], -1)


class FeatureDiscriminator(nn.Module):
    """A head on every level of a frozen network's features.

    Source: Projected GAN, with the heads of StyleGAN-T.

    Attributes:
      channels: width of the heads.
      kernel: taps of the residual block's convolution: that many along a sequence of tokens, or a
        square of about as many on a map (9 gives 3x3).
    """

    channels: int = 64
    kernel: int = 9

    @nn.compact
    def __call__(self, features: Sequence[Float[Array, "b *places c"]]) -> Float[Array, "b n"]:
        heads = [
            Head(self.channels, self.kernel, name=f"head_{i}")(level)
            for i, level in enumerate(features)
        ]
        return jnp.concatenate(heads, axis=1)


class Head(nn.Module):
    """A 1x1 convolution, a residual block, and a 1x1 convolution to logits.

    All kernels are spectrally normalized.
    """

    channels: int
    kernel: int

    @nn.compact
    def __call__(self, x: Float[Array, "b *places c"]) -> Float[Array, "b n"]:
        flat = x.ndim == 3
        size = self.kernel if flat else max(1, round(math.sqrt(self.kernel)))
        x = x.astype(jnp.float32)

        def block(x, size, name):
            # No bias, as the norm would remove it.
            y = Conv(self.channels, size, use_bias=False, spectral=True, name=name)(x)
            return nn.leaky_relu(BatchLocalNorm(name=f"{name}_norm")(y), SLOPE)

        x = block(x, 1, "project")
        x = (x + block(x, size, "mix")) / math.sqrt(2)
        x = Conv(1, 1, spectral=True, name="logit")(x)
        return x.reshape(x.shape[0], -1)


class BatchLocalNorm(nn.Module):
    """Channels normalized over the positions of up to 8 consecutive images (StyleGAN-T).

    It has no running statistics.
    """

    @nn.compact
    def __call__(self, x: Float[Array, "b *places c"]) -> Float[Array, "b *places c"]:
        group, positions = math.gcd(x.shape[0], LOCAL_BATCH), tuple(range(1, x.ndim - 1))

        def mean(y):
            # Means per image come first: grouping whole maps would gather a batch that is sharded
            # over many devices.
            image_means = jnp.mean(y, axis=positions).reshape(-1, group, y.shape[-1])
            group_means = jnp.mean(image_means, axis=1)
            return jnp.expand_dims(jnp.repeat(group_means, group, axis=0), positions)

        x = x - mean(x)
        x = x * jax.lax.rsqrt(mean(x**2) + 1e-5)
        scale = parameter(
            self, "scale", nn.initializers.ones, x.shape[-1:], ("conv_out",), jnp.float32
        )
        return x * scale + parameter(
            self, "bias", nn.initializers.zeros, x.shape[-1:], ("conv_out",), jnp.float32
        )


class Conv(nn.Module):
    """A convolution over a sequence or a map, spectrally normalized where `spectral` is set.

    A single output channel is replicated on every device.
    """

    features: int
    size: int
    stride: int = 1
    use_bias: bool = True
    spectral: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b *places c"]) -> Float[Array, "b *new f"]:
        sides = x.ndim - 2
        out = None if self.features == 1 else "conv_out"
        kernel = parameter(
            self,
            "kernel",
            HEAD_INIT if self.spectral else KERNEL_INIT,
            (self.size,) * sides + (x.shape[-1], self.features),
            ("kernel",) * sides + ("conv_in", out),
            jnp.float32,
        )
        if self.spectral:
            kernel = kernel / self._largest_singular_value(kernel)
        before = (self.size - 1) // 2
        pad = (before, self.size - self.stride - before)  # a side of n places becomes n / stride
        layout = ("NWC", "WIO", "NWC") if sides == 1 else ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(
            x,
            gathering.undivided(kernel),
            (self.stride,) * sides,
            [pad] * sides,
            dimension_numbers=layout,
        )
        if not self.use_bias:
            return y
        return y + parameter(
            self, "bias", nn.initializers.zeros, (self.features,), (out,), jnp.float32
        )

    def _largest_singular_value(self, kernel: jax.Array) -> jax.Array:
        """Returns the spectral norm of the kernel as an (inputs, outputs) matrix.

        Each call takes one power iteration from the vector of the call before, which is state:
        kernels change slowly, so that the vector follows them, whereas a few iterations from a
        fixed vector would underestimate the norm. The gradient flows only through the matrix.
        Flax's SpectralNorm takes no parameters with logical axis names. Source: Miyato et al. 2018.
        """
        matrix = kernel.reshape(-1, kernel.shape[-1])
        fixed = jax.lax.stop_gradient(matrix)

        def first_vector():
            noise = jax.random.normal(self.make_rng("params"), matrix.shape[-1:])
            return _power_iterate(fixed, jnp.ones(matrix.shape[-1:]) + noise, FIRST_ITERATIONS)[1]

        state = self.variable(SPECTRAL, "u", first_vector)
        left, right = _power_iterate(fixed, state.value, 1)
        if self.is_mutable_collection(SPECTRAL) and not self.is_initializing():
            state.value = right
        return jnp.maximum(left @ matrix @ right, 1e-12)


def _power_iterate(
    matrix: jax.Array, right: jax.Array, iterations: int
) -> tuple[jax.Array, jax.Array]:
    """Returns the (left, right) singular vectors after some power iterations."""
    left = matrix[:, 0]
    for _ in range(iterations):
        left = l2_normalize(matrix @ right)
        right = l2_normalize(left @ matrix)
    return left, right
