"""The diffusion transformer, which predicts the velocity or the noise in a noisy map of latents.

Sources: DiT (arXiv 2212.09748), SiT (arXiv 2401.08740). The blocks are those of next-scale
prediction, so that the two differ only in their predictions. With width 1152, depth 28, 16 heads,
no QK-norm, `key_bias` and `learn_sigma` its weights have the shapes of DiT-XL/2. The differences
are:

- the order of AdaLN's six parts, and the layout of weights;
- without QK-norm, logits are scaled by 0.25 / sqrt(d) in place of 1 / sqrt(d), which a factor of 4
  on the queries' weights undoes;
- weights start from normal distributions of `init_std`, the projections back to the width divided
  by sqrt(2 depth), where DiT has Xavier's uniform ones; AdaLN and the last linear start at zero in
  both;
- time as SiT takes it, from 0 to 1, is multiplied by 1000, as the sines are made for DiT's;
- the mean and deviation of the data by channel are among the parameters, and are not trained; DiT
  has one constant, 0.18215, outside the model;
- guidance acts on all channels alike; DiT's published sampling leaves the fourth out.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import flax.linen as nn
import jax
import jax.numpy as jnp

from var_jax.config.model import TransformerConfig
from var_jax.config.strict import require_from_data
from var_jax.devices.sharding import constrain, parameter
from var_jax.models.block_stack import block_stack
from var_jax.models.dropout import drop
from var_jax.models.flops import TIME_CHANNELS
from var_jax.models.transformer_block import Linear, Modulation, layer_norm
from var_jax.ops.sinusoids import place_table, time_features

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, PRNGKeyArray


class DiffusionTransformer(nn.Module):
    """The transformer over patches of a map, conditioned on a class and a time.

    Untrained it returns zeros, and each of its blocks is the identity (AdaLN-zero).
    """

    config: TransformerConfig

    def setup(self):
        c = self.config
        require_from_data("transformer.num_classes", c.num_classes)
        require_from_data("transformer.pixel_channels", c.latent_channels)
        stored = jnp.dtype(c.float_param_dtype)
        zero = dataclasses.replace(c, init_adaln=0.0, init_adaln_gamma=0.0)

        def statistic(name: str, initial: nn.initializers.Initializer):
            return parameter(self, name, initial, (c.latent_channels,), ("code",), stored)

        self.latent_mean = statistic("latent_mean", nn.initializers.zeros)
        self.latent_std = statistic("latent_std", nn.initializers.ones)
        self.patch_embed = Linear((c.width,), ("code", "embed"), c)
        self.class_embed = parameter(
            self,
            "class_embed",
            nn.initializers.normal(c.init_std),
            (c.num_classes + 1, c.width),
            ("classes", "embed"),
            stored,
        )
        self.time_in = Linear((c.width,), (None, "mlp"), c)
        self.time_out = Linear((c.width,), ("mlp", "embed"), c)
        self.blocks = block_stack(zero)
        if c.shared_adaln:
            self.shared_ada = Modulation(6, zero, init="block")
        self.head_ada = Modulation(2, zero, init="head")
        numbers = c.patch**2 * c.output_channels
        self.head = Linear((numbers,), ("embed", "code"), c, init_factor=0.0, wide=True)

    def __call__(
        self,
        noisy: Float[Array, "b h w c"],
        times: Float[Array, " b"],
        labels: Int[Array, " b"],
        rng: PRNGKeyArray | None = None,
    ) -> Float[Array, "b h w o"]:
        """Returns the predicted velocity or noise, in float32.

        With `learn_sigma`, the second half of the channels has numbers from about -1 to 1 for the
        variance.

        Args:
          noisy: the mixture of normalized data and noise.
          times: times of the images, from 0 to 1000 (`ops.noise_schedule`).
          labels: class ids; `num_classes` means "no class".
          rng: random key of class dropout and drop-path, which act only in training; None for
            neither.
        """
        c, dtype = self.config, jnp.dtype(self.config.dtype)
        labels, keep = drop(c, labels, rng)
        hidden = nn.silu(self.time_in(time_features(times, TIME_CHANNELS).astype(dtype)))
        cond = self.time_out(hidden) + jnp.take(self.class_embed, labels, axis=0).astype(dtype)
        grid = c.sequence.finest
        x = self.patch_embed(to_patches(noisy, c.patch).astype(dtype))
        x = constrain(x + place_table(grid, c.width).astype(dtype), "batch", "tokens", "act_embed")
        x, _ = self.blocks(x, None, keep, self.shared_ada(cond) if c.shared_adaln else cond)
        head = self.head_ada(cond)
        patches = self.head(layer_norm(x, head[:, 0], head[:, 1]))
        return from_patches(patches, grid, c.patch)

    def normalize(self, latents: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Returns latents normalized to mean 0 and standard deviation 1 per channel."""
        mean, std = self._statistics()
        return (latents - mean) / std

    def denormalize(self, latents: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Returns normalized latents with the tokenizer's own mean and deviation."""
        mean, std = self._statistics()
        return latents * std + mean

    def _statistics(self):
        statistics = self.latent_mean, self.latent_std
        return (jax.lax.stop_gradient(x.astype(jnp.float32)) for x in statistics)


def to_patches(values: Float[Array, "b H W c"], side: int) -> Float[Array, "b n p"]:
    """Returns the squares of a map, row by row, each as one vector."""
    b, height, width, channels = values.shape
    squares = values.reshape(b, height // side, side, width // side, side, channels)
    return squares.swapaxes(2, 3).reshape(b, -1, side**2 * channels)


def from_patches(
    patches: Float[Array, "b n p"], grid: tuple[int, int], side: int
) -> Float[Array, "b H W c"]:
    """Returns the map that is composed of these squares.

    Args:
      grid: squares per column and per row.
    """
    squares = patches.reshape(len(patches), *grid, side, side, -1).swapaxes(2, 3)
    return squares.reshape(len(patches), grid[0] * side, grid[1] * side, -1)
