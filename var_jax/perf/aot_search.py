"""Searches for the settings of a training step whose program has the shortest bound on a TPU slice.

Candidates differ in policy and mesh, rematerialization, microbatches and options of the compiler.
Each has a time that no program of it can be faster than, from its FLOPs and the bytes of weights
and gradients that must cross the network. Candidates are compiled from the least of these times on,
until the next one exceeds the best bound of a compiled program.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from typing import Any, NamedTuple

import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh

from var_jax.config.strict import plain
from var_jax.config.train import TrainConfig
from var_jax.config.transformer_config import TransformerConfig
from var_jax.devices import gathering, sharding
from var_jax.devices.mesh import make_mesh
from var_jax.errors import UserError
from var_jax.io import atomic
from var_jax.io.json import read_object
from var_jax.objectives import registry
from var_jax.objectives.base import Objective
from var_jax.perf import aot, aot_report
from var_jax.perf.aot_lines import gib, override_flags
from var_jax.perf.tpu_slices import Slice
from var_jax.train import memory_estimate, mesh_choice
from var_jax.train.memory_rule import Settings, with_settings

MODEL_AXES = (1, 2, 4)  # devices along the axis of tensor parallelism
PARTS = (1, 2)  # factors on the config's microbatches
# Executed over analytic FLOPs, at least: "full" computes the forward pass of all blocks twice.
LEAST_EXECUTED = {"full": 1.25}
# The estimate of memory was up to 1.6 times the compiler's figure (docs/guides/scale.md).
LARGEST_ESTIMATE = 1.6
# Options worth a trial, by chip: reduce-scatters on a whole slice by its sparse cores, which the
# compiler otherwise replaces by all-reduces of twice the bytes.
ON_SPARSE_CORES = "xla_tpu_enable_sparse_core_collective_offload_nd_reduce_scatter=true"
OPTIONS = {"v5p": (ON_SPARSE_CORES,), "v6e": (ON_SPARSE_CORES,), "tpu7x": (ON_SPARSE_CORES,)}
FEW = 3  # candidates that are printed
# Figures of every compiled candidate that the report of the best one has.
SHOWN = ("overrides", "mesh", "remat", "fits", "peak_bytes", "mfu_bound", "mfu_bound_exposed")


class Candidate(NamedTuple):
    """Settings of a training step that are tried together.

    Attributes:
      mesh: the values of the mesh's keys.
      remat: the trained model's `remat`.
      microbatches: number of parts of a batch.
      seconds: a time that no program of these settings can be faster than.
    """

    mesh: dict[str, Any]
    remat: str
    microbatches: int
    seconds: float = 0.0

    def overrides(self, section: str) -> dict[str, Any]:
        """Returns the settings as values by config key."""
        mesh = {f"mesh.{key}": value for key, value in self.mesh.items()}
        return {**mesh, f"{section}.remat": self.remat, "microbatches": self.microbatches}


def search(
    config: TrainConfig,
    tpu_slice: Slice,
    tell: Callable[[str], None],
    *,
    most: int,
    tried: epath.Path | None = None,
) -> dict[str, Any]:
    """Compiles candidates and returns the report of the best one.

    Args:
      config: the run's; its own settings are a candidate, if it leaves none to "auto".
      tell: prints a line of progress.
      most: the largest number of programs that are compiled.
      tried: a file of figures by candidate, which is read and added to: a search that was stopped
        goes on from it.
    Returns:
      the report of the best program, with "overrides", the settings as {config key: value}, and
      "searched", all compiled candidates with their bounds from the best to the worst.
    Raises:
      UserError: no candidate fits the slice.
    """
    objective = registry.with_frozen_shapes(config)
    options = candidates(objective, tpu_slice)
    if not options:
        mesh_choice.choose(objective, tpu_slice.devices)  # says what the mesh does not divide
        raise UserError(
            f"no settings are estimated to fit {tpu_slice.name}; give more chips, or a smaller "
            "batch_size"
        )
    known, results, start = _Tried(tried, config, tpu_slice), [], time.monotonic()
    tell(f"{len(options)} candidates, of which at most {most} are compiled")
    for candidate in options:
        best = min((_seconds(figures) for figures in results), default=float("inf"))
        if candidate.seconds >= best:
            tell("no other candidate can have a shorter bound")
            break
        if len(results) == most:
            tell(f"stopped after {most} programs; --compilations compiles more")
            break
        figures = known.get(candidate)
        if figures is None:
            figures = known.add(candidate, _compiled(objective, candidate, tpu_slice))
        results.append(figures)
        best = min(best, _seconds(figures))
        left = min(most, sum(one.seconds < best for one in options)) - len(results)
        each = (time.monotonic() - start) / len(results)
        tell(
            f"{len(results)} of at most {most}: {describe(figures)}; {each:.0f} s per program, at "
            f"most {max(left, 0) * each / 60:.0f} min left"
        )
    results.sort(key=_seconds)
    return {
        **results[0],
        "candidates": len(options),
        "searched": [{key: figures.get(key) for key in SHOWN} for figures in results],
    }


def _seconds(figures: Mapping[str, Any]) -> float:
    """Returns a program's time with half of the network's exposed; infinite if it is too large."""
    return figures["step_seconds_exposed"] if figures["fits"] else float("inf")


def describe(figures: Mapping[str, Any]) -> str:
    """Returns a compiled candidate and its bounds in a line."""
    settings = figures["overrides"]
    sizes = " x ".join(map(str, figures["mesh"].values()))
    peak = gib(figures["peak_bytes"])
    text = (
        f"{settings['mesh.policy']} on {sizes}, remat {figures['remat']}, microbatches "
        f"{settings['microbatches']}"
        + f", {settings['mesh.compiler_options']}" * bool(settings["mesh.compiler_options"])
        + f": {peak}, "
    )
    if not figures["fits"]:
        return f"{text}does not fit"
    return (
        f"{text}MFU at most {figures['mfu_bound']:.1%}, half exposed "
        f"{figures['mfu_bound_exposed']:.1%}"
    )


def lines(figures: Mapping[str, Any]) -> list[str]:
    """Returns the best candidates of a search, and the best one as options of a command."""
    best = figures["searched"][:FEW]
    return [
        f"the best {len(best)} of {len(figures['searched'])} compiled candidates:",
        *(f"  {describe(one)}" for one in best),
        f"overrides: {override_flags(figures)}",
    ]


def candidates(objective: Objective[Any], tpu_slice: Slice) -> list[Candidate]:
    """Returns the settings that may be tried, from the one with the shortest time that is possible.

    Settings whose mesh does not divide model and batch, or whose memory is estimated to exceed that
    of a device by far, are left out.
    """
    one_device, dtype = {"data": 1, "model": 1}, objective.model.dtype
    memory = memory_estimate.of_training(objective, one_device, "tpu", dtype)
    options = [
        candidate
        for mesh in _meshes(objective, tpu_slice)
        for candidate in _on_mesh(objective, mesh, tpu_slice, memory.residuals)
    ]
    return sorted(options, key=lambda one: one.seconds)


def _meshes(objective: Objective[Any], tpu_slice: Slice) -> Iterator[dict[str, Any]]:
    """Yields the keys of every mesh that divides the parameters and the batch."""
    config, devices = objective.config, len(tpu_slice.devices)
    boxed = objective.divided_shapes()
    for model in MODEL_AXES:
        data = devices // model
        if config.batch_size % data or objective.model_axis_is_idle(data, model, config.batch_size):
            continue
        numbers = [
            n
            for n in range(1, data // 2 + 1)
            if data % n == 0
            and not sharding.undivided_parameters(boxed, {"data": data // n, "model": model})
        ]
        # The fewest, which move the fewest bytes, and shards of one ring of chips, whose
        # reduce-scatters stay what they are.
        ring = data // tpu_slice.dims[-1]
        for replicas in dict.fromkeys([*numbers[:1], *(n for n in numbers if n == ring)]):
            for policy in ("zero1", "hsdp") if replicas > 1 else ("zero1", "hsdp", "fsdp"):
                for options in ("", *OPTIONS.get(tpu_slice.chip.name, ())):
                    yield {
                        "data": data,
                        "model": model,
                        "policy": policy,
                        "replicas": replicas,
                        "compiler_options": options,
                    }


def _on_mesh(
    objective: Objective[Any],
    mesh: dict[str, Any],
    tpu_slice: Slice,
    residuals: Mapping[str, float],
) -> Iterator[Candidate]:
    """Yields the candidates on a mesh, each with its least time."""
    config, chip = objective.config, tpu_slice.chip
    layout = dataclasses.replace(config.mesh, **mesh)
    with_policy = with_settings(objective, Settings(mesh["policy"], objective.model.remat))
    devices = make_mesh(layout, tpu_slice.devices)
    dtype = objective.model.dtype
    memory = memory_estimate.of_training(with_policy, devices.shape, "tpu", dtype, residuals)
    at_peak = objective.flops_per_image() * config.batch_size
    at_peak /= chip.peak_flops * devices.size
    numbers = gathering.gathered_numbers(objective.divided_shapes(), devices.shape)
    group = list(devices.devices[(0,) * (devices.devices.ndim - 2)][:, 0])
    for remat in objective.remat_choices or memory_estimate.REMAT_OF_TOKENIZER:
        for parts in PARTS:
            parts *= config.microbatches
            if config.batch_size % (mesh["data"] * parts):
                continue
            if memory.peak(remat, config.batch_size, parts) > LARGEST_ESTIMATE * chip.hbm_bytes:
                continue
            passes = 1 if mesh["policy"] == "zero1" or remat == "none" else 2
            gather = numbers * jnp.dtype(dtype).itemsize
            reduce = numbers * jnp.dtype(objective.model.gradient_dtype).itemsize
            network = parts * (
                passes * tpu_slice.seconds("all-gather", gather, group)
                + tpu_slice.seconds("reduce-scatter", reduce, group)
            )
            network += _tensor_parallel_seconds(objective, devices, tpu_slice)
            compute = at_peak * LEAST_EXECUTED.get(remat, 1.0)
            seconds = max(compute, network / 2) + network / 2
            yield Candidate(mesh, remat, parts, seconds)


def _tensor_parallel_seconds(objective: Objective[Any], mesh: Mesh, tpu_slice: Slice) -> float:
    """Returns the time of summing a block's activations over the model axis, twice in each pass."""
    model = objective.model
    group = list(mesh.devices.reshape(-1, mesh.shape["model"])[0])
    if len(group) == 1 or not isinstance(model, TransformerConfig):
        return 0.0
    rows = objective.config.batch_size // sharding.batch_parts(mesh.shape)
    numbers = rows * model.sequence.total * model.width
    size = numbers * jnp.dtype(model.dtype).itemsize
    return 4 * model.depth * tpu_slice.seconds("all-reduce", size, group)


