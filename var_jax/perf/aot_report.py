"""Memory, FLOPs, traffic and time bounds of one compiled step on one TPU slice."""

import re
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import jax

from var_jax.config.train import TrainConfig
from var_jax.devices import sharding
from var_jax.devices.chips import Chip
from var_jax.objectives import registry
from var_jax.objectives.base import Objective
from var_jax.ops import attention_splash
from var_jax.perf import aot, hlo, uncached
from var_jax.perf.aot import Step
from var_jax.perf.aot_lines import gib
from var_jax.perf.tpu_slices import Slice
from var_jax.train import memory_estimate, memory_rule, mesh_choice

OVERLAP = (
    "step_seconds: the largest of compute at peak, device-memory traffic, collectives and copies "
    "to and from the host's memory, each wholly hidden behind the largest; step_seconds_exposed: "
    "half of the collectives' time is hidden, half is added"
)
REDUCTIONS = ("all-reduce", "reduce-scatter")
Keep = Callable[[Step, jax.stages.Compiled], None]
SIZES = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def report(
    config: TrainConfig,
    tpu_slice: Slice,
    what: str,
    images: int | None = None,
    *,
    keep: Keep | None = None,
) -> dict[str, Any]:
    """Compiles a step and returns its memory, work and time bounds.

    `fits` is False if it is too large for the memory of a device. Settings that the config leaves
    to "auto" are those of `memory_rule`; if their program does not fit, those that take least
    memory are compiled in their place, and "overrides" are what a run has to be given for them.

    Args:
      keep: called with the step and its compiled program, if it fits.
    Returns:
      plain values for JSON. Bytes are per device, `flops` over all devices; times are lower bounds,
      in seconds.
    Raises:
      UserError: the mesh does not divide the model or the batch, or the stage has no such step.
    """
    objective = registry.with_frozen_shapes(config)
    if what != "train":
        return measure(aot.lower_sampling(objective, tpu_slice, images), config, tpu_slice, what)
    choice = mesh_choice.choose(objective, tpu_slice.devices)
    first, *smaller = memory_rule.choices(objective, choice.mesh)
    for one in (first, *smaller):
        step = aot.lower_train_step(one, choice)
        # A run takes the first choice: another's program would be refused.
        of_run = keep if one is first else None
        figures = measure(step, one.config, tpu_slice, what, keep=of_run) | one.report()
        if one is not first:
            figures["overrides"] = {
                "mesh.policy": one.config.mesh.policy,
                f"{one.section}.remat": one.model.remat,
            }
        if figures["fits"]:
            break
    if one.remat_choices:
        figures |= _knobs(one, figures)
    return figures


def measure(
    step: Step,
    config: TrainConfig,
    tpu_slice: Slice,
    what: str = "train",
    *,
    keep: Keep | None = None,
) -> dict[str, Any]:
    """Compiles a lowered step and returns its figures, without those that compare policies.

    If the step fits, `keep` is called with it and its compiled program.
    """
    is_training = what == "train"
    figures: dict[str, Any] = {
        "topology": tpu_slice.name,
        "chip": tpu_slice.chip.name,
        "step": what,
        "devices": len(tpu_slice.devices),
        "chips": len(tpu_slice.devices) // tpu_slice.chip.devices_per_chip,
        "mesh": dict(step.mesh.shape),
        "policy": config.mesh.policy if is_training else "",
        "compiler_options": config.mesh.options_of_compiler if is_training else {},
        "images": step.images,
        "microbatches": config.microbatches,
        "flops": step.flops,
        "trainable": config.trainable if is_training else "",
        "replicated_bytes": step.replicated_bytes,
        "hbm_bytes": tpu_slice.chip.hbm_bytes,
    }
    start, start_cpu = time.perf_counter(), time.process_time()
    try:
        with uncached.compilation():
            compiled = step.lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        compiled = None
        figures |= {"peak_bytes": _required_bytes(str(error)), "fits": False}
    figures |= {
        "compile_seconds": time.perf_counter() - start,
        "compile_cpu_seconds": time.process_time() - start_cpu,
    }
    if compiled is not None:
        figures |= aot.memory(compiled)
        figures["fits"] = figures["peak_bytes"] <= tpu_slice.chip.hbm_bytes
        # A part of the batch after the other takes the same place.
        host = host_seconds(figures["host_bytes"] * config.microbatches, tpu_slice.chip)
        program = hlo.Program(compiled.as_text())
        figures |= _times(step, program, tpu_slice, _kernel_share(config), host)
        _schedule(figures, config)
        if keep is not None and figures["fits"]:
            keep(step, compiled)
    return figures


def host_seconds(size: float, chip: Chip) -> float | None:
    """Returns the time to bring bytes to the host's memory and back, one after the other.

    Each way the bytes take the link of a chip, that of all of its devices. None where the rate of
    the link is not known.
    """
    if not size:
        return 0.0
    rate = chip.host_bandwidth
    return 2 * size * chip.devices_per_chip / rate if rate else None


