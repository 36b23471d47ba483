"""Time of generation and of a training step beside what their FLOPs alone would take on the same machine.

The floor is the analytic FLOPs over the rate of a large matrix product in the same dtype. Both are measured in
turn in one run and their medians compared, so that a busy or throttled machine slows both. Weights are freshly
initialised: time does not depend on their values.
"""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from var_jax import generate
from var_jax.config import ModelConfig, require
from var_jax.scaling import flops
from var_jax.train import state, step
from var_jax.train.config import TrainConfig
from var_jax.train.optimizer import make_optimizer

MATRIX = {"cpu": 4096}  # side of the matrix product that the rate is taken from
LARGE_MATRIX = 8192


def sample(config: TrainConfig, batch: int = 1, repeats: int = 5, cfg: float = 1.5) -> dict[str, Any]:
    """Generation with the published settings, tokenizer's decoder included.

    Returns:
      seconds (median of a batch), floor_seconds, ratio, images_per_s, flops (of the batch), matmul_flops_per_s.
    """
    require(config.stage == "transformer", "the config's stage", config.stage, "transformer")
    model = ModelConfig(config.tokenizer, config.transformer)
    params = {stage: _random_params(config, stage) for stage in ("tokenizer", "transformer")}
    static = generate.Static(top_k=min(900, model.transformer.vocab_size - 1), use_top_p=True, guided=cfg > 0)
    dynamic = generate.Dynamic(*map(jnp.float32, (cfg, 0.96, 1.0)))
    labels = jnp.arange(batch, dtype=jnp.int32) % model.transformer.num_classes
    keys = generate.image_keys(0, jnp.arange(batch, dtype=jnp.uint32))
    work = batch * (flops.generation_flops(model.transformer, guided=cfg > 0) + flops.decode_flops(model.tokenizer))
    run = functools.partial(generate.generate, model, static, params, labels, keys, dynamic)
    return {"what": "sample", "batch": batch, **_beside_floor(run, work, batch, repeats, model.transformer.dtype)}


def train(config: TrainConfig, batch: int | None = None, repeats: int = 5) -> dict[str, Any]:
    """A training step of the config's stage; the transformer's takes tokens, so no tokenizer is in it.

    Returns:
      as `sample`; the floor of a tokenizer is three times its forward pass.
    """
    batch = batch or config.batch_size
    optimizer = make_optimizer(config.optimizer, config.steps, batch)
    mesh = state.make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        _, shardings = state.state_shardings(config, optimizer, mesh)
        run_state = state.init_state(config, optimizer, shardings)
        train_step = jax.jit(step.make_train_step(config, optimizer), donate_argnums=0)
        if config.stage == "tokenizer":
            frozen, rows = None, {"image": jnp.zeros((batch, *config.tokenizer.image_shape), jnp.uint8)}
            work = batch * (1 + flops.BACKWARD) * (flops.encode_flops(config.tokenizer)
                                                   + flops.decode_flops(config.tokenizer))
        else:
            frozen = _random_params(config, "tokenizer")
            tokens = np.random.default_rng(0).integers(config.tokenizer.vocab_size,
                                                       size=(batch, config.tokenizer.scales.total))
            rows = {"tokens": jnp.asarray(tokens, jnp.int32), "label": jnp.zeros((batch,), jnp.int32)}
            work = batch * flops.train_flops_per_image(config.transformer)

        def run():
            nonlocal run_state
            run_state, metrics = train_step(run_state, rows, frozen)
            return metrics

        dtype = (config.tokenizer if config.stage == "tokenizer" else config.transformer).dtype
        return {"what": f"train {config.stage}", "batch": batch, **_beside_floor(run, work, batch, repeats, dtype)}


def lines(report: dict[str, Any]) -> list[str]:
    return [
        f"{report['what']}, batch {report['batch']}, {report['dtype']} on {report['device']}",
        f"  {report['seconds']:.3f} s, {report['images_per_s']:.3g} images/s, "
        f"compiled in {report['compile_seconds']:.1f} s",
        f"  floor {report['floor_seconds']:.3f} s: {report['flops'] / 1e9:.4g} GFLOP at "
        f"{report['matmul_flops_per_s'] / 1e9:.4g} GFLOP/s of a {report['matrix']}-square matrix product",
        f"  ratio {report['ratio']:.2f}",
    ]


def _beside_floor(run: Callable, work: float, batch: int, repeats: int, dtype: str) -> dict[str, Any]:
    side = MATRIX.get(jax.default_backend(), LARGE_MATRIX)
    left = jax.random.normal(jax.random.key(0), (side, side), jnp.dtype(dtype))
    product = jax.jit(lambda x: x @ x)
    start = time.perf_counter()
    jax.block_until_ready(run())
    compiled = time.perf_counter() - start
    jax.block_until_ready(product(left))
    times, products = [], []
    for _ in range(repeats):
        products.append(_seconds(lambda: product(left)))
        times.append(_seconds(run))
    seconds, rate = statistics.median(times), 2 * side**3 / statistics.median(products)
    return {"dtype": dtype, "device": jax.devices()[0].device_kind, "devices": jax.device_count(), "seconds": seconds,
            "floor_seconds": work / rate, "ratio": seconds * rate / work, "images_per_s": batch / seconds,
            "flops": work, "matmul_flops_per_s": rate, "matrix": side,
            "compile_seconds": compiled, "all_seconds": times}


def _seconds(run: Callable) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def _random_params(config: TrainConfig, stage: Literal["tokenizer", "transformer"]) -> Any:
    init = state.init_params(dataclasses.replace(config, stage=stage))
    return jax.jit(lambda key: nn.meta.unbox(init(key)))(jax.random.key(0))