def _compiled(objective: Objective[Any], candidate: Candidate, tpu_slice: Slice) -> dict[str, Any]:
    """Returns the figures of a candidate's program."""
    config = dataclasses.replace(
        objective.config,
        mesh=dataclasses.replace(objective.config.mesh, **candidate.mesh),
        microbatches=candidate.microbatches,
    )
    run = objective.with_config(config)
    run = with_settings(run, Settings(candidate.mesh["policy"], candidate.remat))
    step = aot.lower_train_step(run, mesh_choice.choose(run, tpu_slice.devices))
    figures = aot_report.measure(step, run.config, tpu_slice) | run.report()
    return figures | {"overrides": candidate.overrides(objective.section)}


class _Tried:
    """Figures of candidates in a file, of one config, slice and version of the compiler."""

    def __init__(self, path: epath.Path | None, config: TrainConfig, tpu_slice: Slice):
        self._path = path
        versions = {name: metadata.version(name) for name in ("jax", "jaxlib", "libtpu")}
        self._of = json.dumps([plain(config), tpu_slice.name, versions], sort_keys=True)
        self._figures: dict[str, Any] = {}
        if path is not None and path.exists():
            stored = read_object(path)
            self._figures = stored["figures"] if stored.get("of") == self._of else {}

    def get(self, candidate: Candidate) -> dict[str, Any] | None:
        return self._figures.get(self._key(candidate))

    def add(self, candidate: Candidate, figures: dict[str, Any]) -> dict[str, Any]:
        """Returns the figures, which are in the file from now on."""
        self._figures[self._key(candidate)] = figures
        if self._path is not None:
            values = {"of": self._of, "figures": self._figures}
            atomic.save(self._path, json.dumps(values, indent=1), "the candidates")
        return figures

    @staticmethod
    def _key(candidate: Candidate) -> str:
        return json.dumps(candidate.overrides("model"), sort_keys=True)
