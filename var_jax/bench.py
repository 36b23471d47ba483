"""Time of generation and of a training step beside what their FLOPs alone would take on the same machine.

The floor is the analytic FLOPs of each part (transformer, tokenizer) over the rate of a large matrix product in its
dtype, on as many devices at once as the program runs on; on a CPU always in float32, since how fast bfloat16 is there
says little of what the machine can do. Both are measured in turn in one run and their medians compared, so that a
busy or throttled machine slows both. Weights are freshly initialised: time does not depend on their values.
"""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from var_jax import generate
from var_jax.config import ModelConfig, require
from var_jax.scaling import flops
from var_jax.train import state, step
from var_jax.train.config import TrainConfig
from var_jax.train.optimizer import make_optimizer

MATRIX = {"cpu": 4096}  # side of the matrix product that the rate is taken from
LARGE_MATRIX = 8192
RATE_DTYPE = {"cpu": "float32"}  # elsewhere a part's own


class Part(NamedTuple):
    """FLOPs of a batch that one of the two models does, in its compute dtype."""

    flops: float
    dtype: str


def sample(config: TrainConfig, batch: int = 1, repeats: int = 5, cfg: float = 1.5) -> dict[str, Any]:
    """Generation with the published settings, tokenizer's decoder included.

    Returns:
      seconds (median of a batch), floor_seconds, ratio, images_per_s, flops (of the batch), parts (those of each model,
      and the dtype whose rate they count at), matmul_flops_per_s (by dtype, of all `devices` together), ...
    """
    require(config.stage == "transformer", "the config's stage", config.stage, "transformer")
    model = ModelConfig(config.tokenizer, config.transformer)
    params = {stage: _random_params(config, stage) for stage in ("tokenizer", "transformer")}
    static = generate.Static(top_k=min(900, model.transformer.vocab_size - 1), use_top_p=True, guided=cfg > 0)
    dynamic = generate.Dynamic(*map(jnp.float32, (cfg, 0.96, 1.0)))
    labels = jnp.arange(batch, dtype=jnp.int32) % model.transformer.num_classes
    keys = generate.image_keys(0, jnp.arange(batch, dtype=jnp.uint32))
    parts = {"transformer": Part(batch * flops.generation_flops(model.transformer, guided=cfg > 0),
                                 model.transformer.dtype),
             "tokenizer": Part(batch * flops.decode_flops(model.tokenizer), model.tokenizer.dtype)}
    run = functools.partial(generate.generate, model, static, params, labels, keys, dynamic)
    return {"what": "sample", "batch": batch, "dtype": model.transformer.dtype,
            **beside_floor(run, parts, batch, repeats)}


def train(config: TrainConfig, batch: int | None = None, repeats: int = 5) -> dict[str, Any]:
    """A training step of the config's stage; the transformer's takes tokens, so no tokenizer is in it.

    Returns:
      as `sample`; the floor of a tokenizer is three times its forward pass.
    Raises:
      UserError: the mesh does not divide the batch.
    """
    batch = batch or config.batch_size
    optimizer = make_optimizer(config.optimizer, config.steps, batch)
    mesh = state.make_mesh(config.mesh)
    require(batch % (mesh.shape["data"] * config.microbatches) == 0, "the batch", batch,
            f"a multiple of mesh.data {mesh.shape['data']} times microbatches {config.microbatches}")
    with jax.set_mesh(mesh):
        _, shardings = state.state_shardings(config, optimizer, mesh)
        run_state = state.init_state(config, optimizer, shardings)
        train_step = jax.jit(step.make_train_step(config, optimizer), donate_argnums=0)
        if config.stage == "tokenizer":
            frozen, rows = None, {"image": np.zeros((batch, *config.tokenizer.image_shape), np.uint8)}
            work = batch * flops.tokenizer_train_flops(config.tokenizer)
        else:
            frozen = _random_params(config, "tokenizer")
            tokens = np.random.default_rng(0).integers(config.tokenizer.vocab_size,
                                                       size=(batch, config.tokenizer.scales.total))
            rows = {"tokens": tokens.astype(np.int32), "label": np.zeros((batch,), np.int32)}
            work = batch * flops.train_flops_per_image(config.transformer)
        rows = jax.device_put(rows, NamedSharding(mesh, PartitionSpec("data")))

        def run():
            nonlocal run_state
            run_state, metrics = train_step(run_state, rows, frozen)
            return metrics

        dtype = (config.tokenizer if config.stage == "tokenizer" else config.transformer).dtype
        parts = {config.stage: Part(work, dtype)}
        return {"what": f"train {config.stage}", "batch": batch, "dtype": dtype,
                **beside_floor(run, parts, batch, repeats)}