def _times(
    step: Step, program: hlo.Program, tpu_slice: Slice, kernel_share: float, host: float | None
) -> dict[str, Any]:
    """Returns the work of a program and the bounds of its time.

    Args:
      host: seconds of its copies to and from the host's memory; None if not known, and not in the
        bounds.
    """
    devices = step.mesh.devices.ravel()
    moved: dict[str, float] = defaultdict(float)
    seconds: dict[str, float] = defaultdict(float)
    reduced: dict[str, float] = defaultdict(float)
    for one in program.collectives():
        moved[one.kind] += one.bytes * one.times
        if one.kind in REDUCTIONS:
            reduced[one.dtype] += one.bytes * one.times
        group = [devices[i] for i in one.group]
        seconds[one.kind] += tpu_slice.seconds(one.kind, one.bytes, group) * one.times
    executed, traffic = program.matrix_flops(kernel_share), program.hbm_bytes()
    compute = executed / tpu_slice.chip.peak_flops
    memory_seconds = traffic / tpu_slice.chip.hbm_bandwidth
    network = sum(seconds.values())
    hidden = max(compute, memory_seconds, network, host or 0.0)
    exposed = max(compute, memory_seconds, network / 2, host or 0.0) + network / 2
    at_peak = step.flops / (tpu_slice.chip.peak_flops * len(devices))
    return {
        "executed_flops": executed * len(devices),
        "hbm_traffic_bytes": traffic,
        "collectives": dict(moved),
        "reduced_bytes": dict(reduced),
        "collective_seconds": dict(seconds),
        "compute_seconds": compute,
        "hbm_seconds": memory_seconds,
        "interconnect_seconds": network,
        "host_seconds": host,
        "overlap": OVERLAP,
        "step_seconds": hidden,
        "mfu_bound": at_peak / hidden,
        "step_seconds_exposed": exposed,
        "mfu_bound_exposed": at_peak / exposed,
        "images_per_s": step.images / hidden,
    }


def _kernel_share(config: TrainConfig) -> float:
    """Returns the share of all pairs that are in the blocks which splash attention computes."""
    if config.transformer is None:
        return 1.0
    scales = config.transformer.scales
    length, block = attention_splash.blocking(scales.total)
    seen = attention_splash.ScaleMask(scales, config.transformer.mask, length)[:, :]
    blocks = seen.reshape(length // block, block, length // block, block)
    return float(blocks.any(axis=(1, 3)).mean())


def _schedule(figures: dict[str, Any], config: TrainConfig):
    if figures["step"] == "train":
        for suffix in ("", "_exposed"):
            hours = figures[f"step_seconds{suffix}"] * config.steps * figures["chips"] / 3600
            figures[f"chip_hours{suffix}"] = hours
        figures["steps"] = config.steps


def _knobs(objective: Objective[Any], figures: dict[str, Any]) -> dict[str, Any]:
    """Returns the peak under every remat policy, and the least recomputation that fits.

    If none fits, it adds advice.

    The compiled policy's peak is the compiler's; those of the others are that plus the difference
    of the bytes that they keep.
    """
    data, current = sharding.batch_parts(figures["mesh"]), objective.model.remat
    choices = objective.remat_choices
    saved = memory_estimate.residual_bytes_by_value(objective, (*choices, current), data)
    held = figures.get("argument_bytes", 0)
    peaks = {
        name: max(figures["peak_bytes"] + saved[name] - saved[current], held) for name in choices
    }
    fitting = [name for name in choices if peaks[name] <= figures["hbm_bytes"]]
    result: dict[str, Any] = {
        "remat_peak_bytes": peaks,
        "least_remat": fitting[0] if fitting else None,
    }
    if not figures["fits"]:
        result["over_bytes"] = figures["peak_bytes"] - figures["hbm_bytes"]
        result["would_help"] = _advice(objective, figures, saved, peaks)
    return result


def _advice(
    objective: Objective[Any],
    figures: dict[str, Any],
    saved: dict[str, float],
    peaks: dict[str, float],
) -> list[str]:
    config = objective.config
    current, model = objective.model.remat, figures["mesh"]["model"]
    advice = [
        f"{objective.section}.remat={name}: about {gib(peaks[name])}"
        for name in objective.remat_choices
        if peaks[name] < figures["peak_bytes"]
    ]
    rows = config.batch_size // sharding.batch_parts(figures["mesh"]) // config.microbatches
    divisors = [n for n in range(2, rows + 1) if rows % n == 0]
    fitting = [
        n
        for n in divisors
        if figures["peak_bytes"] - saved[current] * (1 - 1 / n) <= figures["hbm_bytes"]
    ]
    for n in (fitting or divisors[-1:])[:1]:
        left = figures["peak_bytes"] - saved[current] * (1 - 1 / n)
        advice.append(f"microbatches={config.microbatches * n}: about {gib(left)}")
    if not objective.model_axis_is_idle(1, 2 * model, rows):
        advice.append(
            f"mesh.model={2 * model}: weights gathered for a layer, and what its heads and MLP "
            "keep, halve"
        )
    return advice


def _required_bytes(message: str) -> float:
    """Returns the least bytes that a program needs, from the compiler's out-of-memory error.

    Raises:
      ValueError: the message has none of the known wordings.
    """
    for wording in (
        r"required for [^(]*\(([\d.]+)([KMGT]?)\)",
        r"[Uu]sed ([\d.]+)([KMGT]?) of",
        r"allocate ([\d.]+)([KMGT]?)",
    ):
        if match := re.search(wording, message):
            return float(match[1]) * SIZES[match[2]]
    raise ValueError(
        f"the program does not fit, and the compiler does not say by how much: {message}"
    )
