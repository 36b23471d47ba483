"""Training from a token cache beside training from images: how much of the tokenizer's time the
cache saves.

Both kinds of step, and the tokenizer's encoding alone, are timed in turn in one run of one compiled
training step, with the real readers of both. Weights are freshly initialised: time does not depend
on their values. Processor seconds are given beside those of the clock, because on a machine that
others use only they compare.
"""

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec

from var_jax.config.model import ModelConfig
from var_jax.config.strict import require
from var_jax.config.train import TrainConfig
from var_jax.data import loader, token_cache
from var_jax.io import model_directory
from var_jax.objectives import step
from var_jax.train import mesh_choice, state
from var_jax.train.program import Program
from var_jax.train.tokenize import tokenize

ARMS = ("images", "tokens", "encoder")
CLOCKS = {"seconds": time.perf_counter, "cpu_seconds": time.process_time}


def measure(config: TrainConfig, batch: int | None = None, repeats: int = 5) -> dict[str, Any]:
    """A transformer's step in both ways; the whole training split is encoded first, so it should be
    short.

    Args:
      config: a transformer's run; its `data` must be at hand.
      batch: images a step; by default the config's.
      repeats: rounds, of which the medians count.
    Returns:
      {"seconds": {"images", "tokens", "encoder"}, "cpu_seconds": the same, "saved_share",
      "saved_cpu_share": what a step takes less over what the encoder takes, "tokenize_seconds": of
      writing the cache, ...}.
    Raises:
      UserError: the config is no transformer's, or as `tokenize`.
    """
    require(config.stage == "transformer", "the config's stage", config.stage, "transformer")
    config = dataclasses.replace(config, batch_size=batch or config.batch_size)
    mesh = mesh_choice.choose(config).mesh
    rows, replicated = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    with tempfile.TemporaryDirectory() as directory:
        init = state.init_params(dataclasses.replace(config, stage="tokenizer"))
        frozen = jax.jit(lambda key: nn.meta.unbox(init(key)))(jax.random.key(0))
        model = epath.Path(directory) / "tokenizer"
        model_directory.save(
            model, ModelConfig(config.tokenizer), {"tokenizer": jax.tree.map(np.asarray, frozen)}
        )
        start = time.perf_counter()
        tokenize(config, str(model), f"{directory}/cache", roles=("train",))
        written = time.perf_counter() - start
        cache = token_cache.open_cache(f"{directory}/cache")
        batches = {
            "images": loader.train_batches(
                config.data, config.tokenizer.image_shape, config.batch_size, 0
            ),
            "tokens": token_cache.train_batches(
                cache, config.batch_size, 0, workers=config.data.workers
            ),
        }
        with jax.set_mesh(mesh):
            frozen = jax.device_put(frozen, replicated)
            encode = jax.jit(step.make_encode(config), out_shardings=rows)
            train = _stepper(config, mesh, frozen)

            def arm(name: str):
                arrays = jax.device_put(
                    next(batches["tokens" if name == "tokens" else "images"]), rows
                )
                if name != "tokens":
                    arrays["tokens"] = encode(frozen, arrays.pop("image"))
                jax.block_until_ready(arrays if name == "encoder" else train(arrays))

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
        "depth": config.transformer.depth,
        "dtype": config.transformer.dtype,
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        **medians,
        **shares,
        "tokenize_seconds": written,
        "tokenized_images": cache.counts["train"],
        "rounds": rounds,
    }


def lines(report: dict[str, Any]) -> list[str]:
    return [
        f"d{report['depth']}, batch {report['batch']}, {report['dtype']} on {report['device']}",
        *(
            f"  {clock.replace('_', ' ')}: a step from images {m['images']:.3f}, from tokens {m['tokens']:.3f}, "
            f"the encoder alone {m['encoder']:.3f}"
            for clock in CLOCKS
            for m in [report[clock]]
        ),
        f"  of the encoder's time {report['saved_share']:.1%} is saved by the clock, "
        f"{report['saved_cpu_share']:.1%} of its processor time",
    ]


def _stepper(config: TrainConfig, mesh: jax.sharding.Mesh, frozen: Any) -> Callable:
    program = Program(config, mesh)
    run, train_step = program.first_state(), program.step()

    def train(arrays: dict[str, jax.Array]) -> Any:
        nonlocal run
        run, metrics = train_step(run, arrays, frozen)
        return run, metrics

    return train


def _rounds(arm: Callable[[str], None], repeats: int) -> list[dict[str, dict[str, float]]]:
    """[{arm: {clock: seconds}}], the order turned from round to round; the first of each compiles
    and is left out."""
    for name in ARMS:
        arm(name)
    rounds = []
    for number in range(repeats):
        found = {}
        for name in ARMS if number % 2 == 0 else reversed(ARMS):
            before = {clock: read() for clock, read in CLOCKS.items()}
            arm(name)
            found[name] = {clock: read() - before[clock] for clock, read in CLOCKS.items()}
        rounds.append(found)
    return rounds