def lines(report: dict[str, Any]) -> list[str]:
    rates = report["matmul_flops_per_s"]
    parts = ", ".join(f"{name} {part['flops'] / 1e9:.4g} GFLOP at {rates[part['rate']] / 1e9:.4g} GFLOP/s "
                      f"({part['rate']})" for name, part in report["parts"].items())
    return [
        f"{report['what']}, batch {report['batch']}, {report['dtype']} on {report['devices']} x {report['device']}",
        f"  {report['seconds']:.3f} s, {report['images_per_s']:.3g} images/s, "
        f"compiled in {report['compile_seconds']:.1f} s",
        f"  floor {report['floor_seconds']:.3f} s: {parts} of {report['matrix']}-square matrix products",
        f"  ratio {report['ratio']:.2f}",
    ]


def beside_floor(run: Callable, parts: dict[str, Part], batch: int, repeats: int) -> dict[str, Any]:
    """What `run`, a batch's computation, takes beside the floor of its parts; as `sample` returns it."""
    backend = jax.default_backend()
    side, rate_of = MATRIX.get(backend, LARGE_MATRIX), {p.dtype: RATE_DTYPE.get(backend, p.dtype)
                                                        for p in parts.values()}
    start = time.perf_counter()
    devices = jax.tree.leaves(jax.block_until_ready(run()))[0].sharding.device_set
    compiled = time.perf_counter() - start
    products = {dtype: _product(dtype, side, devices) for dtype in rate_of.values()}
    times, product_times = [], {dtype: [] for dtype in products}
    for _ in range(repeats):
        for dtype, product in products.items():
            product_times[dtype].append(_seconds(product))
        times.append(_seconds(run))
    seconds = statistics.median(times)
    rates = {dtype: 2 * len(devices) * side**3 / statistics.median(found) for dtype, found in product_times.items()}
    floor = sum(part.flops / rates[rate_of[part.dtype]] for part in parts.values())
    return {"device": jax.devices()[0].device_kind, "devices": len(devices), "seconds": seconds,
            "floor_seconds": floor, "ratio": seconds / floor, "images_per_s": batch / seconds,
            "flops": sum(part.flops for part in parts.values()),
            "parts": {name: {"flops": part.flops, "rate": rate_of[part.dtype]} for name, part in parts.items()},
            "matmul_flops_per_s": rates, "matrix": side, "compile_seconds": compiled, "all_seconds": times}


def _product(dtype: str, side: int, devices: set[jax.Device]) -> Callable:
    """A compiled product of square matrices, one on every device at once."""
    mesh = Mesh(np.array(sorted(devices, key=lambda device: device.id)), ("devices",))
    rows, whole = NamedSharding(mesh, PartitionSpec("devices")), NamedSharding(mesh, PartitionSpec())
    right = jax.random.normal(jax.random.key(0), (side, side), jnp.dtype(dtype))
    arguments = jax.device_put(jnp.tile(right, (len(devices), 1)), rows), jax.device_put(right, whole)
    product = jax.jit(jnp.matmul, out_shardings=rows)
    jax.block_until_ready(product(*arguments))
    return functools.partial(product, *arguments)


def _seconds(run: Callable) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def _random_params(config: TrainConfig, stage: Literal["tokenizer", "transformer"]) -> Any:
    init = state.init_params(dataclasses.replace(config, stage=stage))
    return jax.jit(lambda key: nn.meta.unbox(init(key)))(jax.random.key(0))
