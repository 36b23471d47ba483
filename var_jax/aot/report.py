"""Memory, arithmetic, traffic and the time they bound, of one compiled step on one TPU slice."""

import re
import time
from collections import defaultdict
from typing import Any

import jax

from var_jax.aot import hlo, programs
from var_jax.aot.programs import Step
from var_jax.aot.slices import Slice
from var_jax.aot.table import gib
from var_jax.ops import splash
from var_jax.train.config import TrainConfig

OVERLAP = ("step_seconds: the largest of compute at peak, device-memory traffic and collectives, each wholly hidden "
           "behind the largest; step_seconds_exposed: half of the collectives' time is hidden, half is added")
REDUCTIONS = ("all-reduce", "reduce-scatter")
REMAT = ("none", "dots", "full")  # from the least recomputation to the most
SIZES = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def report(config: TrainConfig, where: Slice, what: str, images: int | None = None) -> dict[str, Any]:
    """Compiles a step and tells what it takes; `fits` False when it is too large for a device's memory.

    Returns:
      plain values for JSON. Bytes are of one device, `flops` of all; times are lower bounds, in seconds.
    Raises:
      UserError: the mesh does not divide the model or the batch, or the stage has no such step.
    """
    step = programs.train(config, where) if what == "train" else programs.sample(config, where, images)
    found: dict[str, Any] = {
        "topology": where.name, "chip": where.chip.name, "step": what, "devices": len(where.devices),
        "mesh": dict(step.mesh.shape), "images": step.images, "microbatches": config.microbatches,
        "flops": step.flops, "replicated_bytes": step.replicated_bytes, "hbm_bytes": where.chip.hbm_bytes}
    if config.stage == "transformer":
        found |= {"depth": config.transformer.depth, "remat": config.transformer.remat}
    else:
        found["remat"] = config.tokenizer.remat
    start, start_cpu = time.perf_counter(), time.process_time()
    try:
        compiled = step.lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        compiled = None
        found |= {"peak_bytes": _wanted(str(error)), "fits": False}
    found |= {"compile_seconds": time.perf_counter() - start, "compile_cpu_seconds": time.process_time() - start_cpu}
    if compiled is not None:
        found |= memory(compiled)
        found["fits"] = found["peak_bytes"] <= where.chip.hbm_bytes
        found |= _times(step, hlo.Program(compiled.as_text()), where, _kernel_share(config))
        _schedule(found, config)
    if what == "train" and config.stage == "transformer":
        found |= _knobs(config, found)
    return found


def memory(compiled: jax.stages.Compiled) -> dict[str, float]:
    """Bytes of one device: arguments, results that are not arguments reused, temporaries, code, and their sum."""
    stats = compiled.memory_analysis()
    parts = {"argument_bytes": stats.argument_size_in_bytes,
             "output_bytes": stats.output_size_in_bytes - stats.alias_size_in_bytes,
             "temporary_bytes": stats.temp_size_in_bytes, "code_bytes": stats.generated_code_size_in_bytes}
    return {**parts, "peak_bytes": sum(parts.values())}


def _times(step: Step, program: hlo.Program, where: Slice, kernel_share: float) -> dict[str, Any]:
    devices = step.mesh.devices.ravel()
    moved: dict[str, float] = defaultdict(float)
    seconds: dict[str, float] = defaultdict(float)
    reduced: dict[str, float] = defaultdict(float)
    for one in program.collectives():
        moved[one.kind] += one.bytes * one.times
        if one.kind in REDUCTIONS:
            reduced[one.dtype] += one.bytes * one.times
        group = [devices[i] for i in one.group]
        seconds[one.kind] += where.seconds(one.kind, one.bytes, group) * one.times
    executed, traffic = program.matrix_flops(kernel_share), program.hbm_bytes()
    compute, memory_seconds = executed / where.chip.peak_flops, traffic / where.chip.hbm_bandwidth
    network = sum(seconds.values())
    hidden = max(compute, memory_seconds, network)
    exposed = max(compute, memory_seconds, network / 2) + network / 2
    at_peak = step.flops / (where.chip.peak_flops * len(devices))
    return {
        "executed_flops": executed * len(devices), "hbm_traffic_bytes": traffic,
        "collectives": dict(moved), "reduced_bytes": dict(reduced), "collective_seconds": dict(seconds),
        "compute_seconds": compute, "hbm_seconds": memory_seconds, "interconnect_seconds": network,
        "overlap": OVERLAP, "step_seconds": hidden, "mfu_bound": at_peak / hidden,
        "step_seconds_exposed": exposed, "mfu_bound_exposed": at_peak / exposed,
        "images_per_s": step.images / hidden}


