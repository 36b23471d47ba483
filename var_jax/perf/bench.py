"""Measures generation and training steps, and compares them with the machine's roofline.

Training from a token cache is also compared with training from images.

Generation is also split into its parts. Weights are freshly initialized: time does not depend on
their values.
"""

import dataclasses
import functools
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from var_jax.config import idle_keys
from var_jax.config.model import ModelConfig
from var_jax.config.strict import require
from var_jax.config.train import TrainConfig
from var_jax.models import flops, init, programs
from var_jax.models.encode import encode_pixels
from var_jax.models.tokenizer import Tokenizer
from var_jax.objectives import frozen_tokenizer, registry
from var_jax.objectives.base import Objective
from var_jax.perf.roofline import Part, compare_to_roofline
from var_jax.sampling import sampler_registry
from var_jax.sampling.image_keys import image_keys
from var_jax.train import mesh_choice
from var_jax.train.program import Program

ARMS = ("images", "tokens", "encoder")
CLOCKS = {"seconds": time.perf_counter, "cpu_seconds": time.process_time}


def sample(
    config: TrainConfig, batch: int = 1, repeats: int = 5, cfg: float = 1.5
) -> dict[str, Any]:
    """Measures the time of generation with the objective's published settings.

    The tokenizer's decoder is included.

    Returns:
      seconds (median of a batch), floor_seconds (the roofline), ratio, images_per_s, flops (of the
      batch), parts (those of each model, and the dtype whose rate they count at),
      matmul_flops_per_s (by dtype, of all `devices` together), bytes (the least that must be
      moved), byte_floor_seconds (at the rate of a large copy, bytes_per_s), seconds_by_part
      ("transformer" and "decoder" by themselves, and "sampling", the rest: guidance, filters,
      random choices and quantizer), ...
    """
    _require_generator(config)
    model = ModelConfig(config.tokenizer, config.transformer)
    assert model.transformer is not None
    params = {
        "tokenizer": init.fresh_params(model.tokenizer, jax.random.key(0)),
        "transformer": init.fresh_params(model.transformer, jax.random.key(0)),
    }

    # The program
    sampler = sampler_registry.find(model)
    prepared = sampler.benchmark_settings(model, cfg)
    labels = jnp.arange(batch, dtype=jnp.int32) % model.transformer.num_classes
    keys = image_keys(0, jnp.arange(batch, dtype=jnp.uint32))
    run = functools.partial(
        sampler.program, model, prepared.compiled, params, labels, keys, prepared.traced
    )

    # Its parts, and those of them that are timed separately
    generation_flops = sampler.generation_flops(model, prepared)
    parts = {
        "transformer": Part(batch * generation_flops, model.transformer.dtype),
        "tokenizer": Part(batch * flops.decode_flops(model.tokenizer), model.tokenizer.dtype),
    }
    feature = jnp.zeros((batch, *model.tokenizer.scales.finest, model.tokenizer.z_channels))
    alone = {
        "transformer": sampler.network_alone(model, prepared, params, labels),
        "decoder": functools.partial(_decode, model, params, feature),
    }
    moved = sampler.generation_bytes(model, prepared, batch) + decoder_bytes(params["tokenizer"])
    report = compare_to_roofline(run, parts, batch, repeats, moved=moved, alone=alone)
    return {"what": "sample", "batch": batch, "dtype": model.transformer.dtype, **report}


def encode_or_decode(
    config: TrainConfig, work: Literal["encode", "decode"], batch: int = 1, repeats: int = 5
) -> dict[str, Any]:
    """Measures the time of the tokenizer: of encoding images, or of decoding tokens.

    Returns:
      as `sample` without "seconds_by_part"; "bytes" and what follows from it only for "decode".
    """
    model = ModelConfig(config.tokenizer)
    params = {"tokenizer": init.fresh_params(model.tokenizer, jax.random.key(0))}
    if work == "encode":
        images = jnp.zeros((batch, *model.tokenizer.image_shape))
        run = functools.partial(programs.encode, model, params, images)
        per_image, moved = flops.encode_flops(model.tokenizer), None
    else:
        tokens = jnp.zeros((batch, model.tokenizer.scales.total), jnp.int32)
        run = functools.partial(programs.decode, model, params, tokens)
        per_image = flops.decode_flops(model.tokenizer)
        moved = decoder_bytes(params["tokenizer"])
    part = Part(batch * per_image, model.tokenizer.dtype)
    report = compare_to_roofline(run, {"tokenizer": part}, batch, repeats, moved=moved)
    return {"what": work, "batch": batch, "dtype": part.dtype, **report}


