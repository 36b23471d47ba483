"""Searches for the settings of a training step whose program has the shortest bound on a TPU slice.

Candidates differ in policy and mesh, rematerialization, microbatches and options of the compiler.
Each has a time that no program of it can be faster than, from its FLOPs and the bytes of weights
and gradients that must cross the network. The config's own settings are compiled first, then
candidates from the least of these times on, until the next one exceeds the best bound of a compiled
program.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh

from var_jax.config import rematerialization
from var_jax.config.train import TrainConfig
from var_jax.config.transformer_config import TransformerConfig
from var_jax.devices import gathering, sharding
from var_jax.devices.mesh import make_mesh
from var_jax.errors import UserError
from var_jax.objectives import registry
from var_jax.objectives.base import Objective
from var_jax.perf import aot, aot_report
from var_jax.perf.aot_lines import gib, override_flags
from var_jax.perf.tpu_slices import Slice
from var_jax.perf.tried_candidates import TriedCandidates
from var_jax.train import memory_estimate, memory_rule, mesh_choice
from var_jax.train.memory_estimate import LARGEST_RATIO
from var_jax.train.memory_rule import Settings, with_settings

MODEL_AXES = (1, 2, 4)  # devices along the axis of tensor parallelism
FEW_PARTS = 3  # factors on the config's microbatches: the smallest divisors of a device's images
# Executed over analytic FLOPs, at least: "full" computes the forward pass of its blocks twice.
LEAST_EXECUTED = dict.fromkeys(rematerialization.POLICIES, 1.0) | {rematerialization.FULL: 1.25}
# Options worth a trial, by chip: reduce-scatters on a whole slice by its sparse cores, which the
# compiler otherwise replaces by all-reduces of twice the bytes.
ON_SPARSE_CORES = "xla_tpu_enable_sparse_core_collective_offload_nd_reduce_scatter=true"
# For convolutional networks on any chip: with few images per chip the compiler otherwise
# makes pieces of each image, with copies of the rows between them, and norms read and write these
# several times (docs/results/aot.md).
WITHOUT_PIECES = (
    "xla_tpu_run_space_to_batch=false,xla_tpu_run_space_to_batch_on_new_platforms=false"
)
OPTIONS = {"v5p": (ON_SPARSE_CORES,), "v6e": (ON_SPARSE_CORES,), "tpu7x": (ON_SPARSE_CORES,)}
MESH_KEYS = ("data", "model", "policy", "replicas", "compiler_options")
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

    @property
    def name(self) -> str:
        """A text that no other candidate has."""
        return json.dumps(self.overrides("model"), sort_keys=True)


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
      config: the run's; its own settings, with those of the rule in place of "auto", are the first
        candidate.
      tell: prints a line of progress.
      most: the largest number of programs that are compiled.
      tried: a file of figures by candidate, which is read and added to: a search that was stopped
        goes on from it, while code and versions are the same.
    Returns:
      the report of the best program, with "overrides", the settings as {config key: value}, and
      "searched", all compiled candidates with their bounds from the best to the worst.
    Raises:
      UserError: no mesh divides model and batch, or the file is damaged.
    """
    objective = registry.with_frozen_shapes(config)
    options = candidates(objective, tpu_slice)
    known, results = TriedCandidates(tried, config, tpu_slice, tell), []
    start = time.monotonic()
    tell(f"{len(options)} candidates, of which at most {most} are compiled")
    for candidate in options:
        best = min((_seconds(figures) for figures in results), default=float("inf"))
        if candidate.seconds >= best:
            tell("no other candidate can have a shorter bound")
            break
        if len(results) == most:
            tell(f"stopped after {most} programs; --compilations compiles more")
            break
        figures = known.get(candidate.name)
        if figures is None:
            figures = known.add(candidate.name, _compiled(objective, candidate, tpu_slice))
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
    """Returns the settings that may be tried.

    They are those of the config, if they divide model and batch, and then others, from the one with
    the shortest time that is possible. Settings whose mesh does not divide model and batch, or
    whose memory is estimated to exceed that of a device by far, are left out.

    Raises:
      UserError: neither the mesh of the config nor another one divides model and batch.
    """
    one_device, dtype = {"data": 1, "model": 1}, objective.model.dtype
    memory = memory_estimate.of_training(objective, one_device, "tpu", dtype)
    boxed = objective.divided_shapes()
    options = [
        candidate
        for mesh in _meshes(objective, tpu_slice, boxed)
        for candidate in _on_mesh(objective, mesh, tpu_slice, boxed, memory.residuals)
    ]
    options.sort(key=lambda one: one.seconds)
    try:
        mesh = mesh_choice.choose(objective, tpu_slice.devices).mesh
    except UserError:  # a run of the config is refused
        if not options:
            raise
        return options
    own = _own(objective, mesh, tpu_slice, boxed)
    # Those that the config leaves open are the same program as those that it would then have.
    chosen = {
        "data": sharding.batch_parts(mesh.shape),
        "model": mesh.shape["model"],
        "replicas": mesh.shape.get("replica", 1),
    }
    same = own._replace(mesh={**own.mesh, **chosen}).name
    return [own, *(one for one in options if one.name not in (own.name, same))]