def _kernel_share(config: TrainConfig) -> float:
    """The share of all pairs that lie in the tiles which splash attention computes."""
    if config.transformer is None:
        return 1.0
    scales = config.transformer.scales
    length, tile = splash.tiling(scales.total)
    seen = splash.ScaleMask(scales, config.transformer.mask, length)[:, :]
    return float(seen.reshape(length // tile, tile, length // tile, tile).any(axis=(1, 3)).mean())


def _schedule(found: dict[str, Any], config: TrainConfig):
    if found["step"] == "train":
        for suffix in ("", "_exposed"):
            hours = found[f"step_seconds{suffix}"] * config.steps * found["devices"] / 3600
            found[f"chip_hours{suffix}"] = hours
        found["steps"] = config.steps


def _knobs(config: TrainConfig, found: dict[str, Any]) -> dict[str, Any]:
    """The peak under every remat policy, the least recomputation that fits, and what would help where nothing does.

    The compiled policy's peak is the compiler's; of the others, it plus the difference of what they keep.
    """
    data, mine = found["mesh"]["data"], config.transformer.remat
    kept = {name: programs.saved_bytes(config, name, data) for name in REMAT}
    held = found.get("argument_bytes", 0)
    peaks = {name: max(found["peak_bytes"] + kept[name] - kept[mine], held) for name in REMAT}
    fitting = [name for name in REMAT if peaks[name] <= found["hbm_bytes"]]
    result: dict[str, Any] = {"remat_peak_bytes": peaks, "least_remat": fitting[0] if fitting else None}
    if not found["fits"]:
        result["over_bytes"] = found["peak_bytes"] - found["hbm_bytes"]
        result["would_help"] = _advice(config, found, kept, peaks)
    return result


def _advice(config: TrainConfig, found: dict[str, Any], kept: dict[str, float], peaks: dict[str, float]) -> list[str]:
    mine, model = config.transformer.remat, found["mesh"]["model"]
    more = REMAT[REMAT.index(mine) + 1:]
    advice = [f"transformer.remat={name}: about {gib(peaks[name])}" for name in more if peaks[name] < peaks[mine]]
    rows = config.batch_size // found["mesh"]["data"] // config.microbatches
    divisors = [n for n in range(2, rows + 1) if rows % n == 0]
    fitting = [n for n in divisors if found["peak_bytes"] - kept[mine] * (1 - 1 / n) <= found["hbm_bytes"]]
    for n in (fitting or divisors[-1:])[:1]:
        left = found["peak_bytes"] - kept[mine] * (1 - 1 / n)
        advice.append(f"microbatches={config.microbatches * n}: about {gib(left)}")
    heads = config.transformer.heads
    if heads % (2 * model) == 0:
        advice.append(f"mesh.model={2 * model}: weights gathered for a layer, and what its heads and MLP keep, halve")
    return advice


def _wanted(message: str) -> float:
    """Bytes that a program too large for the memory would take at least, as the compiler's error says.

    Raises:
      ValueError: it does not say, in any of the wordings known.
    """
    for wording in (r"required for [^(]*\(([\d.]+)([KMGT]?)\)", r"[Uu]sed ([\d.]+)([KMGT]?) of",
                    r"allocate ([\d.]+)([KMGT]?)"):
        if found := re.search(wording, message):
            return float(found[1]) * SIZES[found[2]]
    raise ValueError(f"the program does not fit, and the compiler does not say by how much: {message}")