def train(config: TrainConfig, batch: int | None = None, repeats: int = 5) -> dict[str, Any]:
    """Measures the time of a training step; the batches of a transformer are tokens.

    Returns:
      as `sample`; the roofline of a tokenizer is three times its forward pass, without its frozen
      networks and its discriminator.
    Raises:
      UserError: the mesh does not divide the batch.
    """
    batch = batch or config.batch_size
    idle_keys.refuse(config)
    objective = registry.with_random_frozen(dataclasses.replace(config, batch_size=batch))
    mesh = mesh_choice.choose(objective, name="the batch").mesh
    with jax.set_mesh(mesh):
        step = TrainStep(objective, mesh)
        rows = jax.device_put(objective.example_batch(batch), step.rows)
        work = Part(batch * objective.flops_per_image(), objective.model.dtype)
        return {
            "what": f"train {config.stage}",
            "batch": batch,
            "dtype": work.dtype,
            **compare_to_roofline(lambda: step(rows), {config.stage: work}, batch, repeats),
        }


def tokens(config: TrainConfig, batch: int | None = None, repeats: int = 5) -> dict[str, Any]:
    """Measures a transformer's step from a token cache and from images.

    It shows how much of the tokenizer's time the cache saves.

    Both kinds of step, and the tokenizer's encoding by itself, are timed in turn in one run of one
    compiled training step, with the real readers of both. The whole training split is encoded
    first, so it should be short. Processor seconds are given in addition to those of the clock,
    because only they compare on a machine that others use.

    Args:
      config: a transformer's run, whose `data` must be on this machine.
      batch: images per step; by default the config's.
      repeats: rounds, whose medians count.
    Returns:
      {"seconds": {"images", "tokens", "encoder"}, "cpu_seconds": the same, "saved_share",
      "saved_cpu_share": the time saved per step over the encoder's time, "tokenize_seconds": the
      time of writing the cache, ...}.
    Raises:
      UserError: the config is no transformer's, or as in `tokenize`.
    """
    # These import the libraries that read data, which the other benchmarks do not need.
    from etils import epath

    from var_jax.data import loader, token_cache
    from var_jax.io import model_directory
    from var_jax.train.tokenize import tokenize

    _require_generator(config)
    _require_reader_of_tokens(config)
    config = dataclasses.replace(config, batch_size=batch or config.batch_size)
    objective = registry.with_random_frozen(config)
    frozen = objective.frozen.params
    mesh = mesh_choice.choose(objective).mesh
    with tempfile.TemporaryDirectory() as directory:
        # The cache, and the readers of both kinds
        model = epath.Path(directory) / "tokenizer"
        model_directory.save(
            model, ModelConfig(config.tokenizer), {"tokenizer": jax.tree.map(np.asarray, frozen)}
        )
        start = time.perf_counter()
        tokenize(config, str(model), f"{directory}/cache", roles=("train",))
        written = time.perf_counter() - start
        cache = token_cache.open_cache(f"{directory}/cache")
        image_shape, workers = config.tokenizer.image_shape, config.data.workers
        batches = {
            "images": loader.train_batches(config.data, image_shape, config.batch_size, 0),
            "tokens": token_cache.train_batches(cache, config.batch_size, 0, workers=workers),
        }

        with jax.set_mesh(mesh):
            step = TrainStep(objective, mesh)
            encode = jax.jit(
                functools.partial(encode_pixels, config.tokenizer), out_shardings=step.rows
            )

            def arm(name: str):
                kind = "tokens" if name == "tokens" else "images"
                arrays = jax.device_put(next(batches[kind]), step.rows)
                if kind == "images":
                    arrays["tokens"] = encode(step.frozen.params, arrays.pop("image"))
                jax.block_until_ready(arrays if name == "encoder" else step(arrays))

            rounds = _rounds(arm, repeats)
    medians = {
        clock: {name: statistics.median(r[name][clock] for r in rounds) for name in ARMS}
        for clock in CLOCKS
    }
    shares = {
        f"saved_{clock.removesuffix('seconds')}share": (m["images"] - m["tokens"]) / m["encoder"]
        for clock, m in medians.items()
    }
    return {
        "what": "train from tokens beside images",
        "batch": config.batch_size,
        "depth": objective.model.depth,
        "dtype": objective.model.dtype,
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        **medians,
        **shares,
        "tokenize_seconds": written,
        "tokenized_images": cache.counts["train"],
        "rounds": rounds,
    }


def _require_generator(config: TrainConfig):
    generates = registry.find(config).generates
    require(generates, "the config's stage", config.stage, "transformer")


def _require_reader_of_tokens(config: TrainConfig):
    assert config.transformer is not None
    require(
        registry.find(config).reads_tokens,
        "transformer.objective",
        repr(config.transformer.objective),
        "one that learns from a token cache, to compare training from tokens and from images",
    )