def _own(objective: Objective[Any], mesh: Mesh, tpu_slice: Slice, boxed: Any) -> Candidate:
    """Returns the settings of an objective's config, with those of the rule in place of "auto"."""
    run = memory_rule.resolve(objective, mesh)
    keys = {key: getattr(run.config.mesh, key) for key in MESH_KEYS}
    own = Candidate(keys, run.model.remat, run.config.microbatches)
    return own._replace(seconds=_least_seconds(run, mesh, own, tpu_slice, boxed))


def _meshes(objective: Objective[Any], tpu_slice: Slice, boxed: Any) -> Iterator[dict[str, Any]]:
    """Yields the keys of every mesh that divides the parameters and the batch."""
    config, devices = objective.config, len(tpu_slice.devices)
    is_convolutional = objective.batch_over_model_axis
    trials = (WITHOUT_PIECES,) if is_convolutional else OPTIONS.get(tpu_slice.chip.name, ())
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
                for options in ("", *trials):
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
    boxed: Any,
    residuals: Mapping[str, float],
) -> Iterator[Candidate]:
    """Yields the candidates on a mesh, each with its least time."""
    config, chip, model = objective.config, tpu_slice.chip, objective.model
    layout = dataclasses.replace(config.mesh, **mesh)
    with_policy = objective.with_config(dataclasses.replace(config, mesh=layout))
    devices = make_mesh(layout, tpu_slice.devices)
    memory = memory_estimate.of_training(with_policy, devices.shape, "tpu", model.dtype, residuals)
    rows, rest = divmod(config.batch_size, mesh["data"] * config.microbatches)
    if rest:  # a run is refused
        return
    factors = [number for number in range(1, rows + 1) if rows % number == 0][:FEW_PARTS]
    for remat in _remats(objective):
        host = aot_report.host_seconds(memory.offloaded(remat, config.batch_size), chip)
        if host is None:  # the chip's way to the host has no rate
            continue
        for factor in factors:
            parts = factor * config.microbatches
            if memory.peak(remat, config.batch_size, parts) > LARGEST_RATIO * chip.hbm_bytes:
                continue
            candidate = Candidate(mesh, remat, parts)
            seconds = _least_seconds(objective, devices, candidate, tpu_slice, boxed, host)
            yield candidate._replace(seconds=seconds)


def _remats(objective: Objective[Any]) -> tuple[str, ...]:
    """Returns the values of rematerialization that are tried, for all blocks or some."""
    values = memory_estimate.remat_values(objective)
    on_host = [x.replace("dots", rematerialization.OFFLOAD) for x in values if "dots" in x]
    return (*values, *on_host)


def _least_seconds(
    objective: Objective[Any],
    mesh: Mesh,
    candidate: Candidate,
    tpu_slice: Slice,
    boxed: Any,
    host: float = 0.0,
) -> float:
    """Returns a time that no program of a candidate can be faster than on a mesh of its keys.

    Args:
      boxed: the boxed shapes of the parameters that a mesh divides.
      host: seconds of copies to and from the host's memory.
    """
    model, remat = objective.model, candidate.remat
    compute = objective.flops_per_image() * objective.config.batch_size
    compute *= _least_executed(model, remat) / (tpu_slice.chip.peak_flops * mesh.size)
    numbers = gathering.gathered_numbers(boxed, mesh.shape)
    group = list(mesh.devices[(0,) * (mesh.devices.ndim - 2)][:, 0])
    passes = 1 if candidate.mesh["policy"] == "zero1" or remat == "none" else 2
    gather = numbers * jnp.dtype(model.dtype).itemsize
    reduce = numbers * jnp.dtype(model.gradient_dtype).itemsize
    network = candidate.microbatches * (
        passes * tpu_slice.seconds("all-gather", gather, group)
        + tpu_slice.seconds("reduce-scatter", reduce, group)
    )
    network += _tensor_parallel_seconds(objective, mesh, tpu_slice)
    return max(compute, network / 2, host) + network / 2


def _least_executed(model: Any, remat: str) -> float:
    """Returns the least executed over analytic FLOPs, the mean over all blocks."""
    depth = model.depth if isinstance(model, TransformerConfig) else 1
    return rematerialization.mean(LEAST_EXECUTED, rematerialization.groups(remat, depth))


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
