"""The quantizer's parameters; what they do is in `ops.vq`."""

import flax.linen as nn
import jax.numpy as jnp

from var_jax.config import TokenizerConfig
from var_jax.ops import vq
from var_jax.ops.partition import parameter


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
    """Holds the codebook (none for "bsq") and the residual convolutions; gives them in float32 whatever the dtype."""

    config: TokenizerConfig

    @nn.compact
    def __call__(self) -> vq.Quantizer:
        c = self.config
        stored, n, z = jnp.dtype(c.param_dtype), c.phi_count, c.z_channels
        codebook = None
        if c.codes != "bsq":
            code_init = nn.initializers.normal(c.init_codes)
            codebook = parameter(self, "codebook", code_init, (c.vocab_size, z), ("vocab", "code"), stored)
        kernel_init = conv_init(c, batch_axis=(0,))
        kernel = parameter(self, "phi_kernel", kernel_init, (n, 3, 3, z, z),
                           ("phi", "kernel", "kernel", "code", None), stored)
        bias = parameter(self, "phi_bias", nn.initializers.zeros, (n, z), ("phi", "code"), stored)
        arrays = (None if x is None else x.astype(jnp.float32) for x in (codebook, kernel, bias))
        return vq.Quantizer(*arrays, scales=c.scales, phi_ratio=c.phi_ratio, codes=c.codes)
