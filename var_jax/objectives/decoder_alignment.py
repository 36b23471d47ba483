"""A Fréchet loss that tunes a tokenizer's decoder on generated tokens (FD-loss, arXiv 2604.28190).

Encoder, quantizer and codes stay, so that tokens keep their meaning: a transformer of the tokenizer
samples as before, and its tokens are decoded to images whose features are distributed more like
those of real images. The loss is the Fréchet distance of running moments of the samples' features,
to which each step adds its batch (the paper's EMA variant). As there, the gradient is by the newest
batch; it is 1 / (1 - decay) times the paper's, so that a weight means the same at any decay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding

from var_jax.config.model import TokenizerConfig
from var_jax.config.train import TrainConfig
from var_jax.devices import multihost, sharding
from var_jax.errors import UserError
from var_jax.models.tokenizer import Tokenizer
from var_jax.objectives import image_losses
from var_jax.objectives.frozen_networks import NetworkWeights, PooledNetwork
from var_jax.objectives.step_types import Batch, Metrics
from var_jax.ops import frechet

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

BATCH_KEY = "generated"  # of a batch's generated tokens


@flax.struct.dataclass
class AlignmentState:
    """What the loss compares: moments of real images' features, and running ones of samples.

    Attributes:
      center: (f,) mean of the real images' features.
      axes: (f, d) leading principal components of them, as columns.
      variances: (d,) along the axes.
      generated: moments of the samples' features in these axes about the center.
    """

    center: jax.Array
    axes: jax.Array
    variances: jax.Array
    generated: frechet.RawMoments


class Aligned(NamedTuple):
    """The loss of a batch of generated tokens.

    Attributes:
      gradients: those of the tokenizer's parameters.
      loss: the weighted distance.
      metrics: the distance, divided by the variance of the real images' features along the kept
        components.
      moments: the batch's moments, for `updated`.
    """

    gradients: Any
    loss: jax.Array
    metrics: Metrics
    moments: frechet.RawMoments


class DecoderAlignment:
    """The Fréchet loss of a run.

    Args:
      network: the network whose features are compared.
    """

    def __init__(self, config: TrainConfig, network: PooledNetwork):
        self._config, self._network = config.alignment, network
        self._tokenizer, self._batch_size = config.tokenizer, config.batch_size

    def empty_state(self) -> AlignmentState:
        """Returns the state before there are moments."""
        width = self._network.width
        count = min(self._config.components, width)
        moments = frechet.RawMoments(jnp.zeros(count), jnp.zeros((count, count)))
        return AlignmentState(jnp.zeros(width), jnp.zeros((width, count)), jnp.ones(count), moments)

    def gradients(
        self, params: Any, state: AlignmentState, frozen: NetworkWeights, tokens: jax.Array
    ) -> Aligned:
        """Returns the loss of a batch and its gradients.

        Args:
          params: the tokenizer's parameters.
          tokens: int32 (b, L), generated.
        """

        def loss(params):
            features = self._features(frozen.alignment, self._decoded(params, tokens))
            batch = frechet.raw_moments((features - state.center) @ state.axes)
            running = frechet.running(state.generated, batch, self._config.decay)
            moments = frechet.with_whole_gradient(running, batch)
            distance = frechet.distance_to_axes(moments, state.variances)
            relative = distance / jnp.sum(state.variances)
            return self._config.weight * relative, ({"frechet": relative}, batch)

        (value, (metrics, batch)), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        return Aligned(gradients, value, metrics, batch)

    def updated(self, state: AlignmentState, batch: frechet.RawMoments) -> AlignmentState:
        """Returns the state after a step whose batch had these moments."""
        return state.replace(generated=frechet.running(state.generated, batch, self._config.decay))

    def measured(
        self,
        params: Any,
        batches: Callable[[], Iterator[Batch]],
        shardings: AlignmentState,
        replicated: NamedSharding,
    ) -> AlignmentState:
        """Returns the state at the first step, from the run's first batches.

        Both kinds of moments are of `alignment.images` images.

        Args:
          params: the tokenizer's parameters.
          batches: starts the run's training batches from the first, on the devices.
          shardings: the shardings of the state.
          replicated: the sharding of features.
        """
        weights = sharding.place(
            self._network.params, jax.tree.map(lambda _: replicated, self._network.params)
        )

        def features(params, weights, batch):
            real = self._features(weights, image_losses.normalized(batch["image"]))
            return real, self._features(weights, self._decoded(params, batch[BATCH_KEY]))

        jitted = jax.jit(features, out_shardings=replicated)
        count = -(-self._config.images // self._batch_size)
        real, generated = (_Sums(self._network.width) for _ in range(2))
        training = batches()
        for _ in range(count):
            for sums, rows in zip(
                (real, generated), jitted(params, weights, next(training)), strict=True
            ):
                sums.add(np.asarray(rows, np.float64))
        training.close()
        state = _state(real, generated, min(self._config.components, self._network.width))
        if jax.process_count() > 1:  # hosts may round differently: those of one hold for all
            state = multihost_utils.broadcast_one_to_all(state)
        return sharding.place(state, shardings)

    def _decoded(self, params: Any, tokens: Int[Array, "b L"]) -> Float[Array, "b H W c"]:
        images = Tokenizer(self._tokenizer).apply({"params": params}, tokens, method="decode")
        return sharding.constrain(images, "images", None, None, None)

    def _features(self, weights: Any, images: jax.Array) -> Float[Array, "b f"]:
        return self._network.pooled(weights, images.astype(jnp.float32))


class _Sums:
    """Sums of features and of their outer products, in float64."""

    def __init__(self, width: int):
        self.count, self.first, self.second = 0, np.zeros(width), np.zeros((width, width))

    def add(self, rows: np.ndarray):
        self.count += len(rows)
        self.first += rows.sum(0)
        self.second += rows.T @ rows

    def about(self, center: np.ndarray) -> frechet.RawMoments:
        """Returns the moments of features from which a center is subtracted."""
        mean, second = self.first / self.count, self.second / self.count
        mixed = np.outer(center, mean)
        moved = second - mixed - mixed.T + np.outer(center, center)
        return frechet.RawMoments(mean - center, moved)


def _state(real: _Sums, generated: _Sums, components: int) -> AlignmentState:
    center = real.first / real.count
    values, vectors = np.linalg.eigh(real.about(center).second)
    axes = vectors[:, : -components - 1 : -1]
    variances = np.maximum(values[: -components - 1 : -1], 0)
    mean, second = generated.about(center)
    moments = frechet.RawMoments(mean @ axes, axes.T @ second @ axes)
    return jax.tree.map(
        lambda x: np.asarray(x, np.float32), AlignmentState(center, axes, variances, moments)
    )


def require_same_tokens(config: TrainConfig, start: str, tokenizer: TokenizerConfig, params: Any):
    """Raises UserError if the generated tokens are of a tokenizer with another encoder or codes.

    Args:
      start: what the parameters are of, for the message.
      tokenizer: the config of the tokenizer that the run starts from.
      params: its parameters, on the host.
    """
    from var_jax.data import token_cache
    from var_jax.io.tokenizer_fingerprint import encoding_differences

    tokens = config.alignment.tokens
    of_samples = multihost.run_on_all(lambda: token_cache.open_cache(tokens).read_tokenizer())
    if different := encoding_differences((tokenizer, params), of_samples):
        raise UserError(
            f"the tokenizer of alignment.tokens {tokens} makes other tokens than that of {start}: "
            f"{'; '.join(different[:4])}; give samples of a model of this tokenizer"
        )
