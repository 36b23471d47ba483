"""Codes that do not start as the model draws them, once, at the first step of a run from fresh
parameters: mostly where the encoder's features are."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from var_jax.config.train import TrainConfig
from var_jax.devices import sharding
from var_jax.models.tokenizer import Tokenizer
from var_jax.objectives import losses
from var_jax.ops import codebook, vq
from var_jax.train.batches import Inputs
from var_jax.train.program import Program
from var_jax.train.state import TrainState

MOST_BATCHES = 64
CODES = 2**32 - 2  # the key of the draw is the run's with this number folded in


def with_codes_of_data(
    config: TrainConfig, program: Program, data: Inputs, run: TrainState
) -> TrainState:
    """The state with a codebook made of the vectors that the encoder gives for the run's first
    batches, or with codes that are drawn evenly; a function of the seed and the data alone.

    What codes represent are residuals, which depend on the codes. So there are two rounds: codes
    for the residuals that codes without any error would leave (`vq.ideal_vectors`), then codes for
    those that these codes leave.
    """
    how, tokenizer = config.codebook.init, config.tokenizer
    if config.stage != "tokenizer" or how == "normal":
        return run
    codes, key = None, jax.random.fold_in(jax.random.key(config.seed), CODES)
    if how == "uniform":
        shape, most = (tokenizer.vocab_size, tokenizer.z_channels), tokenizer.init_codes
        codes = np.asarray(jax.random.uniform(key, shape, minval=-most, maxval=most))
    for round_key in jax.random.split(key) if codes is None else ():
        vectors = _vectors(config, program, data, run.params, codes)
        codes = np.asarray(
            codebook.first_codes(vectors, round_key, tokenizer.vocab_size, tokenizer.scales, how)
        )
        if jax.process_count() > 1:  # hosts may round differently: those of one hold for all
            codes = np.asarray(multihost_utils.broadcast_one_to_all(codes))

    def put(run: TrainState, codes: jax.Array) -> TrainState:
        every = jnp.ones(codes.shape[0], bool)
        params, ema = (
            tree and codebook.set_rows(tree, every, codes) for tree in (run.params, run.ema)
        )
        return run.replace(params=params, ema=ema)

    return jax.jit(put, donate_argnums=0, out_shardings=program.shardings)(run, codes)


def _vectors(
    config: TrainConfig, program: Program, data: Inputs, params: Any, codes: np.ndarray | None
) -> jax.Array:
    """(n, L, C): what is searched by these codes, or by codes without any error, in as many images
    as there are codes, or in 64 batches where these are fewer; whole on every host."""
    number = min(-(-config.tokenizer.vocab_size // config.batch_size), MOST_BATCHES)
    model = Tokenizer(config.tokenizer)

    def vectors(params, codes, images):
        signal = sharding.constrain(losses.to_signal(images), "images", None, None, None)
        feature = model.apply({"params": params}, signal, method="features")
        q = model.apply({"params": params}, method="quantizer")
        if codes is None:
            return vq.ideal_vectors(q, feature)
        return vq.quantize(q.replace(codebook=codes), feature).searched

    jitted = jax.jit(vectors, out_shardings=program.replicated)
    batches = data.train(0)
    found = [
        np.asarray(jitted(params, codes, data.on_devices(next(batches))["image"]))
        for _ in range(number)
    ]
    batches.close()
    return jnp.concatenate(found)
