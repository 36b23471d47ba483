"""The tokenizer: a CNN encoder and decoder around the multi-scale quantizer (Flax Linen, NHWC).

With the codes "none" and "kl" it is an autoencoder without a quantizer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from var_jax.config.model import TokenizerConfig
from var_jax.devices.sharding import parameter
from var_jax.models.cnn import Conv, Decoder, Encoder, conv_init
from var_jax.ops import gaussian, self_correction, vq

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray


class Forward(NamedTuple):
    """The outputs of the training forward pass.

    Attributes:
      reconstruction: the reconstructed images, not clamped.
      tokens: the tokens of all scales, coarse to fine.
      vq_loss: the quantizer's loss over the scales that counted.
      residuals: the vectors whose nearest codes the tokens are (`vq.Quantized`).
      counted: True for tokens of scales that quantizer dropout left in; all True without it.
    """

    reconstruction: Float[Array, "b H W i"]
    tokens: Int[Array, "b L"]
    vq_loss: Float[Array, ""]
    residuals: Float[Array, "b L c"]
    counted: Bool[Array, "b L"]


class ContinuousForward(NamedTuple):
    """The outputs of the training forward pass without a quantizer.

    Attributes:
      reconstruction: the reconstructed images, not clamped.
      kl: the divergence of each image's features from normal ones, over its number of pixels and
        channels; None for a plain autoencoder.
    """

    reconstruction: Float[Array, "b H W i"]
    kl: Float[Array, " b"] | None


class Tokenizer(nn.Module):
    """Images in [-1, 1] to tokens of all scales, or to continuous features, and back."""

    config: TokenizerConfig

    def setup(self):
        c = self.config
        code = ("code", None)
        self.encoder = Encoder(c)
        self.decoder = Decoder(c)
        if c.quantizes:
            self.quantize = MultiScaleQuantizer(c)
        self.quant_conv = Conv(c.feature_channels, c, names=code)
        self.post_quant_conv = Conv(c.z_channels, c, names=code)

    def __call__(self, images: Float[Array, "b H W i"]):
        """The training forward.

        Returns:
          reconstruction (b, H, W, i), not clamped; tokens (b, L); the VQ loss. Without a quantizer
          a `ContinuousForward`.
        """
        if not self.config.quantizes:
            return self.continuous_forward(images)
        return self.forward(images)[:3]

    def forward(self, images: Float[Array, "b H W i"], rng: PRNGKeyArray | None = None) -> Forward:
        """Returns the outputs of `__call__`, and further ones that training needs.

        Quantizer dropout acts when `rng` is given, and dropout in the residual blocks when `apply`
        has a key for `DROPOUT`.
        """
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

    def continuous_forward(
        self, images: Float[Array, "b H W i"], rng: PRNGKeyArray | None = None
    ) -> ContinuousForward:
        """Returns the outputs of `__call__` without a quantizer.

        A Gaussian's features are sampled when `rng` is given, and are otherwise its mean.
        """
        features, kl = self.moments(images), None
        if self.config.codes == "kl":
            kl = gaussian.divergence(features) / images[0].size
            features = gaussian.sample(features, rng)
        return ContinuousForward(self.reconstruct(features), kl)

    def moments(self, images: Float[Array, "b H W i"]) -> Float[Array, "b h w m"]:
        """Returns the encoder's output in float32: features, or a Gaussian's moments of them."""
        return self.quant_conv(self.encoder(images)).astype(jnp.float32)

    def features(self, images: Float[Array, "b H W i"]) -> Float[Array, "b h w c"]:
        """Returns the feature maps that the quantizer quantizes, or continuous ones, in float32.

        Those of a Gaussian are its mean.
        """
        features = self.moments(images)
        return gaussian.sample(features, None) if self.config.codes == "kl" else features

    def encode(self, images: Float[Array, "b H W i"]) -> Int[Array, "b L"]:
        """Returns the tokens of all scales, coarse to fine."""
        return vq.quantize(self.quantize(), self.features(images)).tokens

    def by_scale(self, images: Float[Array, "b H W i"]) -> list[Float[Array, "b H W i"]]:
        """Returns images in [-1, 1] decoded after the first scale, the first two, ... and all.

        Without a quantizer there is one.
        """
        feature = self.features(images)
        maps = vq.quantize(self.quantize(), feature).f_hats if self.config.quantizes else [feature]
        return [self.decode_feature(map_) for map_ in maps]

    def decode_latents(self, latents: Float[Array, "b h w c"]) -> Float[Array, "b H W i"]:
        """Returns the images of features that a model generated, in [-1, 1].

        They are quantized first where there is a quantizer: the decoder was trained on codes, and
        so the quantizer counts as a part of it (Latent Diffusion, arXiv 2112.10752, section 3.1).
        """
        if self.config.quantizes:
            latents = vq.quantize(self.quantize(), latents).f_hats[-1]
        return self.decode_feature(latents)

    def reconstruct(self, feature: Float[Array, "b h w c"]) -> Float[Array, "b H W i"]:
        """Returns the images of quantized feature maps, not clamped."""
        return self.decoder(self.post_quant_conv(feature))

    def decode_feature(self, feature: Float[Array, "b h w c"]) -> Float[Array, "b H W i"]:
        """Returns the images of quantized feature maps, in [-1, 1]."""
        return jnp.clip(self.reconstruct(feature), -1, 1)

    def decode(self, tokens: Int[Array, "b L"]) -> Float[Array, "b H W i"]:
        """Returns the images of tokens of all scales, in [-1, 1]."""
        return self.decode_feature(vq.decode(self.quantize(), tokens)[-1])

    def teacher_input(self, tokens: Int[Array, "b L"]) -> Float[Array, "b L-1 c"]:
        """Returns the transformer's input for scales 2..K, before its word embedding."""
        return vq.teacher_input(self.quantize(), tokens)

    def corrected_targets(
        self, tokens: Int[Array, "b L"], rng: PRNGKeyArray, share: float
    ) -> self_correction.CorrectedTargets:
        """Returns the transformer's input after random flips, and the tokens that correct them."""
        return self_correction.corrected_targets(self.quantize(), tokens, rng, share)

    def quantizer(self) -> vq.Quantizer:
        """Returns the quantizer's weights, for functions in `ops.vq`."""
        return self.quantize()


class MultiScaleQuantizer(nn.Module):
    """The codebook (none for "bsq") and the residual convolutions of the quantizer.

    It returns them in float32, whatever dtype they are stored in.
    """

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
