"""Diffusion (DiT, SiT): generates continuous latents from noise, by a velocity or the noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from var_jax.config.model import ModelConfig
from var_jax.config.scales import Scales
from var_jax.models.diffusion_transformer import DiffusionTransformer
from var_jax.models.latents import encode_latents
from var_jax.objectives.frozen_tokenizer import FrozenTokenizer
from var_jax.objectives.latent import LatentObjective
from var_jax.objectives.step_types import Batch, Metrics
from var_jax.ops import noise_schedule

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, PRNGKeyArray

FEATURES = ("encoder", "quant_conv")  # parts of the tokenizer up to its quantizer
STATISTICS_IMAGES = 1024  # of the run's first batches, whose mean and deviation normalize latents
LEAST_STD = 1e-6  # a channel that varies less is only centered
HELD_OUT_TIMES = 8  # of every held-out image, evenly spaced


class Diffusion(LatentObjective):
    """The training objective of the diffusion transformer.

    It trains on images: a token cache has no latents.
    """

    reads_tokens = False
    teacher_parts = FEATURES

    def batch_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {
            "latents": jax.ShapeDtypeStruct(self.model.latent_shape, jnp.float32),
            "label": jax.ShapeDtypeStruct((), jnp.int32),
        }

    def example_batch(self, size: int) -> dict[str, np.ndarray]:
        latents = np.random.default_rng(0).standard_normal((size, *self.model.latent_shape))
        return {"latents": latents.astype(np.float32), "label": np.zeros(size, np.int32)}

    def image_parts(self) -> str:
        return f"{self.model.sequence.total} patches"

    def step_frozen(self) -> FrozenTokenizer:
        """Returns the encoder; nothing where the run learns pixels."""
        return self.frozen.parts(FEATURES if self.model.latents == "features" else ())

    def encode(self, frozen: FrozenTokenizer, images: jax.Array) -> dict[str, jax.Array]:
        model = ModelConfig(self.config.tokenizer, self.model)
        return {"latents": encode_latents(model, frozen.params, images)}

    def initialize_from_data(
        self,
        state: Any,
        batches: Callable[[], Iterator[Batch]],
        shardings: Any,
        replicated: NamedSharding,
    ) -> Any:
        """Returns the state with the mean and deviation of the first latents, by channel.

        They are put among the parameters and into their average. Weights of `init_from` have them.
        """
        if self.config.init_from:
            return state

        def moments(latents):
            return jnp.mean(latents, axis=(0, 1, 2)), jnp.mean(latents**2, axis=(0, 1, 2))

        jitted = jax.jit(moments, out_shardings=replicated)
        training = batches()
        count = -(-STATISTICS_IMAGES // self.config.batch_size)
        seen = [jax.tree.map(np.asarray, jitted(next(training)["latents"])) for _ in range(count)]
        training.close()
        mean, squares = np.mean(np.asarray(seen, np.float64), axis=0)
        std = np.sqrt(np.maximum(squares - mean**2, 0))
        std = np.where(std < LEAST_STD, 1.0, std)
        statistics = {
            "latent_mean": mean.astype(np.float32),
            "latent_std": std.astype(np.float32),
        }

        def put(state: Any, statistics: Mapping[str, jax.Array]) -> Any:
            ema = state.ema and {**state.ema, **statistics}
            return state.replace(params={**state.params, **statistics}, ema=ema)

        return jax.jit(put, donate_argnums=0, out_shardings=shardings)(state, statistics)

    def loss(
        self,
        params: Any,
        frozen: FrozenTokenizer,
        batch: Batch,
        rng: jax.Array | None,
        *,
        variant: Any = None,
        step: jax.Array | int = 0,
    ) -> tuple[jax.Array, Metrics]:
        """Returns the mean loss of the batch, each image at one random time and with its own noise.

        Class dropout and drop-path act when `rng` is given; without it, times and noise are always
        the same.
        """
        times_rng, noise_rng, drop_rng = jax.random.split(
            jax.random.key(0) if rng is None else rng, 3
        )
        latents = self._normalized(params, batch["latents"])
        shares = jax.random.uniform(times_rng, (len(latents),))
        noise = jax.random.normal(noise_rng, latents.shape)
        losses = self._losses(
            params, latents, batch["label"], shares, noise, None if rng is None else drop_rng
        )
        loss = jnp.mean(losses)
        return loss, {"loss": loss}

    def eval_metrics(self, params: Any, frozen: FrozenTokenizer, batch: Batch) -> Metrics:
        """Returns the losses of a held-out batch at fixed times, summed over the rows that count.

        "loss_time" has one loss per time, from noise to data for velocities and from data to noise
        for DDPM; "loss_mean" is their mean. The noise depends on the time and on the row of the
        batch alone.
        """
        latents = self._normalized(params, batch["latents"])
        weights = batch["mask"].astype(jnp.float32)

        def at_time(number: jax.Array) -> jax.Array:
            shares = jnp.full(len(latents), (number + 0.5) / HELD_OUT_TIMES)
            noise = jax.random.normal(jax.random.key(number), latents.shape)
            return weights @ self._losses(params, latents, batch["label"], shares, noise)

        losses = jax.lax.map(at_time, jnp.arange(HELD_OUT_TIMES))
        return {"loss_mean": jnp.mean(losses), "loss_time": losses}

    def _normalized(self, params: Any, latents: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        network = DiffusionTransformer(self.model)
        return network.apply({"params": params}, latents, method="normalize")

    def _losses(
        self,
        params: Any,
        latents: Float[Array, "b h w c"],
        labels: Int[Array, " b"],
        shares: Float[Array, " b"],
        noise: Float[Array, "b h w c"],
        rng: PRNGKeyArray | None = None,
    ) -> Float[Array, " b"]:
        """Returns the mean squared error of the prediction, per image.

        With `learn_sigma` the variational term of the variance is added.

        Args:
          shares: the times of the images, from 0 to below 1 (`noise_schedule.mixture_at`).
        """
        prediction = self.model.prediction
        alpha, sigma, times = noise_schedule.mixture_at(prediction, shares)
        mixture = alpha[:, None, None, None] * latents + sigma[:, None, None, None] * noise
        output = DiffusionTransformer(self.model).apply(
            {"params": params}, mixture, times, labels, rng
        )
        numbers = None
        if self.model.learn_sigma:
            output, numbers = jnp.split(output, 2, axis=-1)
        error = output - noise_schedule.target(prediction, latents, noise)
        losses = error**2
        if numbers is not None:
            losses += noise_schedule.variational_term(
                jax.lax.stop_gradient(error), (numbers + 1) / 2, times
            )
        return jnp.mean(losses, axis=(1, 2, 3))

    def scales(self, variant: Any = None) -> Scales:
        """Returns the one map of patches."""
        return self.model.sequence
