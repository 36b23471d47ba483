"""Time of generation and of a training step beside what their FLOPs alone would take on the same
machine; generation also beside what moving its weights, keys and values would, and split into its
parts.

The floor is the analytic FLOPs of each part (transformer, tokenizer) over the rate of a large
matrix product in its dtype, on as many devices at once as the program runs on; on a CPU always in
float32, since how fast bfloat16 is there says little of what the machine can do. Both are measured
in turn in one run and their medians compared, so that a busy or throttled machine slows both.
Weights are freshly initialised: time does not depend on their values.
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

from var_jax.config import idle_keys
from var_jax.config.model import ModelConfig, TransformerConfig
from var_jax.config.strict import require
from var_jax.config.train import TrainConfig
from var_jax.models import flops
from var_jax.models.tokenizer import Tokenizer
from var_jax.models.transformer import Cache, Transformer
from var_jax.objectives import frozen_networks
from var_jax.ops import masks
from var_jax.ops.resize import resize
from var_jax.sampling import sampler
from var_jax.train import mesh_choice, state
from var_jax.train.program import Program

MATRIX = {"cpu": 4096}  # side of the matrix product that the rate is taken from
LARGE_MATRIX = 8192
COPY_BYTES = {"cpu": 2**27}  # of the copy that the rate of memory is taken from: beyond every cache
LARGE_COPY_BYTES = 2**30
DECODING = ("decoder", "post_quant_conv", "quantize")
RATE_DTYPE = {"cpu": "float32"}  # elsewhere a part's own


class Part(NamedTuple):
    """FLOPs of a batch that one of the two models does, in its compute dtype."""

    flops: float
    dtype: str


def sample(
    config: TrainConfig, batch: int = 1, repeats: int = 5, cfg: float = 1.5
) -> dict[str, Any]:
    """Generation with the published settings, tokenizer's decoder included.

    Returns:
      seconds (median of a batch), floor_seconds, ratio, images_per_s, flops (of the batch), parts
      (those of each model, and the dtype whose rate they count at), matmul_flops_per_s (by dtype,
      of all `devices` together), bytes (what cannot but be moved), byte_floor_seconds (at the rate
      of a large copy, bytes_per_s), seconds_by_part ("transformer" and "decoder" alone, and
      "sampling", the rest: guidance, filters, draws and quantizer), ...
    """
    require(config.stage == "transformer", "the config's stage", config.stage, "transformer")
    model, guided = ModelConfig(config.tokenizer, config.transformer), cfg > 0
    params = {stage: _random_params(config, stage) for stage in ("tokenizer", "transformer")}
    static = sampler.Static(
        top_k=min(900, model.transformer.vocab_size - 1), use_top_p=True, guided=guided
    )
    dynamic = sampler.Dynamic(*map(jnp.float32, (cfg, 0.96, 1.0)))
    labels = jnp.arange(batch, dtype=jnp.int32) % model.transformer.num_classes
    keys = sampler.image_keys(0, jnp.arange(batch, dtype=jnp.uint32))
    parts = {
        "transformer": Part(
            batch * flops.generation_flops(model.transformer, guided=guided),
            model.transformer.dtype,
        ),
        "tokenizer": Part(batch * flops.decode_flops(model.tokenizer), model.tokenizer.dtype),
    }
    run = functools.partial(sampler.generate, model, static, params, labels, keys, dynamic)
    both = jnp.tile(labels, 2 if guided else 1)
    feature = jnp.zeros((batch, *model.tokenizer.scales.finest, model.tokenizer.z_channels))
    alone = {
        "transformer": functools.partial(_all_logits, model, params, both, feature),
        "decoder": functools.partial(_decode, model, params, feature),
    }
    moved = generation_bytes(model.transformer, batch, guided) + decoder_bytes(params["tokenizer"])
    report = beside_floor(run, parts, batch, repeats, moved, alone)
    return {"what": "sample", "batch": batch, "dtype": model.transformer.dtype, **report}


def generation_bytes(config: TransformerConfig, batch: int, guided: bool) -> int:
    """Bytes that the transformer moves to generate a batch at the least: its weights once a scale
    (AdaLN's before the blocks once), and keys and values, written once and read by every scale that
    sees them. Activations could stay on the chip."""
    c, rows = config, batch * (2 if guided else 1)
    adaln = 6 * c.width**2 * (1 if c.shared_adaln else c.depth)
    ends = c.width * (c.vocab_size + c.z_channels + 2 * c.width)
    a_scale = c.depth * (4 * c.width**2 + 2 * c.width * c.hidden) + ends
    spans = (masks.visible(c.scales, c.mask, k) for k in range(len(c.scales)))
    touched = sum(
        span.stop - span.start for span in spans
    )  # a scale's own tokens are written, the others read
    return (
        jnp.dtype(c.param_dtype).itemsize * (adaln + len(c.scales) * a_scale)
        + jnp.dtype(c.dtype).itemsize * 2 * c.depth * c.width * rows * touched
    )


def decoder_bytes(params: dict) -> int:
    """Bytes of the weights that decoding reads, once."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves([params[part] for part in DECODING]))


@functools.partial(jax.jit, static_argnums=0)
def _all_logits(config: ModelConfig, params, labels, feature):
    """The transformer's passes over all scales, whatever the tokens; the largest logit, so that
    none is left out."""
    transformer = functools.partial(
        Transformer(config.transformer).apply, {"params": params["transformer"]}
    )
    cache, largest = Cache(), []
    for k, size in enumerate(config.tokenizer.scales.sizes):
        tokens = resize(feature, size, "area").reshape(len(feature), -1, feature.shape[-1])
        tokens = jnp.tile(tokens, (len(labels) // len(feature), 1, 1))
        logits, cache = transformer(k, tokens if k else None, labels, cache, method="next_scale")
        largest.append(jnp.max(logits))
    return jnp.stack(largest)


@functools.partial(jax.jit, static_argnums=0)
def _decode(config: ModelConfig, params, feature):
    return Tokenizer(config.tokenizer).apply(
        {"params": params["tokenizer"]}, feature, method="decode_feature"
    )


def train(config: TrainConfig, batch: int | None = None, repeats: int = 5) -> dict[str, Any]:
    """A training step of the config's stage; the transformer's takes tokens, so no tokenizer is in
    it.

    Returns:
      as `sample`; the floor of a tokenizer is three times its forward pass, without its frozen
      networks and its discriminator.
    Raises:
      UserError: the mesh does not divide the batch.
    """
    batch = batch or config.batch_size
    idle_keys.refuse(config)
    config, networks = frozen_networks.load(dataclasses.replace(config, batch_size=batch))
    mesh = mesh_choice.choose(config, name="the batch").mesh
    with jax.set_mesh(mesh):
        program = Program(config, mesh, networks)
        run_state, train_step = program.first_state(), program.step()
        if config.stage == "tokenizer":
            frozen, rows = (
                networks.params,
                {"image": np.zeros((batch, *config.tokenizer.image_shape), np.uint8)},
            )
            work = batch * flops.tokenizer_train_flops(config.tokenizer)
        else:
            frozen = _random_params(config, "tokenizer")
            tokens = np.random.default_rng(0).integers(
                config.tokenizer.vocab_size, size=(batch, config.tokenizer.scales.total)
            )
            rows = {"tokens": tokens.astype(np.int32), "label": np.zeros((batch,), np.int32)}
            work = batch * flops.train_flops_per_image(config.transformer)
        rows, frozen = (
            jax.device_put(rows, program.rows),
            jax.device_put(frozen, program.replicated),
        )

        def run():
            nonlocal run_state
            run_state, metrics = train_step(run_state, rows, frozen)
            return metrics

        dtype = (config.tokenizer if config.stage == "tokenizer" else config.transformer).dtype
        parts = {config.stage: Part(work, dtype)}
        return {
            "what": f"train {config.stage}",
            "batch": batch,
            "dtype": dtype,
            **beside_floor(run, parts, batch, repeats),
        }


def lines(report: dict[str, Any]) -> list[str]:
    rates = report["matmul_flops_per_s"]
    parts = ", ".join(
        f"{name} {part['flops'] / 1e9:.4g} GFLOP at {rates[part['rate']] / 1e9:.4g} GFLOP/s "
        f"({part['rate']})"
        for name, part in report["parts"].items()
    )
    told = [
        f"{report['what']}, batch {report['batch']}, {report['dtype']} on {report['devices']} x {report['device']}",
        f"  {report['seconds']:.3f} s, {report['images_per_s']:.3g} images/s, "
        f"compiled in {report['compile_seconds']:.1f} s",
        f"  floor {report['floor_seconds']:.3f} s: {parts} of {report['matrix']}-square matrix products",
    ]
    if "bytes" in report:
        told.append(
            f"  floor {report['byte_floor_seconds']:.3f} s: {report['bytes'] / 1e9:.4g} GB of weights, keys "
            f"and values at {report['bytes_per_s'] / 1e9:.4g} GB/s of a large copy"
        )
        told.append(
            "  "
            + ", ".join(
                f"{name} {seconds:.3f} s" for name, seconds in report["seconds_by_part"].items()
            )
        )
    return [*told, f"  ratio {report['ratio']:.2f}"]


def table(reports: list[dict[str, Any]]) -> list[str]:
    """Generation by batch size, a line each."""
    first = reports[0]
    rows = [
        f"{first['what']}, {first['dtype']} on {first['devices']} x {first['device']}",
        "  batch  images/s  seconds  FLOP floor  byte floor  transformer  sampling  decoder",
    ]
    for r in reports:
        part = r["seconds_by_part"]
        rows.append(
            f"  {r['batch']:5}  {r['images_per_s']:8.3g}  {r['seconds']:7.3f}  {r['floor_seconds']:10.3f}  "
            f"{r['byte_floor_seconds']:10.3f}  {part['transformer']:11.3f}  {part['sampling']:8.3f}  "
            f"{part['decoder']:7.3f}"
        )
    return rows


def beside_floor(
    run: Callable,
    parts: dict[str, Part],
    batch: int,
    repeats: int,
    moved: int | None = None,
    alone: dict[str, Callable] | None = None,
) -> dict[str, Any]:
    """What `run`, a batch's computation, takes beside the floor of its parts; as `sample` returns
    it.

    Args:
      moved: bytes that it moves at the least, all devices together.
      alone: of generation, the parts of `run` that are timed alone.
    """
    backend, alone = jax.default_backend(), alone or {}
    side, rate_of = (
        MATRIX.get(backend, LARGE_MATRIX),
        {p.dtype: RATE_DTYPE.get(backend, p.dtype) for p in parts.values()},
    )
    start = time.perf_counter()
    devices = jax.tree.leaves(jax.block_until_ready(run()))[0].sharding.device_set
    compiled = time.perf_counter() - start
    products = {dtype: _product(dtype, side, devices) for dtype in rate_of.values()}
    copy = None if moved is None else _copy(COPY_BYTES.get(backend, LARGE_COPY_BYTES), devices)
    jax.block_until_ready([part() for part in alone.values()])
    times, copy_times = [], []
    product_times, alone_times = {dtype: [] for dtype in products}, {name: [] for name in alone}
    for _ in range(repeats):
        for dtype, product in products.items():
            product_times[dtype].append(_seconds(product))
        times.append(_seconds(run))
        for name, part in alone.items():
            alone_times[name].append(_seconds(part))
        if copy is not None:
            copy_times.append(_seconds(copy))
    seconds = statistics.median(times)
    rates = {
        dtype: 2 * len(devices) * side**3 / statistics.median(found)
        for dtype, found in product_times.items()
    }
    floor = sum(part.flops / rates[rate_of[part.dtype]] for part in parts.values())
    report = {
        "device": jax.devices()[0].device_kind,
        "devices": len(devices),
        "seconds": seconds,
        "floor_seconds": floor,
        "ratio": seconds / floor,
        "images_per_s": batch / seconds,
        "flops": sum(part.flops for part in parts.values()),
        "parts": {
            name: {"flops": part.flops, "rate": rate_of[part.dtype]} for name, part in parts.items()
        },
        "matmul_flops_per_s": rates,
        "matrix": side,
        "compile_seconds": compiled,
        "all_seconds": times,
    }
    if moved is not None:
        copied = 2 * len(devices) * COPY_BYTES.get(backend, LARGE_COPY_BYTES)  # read and written
        rate = copied / statistics.median(copy_times)
        report |= {"bytes": moved, "bytes_per_s": rate, "byte_floor_seconds": moved / rate}
    if alone:
        by_part = {name: statistics.median(found) for name, found in alone_times.items()}
        report["seconds_by_part"] = {**by_part, "sampling": seconds - sum(by_part.values())}
    return report


def _copy(size: int, devices: set[jax.Device]) -> Callable:
    """A compiled pass over an array of `size` bytes on every device, which reads and writes all of
    it."""
    mesh = Mesh(np.array(sorted(devices, key=lambda device: device.id)), ("devices",))
    rows = NamedSharding(mesh, PartitionSpec("devices"))
    array = jax.device_put(jnp.ones((len(devices), size // 4)), rows)
    add = jax.jit(lambda x: x + 1, out_shardings=rows)
    jax.block_until_ready(add(array))
    return functools.partial(add, array)


def _product(dtype: str, side: int, devices: set[jax.Device]) -> Callable:
    """A compiled product of square matrices, one on every device at once."""
    mesh = Mesh(np.array(sorted(devices, key=lambda device: device.id)), ("devices",))
    rows, whole = (
        NamedSharding(mesh, PartitionSpec("devices")),
        NamedSharding(mesh, PartitionSpec()),
    )
    right = jax.random.normal(jax.random.key(0), (side, side), jnp.dtype(dtype))
    arguments = (
        jax.device_put(jnp.tile(right, (len(devices), 1)), rows),
        jax.device_put(right, whole),
    )
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