class TrainStep:
    """A run's compiled step, which keeps the run's state from call to call.

    Attributes:
      frozen: the objective's frozen weights, on the devices.
      rows: sharding of a batch.
    """

    def __init__(self, objective: Objective[Any], mesh: jax.sharding.Mesh):
        program = Program(objective, mesh)
        self.rows = program.rows
        self.frozen = jax.device_put(
            objective.frozen, objective.frozen_shardings(objective.frozen, mesh)
        )
        self._state, self._step = program.first_state(), program.step()

    def __call__(self, batch: dict[str, jax.Array]) -> Any:
        """Takes a step, and returns its metrics."""
        self._state, metrics = self._step(self._state, batch, self.frozen)
        return metrics


def _rounds(arm: Callable[[str], None], repeats: int) -> list[dict[str, dict[str, float]]]:
    """Returns [{arm: {clock: seconds}}], with the order of arms rotated from round to round.

    The first round of each compiles, and is left out.
    """
    for name in ARMS:
        arm(name)
    rounds = []
    for number in range(repeats):
        times = {}
        for name in ARMS if number % 2 == 0 else reversed(ARMS):
            before = {clock: read() for clock, read in CLOCKS.items()}
            arm(name)
            times[name] = {clock: read() - before[clock] for clock, read in CLOCKS.items()}
        rounds.append(times)
    return rounds


def decoder_bytes(params: dict) -> int:
    """Returns the bytes of the weights that decoding reads, once."""
    parts = [params[part] for part in frozen_tokenizer.DECODER if part in params]
    return sum(leaf.nbytes for leaf in jax.tree.leaves(parts))


@functools.partial(jax.jit, static_argnums=0)
def _decode(config: ModelConfig, params, feature):
    return Tokenizer(config.tokenizer).apply(
        {"params": params["tokenizer"]}, feature, method="decode_feature"
    )


def lines(report: dict[str, Any]) -> list[str]:
    """Returns the report of `sample` or `train` for a terminal."""
    rates = report["matmul_flops_per_s"]
    parts = ", ".join(
        f"{name} {part['flops'] / 1e9:.4g} GFLOP at {rates[part['rate']] / 1e9:.4g} GFLOP/s "
        f"({part['rate']})"
        for name, part in report["parts"].items()
    )
    out = [
        f"{report['what']}, batch {report['batch']}, {report['dtype']} on "
        f"{report['devices']} x {report['device']}",
        f"  {report['seconds']:.3f} s, {report['images_per_s']:.3g} images/s, "
        f"compiled in {report['compile_seconds']:.1f} s",
        f"  FLOP roofline {report['floor_seconds']:.3f} s: {parts} of "
        f"{report['matrix']}-square matrix products",
    ]
    if "bytes" in report:
        out.append(
            f"  byte roofline {report['byte_floor_seconds']:.3f} s: "
            f"{report['bytes'] / 1e9:.4g} GB of weights, keys and values at "
            f"{report['bytes_per_s'] / 1e9:.4g} GB/s of a large copy"
        )
    if "seconds_by_part" in report:
        by_part = report["seconds_by_part"].items()
        out.append("  " + ", ".join(f"{name} {seconds:.3f} s" for name, seconds in by_part))
    return [*out, f"  {report['ratio']:.2f} times the FLOP roofline"]


def table(reports: list[dict[str, Any]]) -> list[str]:
    """Returns reports of `sample` as a table, a line per batch size."""
    first = reports[0]
    rows = [
        f"{first['what']}, {first['dtype']} on {first['devices']} x {first['device']}",
        "  batch  images/s  seconds  FLOP bound  byte bound  transformer  sampling  decoder",
    ]
    for r in reports:
        part = r["seconds_by_part"]
        rows.append(
            f"  {r['batch']:5}  {r['images_per_s']:8.3g}  {r['seconds']:7.3f}  "
            f"{r['floor_seconds']:10.3f}  {r['byte_floor_seconds']:10.3f}  "
            f"{part['transformer']:11.3f}  {part['sampling']:8.3f}  {part['decoder']:7.3f}"
        )
    return rows


def token_lines(report: dict[str, Any]) -> list[str]:
    """Returns the report of `tokens` for a terminal."""
    out = [f"d{report['depth']}, batch {report['batch']}, {report['dtype']} on {report['device']}"]
    for clock in CLOCKS:
        times = report[clock]
        out.append(
            f"  {clock.replace('_', ' ')}: a step from images {times['images']:.3f}, from tokens "
            f"{times['tokens']:.3f}, the encoder alone {times['encoder']:.3f}"
        )
    out.append(
        f"  of the encoder's time {report['saved_share']:.1%} is saved by the clock, "
        f"{report['saved_cpu_share']:.1%} of its processor time"
    )
    return out
