"""Initialization of the codebook from the encoder's features, at the start of a fresh run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding

from var_jax.config.train import TrainConfig
from var_jax.models.tokenizer import Tokenizer
from var_jax.objectives import image_losses
from var_jax.objectives.step_types import Batch
from var_jax.ops import codebook_init, codebook_revival, vq

if TYPE_CHECKING:
    from jaxtyping import Array, Float

MOST_BATCHES = 64
CODES = 2**32 - 2  # the key of the codes is the run's with this number folded in


def initialize_codes(
    config: TrainConfig,
    state: Any,
    batches: Callable[[], Iterator[Batch]],
    shardings: Any,
    replicated: NamedSharding,
) -> Any:
    """Returns the state with a codebook initialized by the method of `config.codebook.init`.

    "normal" leaves it as it is, and "uniform" draws codes uniformly. Any other value makes codes
    from the encoder's features of the run's first batches. Codes represent residuals, which depend
    on the codes, so that this takes two rounds: codes for the residuals that codes without any
    error would leave (`vq.exact_residuals`), then codes for the residuals that these codes leave.
    The result depends on the seed and the data alone.

    Args:
      batches: starts the run's training batches from the first, on the devices.
      shardings: the shardings of the state.
      replicated: the sharding of the residuals.
    """
    how, tokenizer = config.codebook.init, config.tokenizer
    if how == "normal":
        return state
    codes, key = None, jax.random.fold_in(jax.random.key(config.seed), CODES)
    if how == "uniform":
        shape, most = (tokenizer.vocab_size, tokenizer.z_channels), tokenizer.init_codes
        codes = np.asarray(jax.random.uniform(key, shape, minval=-most, maxval=most))
    for round_key in jax.random.split(key) if codes is None else ():
        vectors = _vectors(config, state.params, codes, batches, replicated)
        codes = np.asarray(
            codebook_init.initial_codes(
                vectors, round_key, tokenizer.vocab_size, tokenizer.scales, how
            )
        )
        if jax.process_count() > 1:  # hosts may round differently: those of one hold for all
            codes = np.asarray(multihost_utils.broadcast_one_to_all(codes))

    def put(state: Any, codes: jax.Array) -> Any:
        every = jnp.ones(codes.shape[0], bool)
        params = codebook_revival.set_rows(state.params, every, codes)
        ema = state.ema and codebook_revival.set_rows(state.ema, every, codes)
        return state.replace(params=params, ema=ema)

    return jax.jit(put, donate_argnums=0, out_shardings=shardings)(state, codes)


def _vectors(
    config: TrainConfig,
    params: Any,
    codes: np.ndarray | None,
    batches: Callable[[], Iterator[Batch]],
    replicated: NamedSharding,
) -> Float[Array, "n L c"]:
    """Returns the residuals that quantization leaves with these codes, or with exact ones (None).

    They are complete on every host, and come from as many images as there are codes, from at most
    64 batches.
    """
    number = min(-(-config.tokenizer.vocab_size // config.batch_size), MOST_BATCHES)
    model = Tokenizer(config.tokenizer)

    def vectors(params, codes, images):
        images = image_losses.normalized(images)
        feature = model.apply({"params": params}, images, method="features")
        quantizer = model.apply({"params": params}, method="quantizer")
        if codes is None:
            return vq.exact_residuals(quantizer, feature)
        return vq.quantize(quantizer.replace(codebook=codes), feature).residuals

    jitted = jax.jit(vectors, out_shardings=replicated)
    training = batches()
    rows = [np.asarray(jitted(params, codes, next(training)["image"])) for _ in range(number)]
    training.close()
    return jnp.concatenate(rows)
