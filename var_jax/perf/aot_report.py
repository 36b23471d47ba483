"""Memory, arithmetic, traffic and the time they bound, of one compiled step on one TPU slice."""

import json
import pathlib
import re
import time
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import jax

from var_jax.config.train import TrainConfig
from var_jax.objectives import registry
from var_jax.objectives.base import Objective
from var_jax.ops import attention_splash
from var_jax.perf import aot, hlo
from var_jax.perf.aot import Step
from var_jax.perf.tpu_slices import Slice

OVERLAP = (
    "step_seconds: the largest of compute at peak, device-memory traffic and collectives, each wholly hidden "
    "behind the largest; step_seconds_exposed: half of the collectives' time is hidden, half is added"
)
REDUCTIONS = ("all-reduce", "reduce-scatter")
SIZES = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def report(
    config: TrainConfig, where: Slice, what: str, images: int | None = None
) -> dict[str, Any]:
    """Compiles a step and tells what it takes; `fits` False when it is too large for a device's
    memory.

    Returns:
      plain values for JSON. Bytes are of one device, `flops` of all; times are lower bounds, in
      seconds.
    Raises:
      UserError: the mesh does not divide the model or the batch, or the stage has no such step.
    """
    objective = registry.with_frozen_shapes(config)
    is_training = what == "train"
    step = aot.train(objective, where) if is_training else aot.sample(objective, where, images)
    found: dict[str, Any] = {
        "topology": where.name,
        "chip": where.chip.name,
        "step": what,
        "devices": len(where.devices),
        "mesh": dict(step.mesh.shape),
        "images": step.images,
        "microbatches": config.microbatches,
        "flops": step.flops,
        "replicated_bytes": step.replicated_bytes,
        "hbm_bytes": where.chip.hbm_bytes,
    }
    found |= objective.report()
    start, start_cpu = time.perf_counter(), time.process_time()
    try:
        compiled = step.lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        compiled = None
        found |= {"peak_bytes": _wanted(str(error)), "fits": False}
    found |= {
        "compile_seconds": time.perf_counter() - start,
        "compile_cpu_seconds": time.process_time() - start_cpu,
    }
    if compiled is not None:
        found |= memory(compiled)
        found["fits"] = found["peak_bytes"] <= where.chip.hbm_bytes
        found |= _times(step, hlo.Program(compiled.as_text()), where, _kernel_share(config))
        _schedule(found, config)
    if is_training and objective.remat_choices:
        found |= _knobs(objective, found)
    return found


def memory(compiled: jax.stages.Compiled) -> dict[str, float]:
    """Bytes of one device: arguments, results that are not arguments reused, temporaries, code, and
    their sum."""
    stats = compiled.memory_analysis()
    parts = {
        "argument_bytes": stats.argument_size_in_bytes,
        "output_bytes": stats.output_size_in_bytes - stats.alias_size_in_bytes,
        "temporary_bytes": stats.temp_size_in_bytes,
        "code_bytes": stats.generated_code_size_in_bytes,
    }
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
        "executed_flops": executed * len(devices),
        "hbm_traffic_bytes": traffic,
        "collectives": dict(moved),
        "reduced_bytes": dict(reduced),
        "collective_seconds": dict(seconds),
        "compute_seconds": compute,
        "hbm_seconds": memory_seconds,
        "interconnect_seconds": network,
        "overlap": OVERLAP,
        "step_seconds": hidden,
        "mfu_bound": at_peak / hidden,
        "step_seconds_exposed": exposed,
        "mfu_bound_exposed": at_peak / exposed,
        "images_per_s": step.images / hidden,
    }


def _kernel_share(config: TrainConfig) -> float:
    """The share of all pairs that lie in the tiles which splash attention computes."""
    if config.transformer is None:
        return 1.0
    scales = config.transformer.scales
    length, tile = attention_splash.tiling(scales.total)
    seen = attention_splash.ScaleMask(scales, config.transformer.mask, length)[:, :]
    return float(seen.reshape(length // tile, tile, length // tile, tile).any(axis=(1, 3)).mean())


def _schedule(found: dict[str, Any], config: TrainConfig):
    if found["step"] == "train":
        for suffix in ("", "_exposed"):
            hours = found[f"step_seconds{suffix}"] * config.steps * found["devices"] / 3600
            found[f"chip_hours{suffix}"] = hours
        found["steps"] = config.steps


def _knobs(objective: Objective[Any], found: dict[str, Any]) -> dict[str, Any]:
    """The peak under every remat policy, the least recomputation that fits, and what would help
    where nothing does.

    The compiled policy's peak is the compiler's; of the others, it plus the difference of what they
    keep.
    """
    data, mine, choices = found["mesh"]["data"], objective.model.remat, objective.remat_choices
    kept = {name: aot.saved_bytes(objective, name, data) for name in choices}
    held = found.get("argument_bytes", 0)
    peaks = {name: max(found["peak_bytes"] + kept[name] - kept[mine], held) for name in choices}
    fitting = [name for name in choices if peaks[name] <= found["hbm_bytes"]]
    result: dict[str, Any] = {
        "remat_peak_bytes": peaks,
        "least_remat": fitting[0] if fitting else None,
    }
    if not found["fits"]:
        result["over_bytes"] = found["peak_bytes"] - found["hbm_bytes"]
        result["would_help"] = _advice(objective, found, kept, peaks)
    return result


def _advice(
    objective: Objective[Any],
    found: dict[str, Any],
    kept: dict[str, float],
    peaks: dict[str, float],
) -> list[str]:
    config, choices = objective.config, objective.remat_choices
    mine, model = objective.model.remat, found["mesh"]["model"]
    more = choices[choices.index(mine) + 1 :]
    advice = [
        f"{objective.section}.remat={name}: about {gib(peaks[name])}"
        for name in more
        if peaks[name] < peaks[mine]
    ]
    rows = config.batch_size // found["mesh"]["data"] // config.microbatches
    divisors = [n for n in range(2, rows + 1) if rows % n == 0]
    fitting = [
        n for n in divisors if found["peak_bytes"] - kept[mine] * (1 - 1 / n) <= found["hbm_bytes"]
    ]
    for n in (fitting or divisors[-1:])[:1]:
        left = found["peak_bytes"] - kept[mine] * (1 - 1 / n)
        advice.append(f"microbatches={config.microbatches * n}: about {gib(left)}")
    if not objective.model_axis_is_idle(1, 2 * model, rows):
        advice.append(
            f"mesh.model={2 * model}: weights gathered for a layer, and what its heads and MLP keep, halve"
        )
    return advice


def _wanted(message: str) -> float:
    """Bytes that a program too large for the memory would take at least, as the compiler's error
    says.

    Raises:
      ValueError: it does not say, in any of the wordings known.
    """
    for wording in (
        r"required for [^(]*\(([\d.]+)([KMGT]?)\)",
        r"[Uu]sed ([\d.]+)([KMGT]?) of",
        r"allocate ([\d.]+)([KMGT]?)",
    ):
        if found := re.search(wording, message):
            return float(found[1]) * SIZES[found[2]]
    raise ValueError(
        f"the program does not fit, and the compiler does not say by how much: {message}"
    )


GIB = 2**30


def gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB"


def lines(found: Mapping[str, Any]) -> list[str]:
    """One report as two columns."""
    rows = [
        (
            "slice",
            f"{found['topology']}, {found['devices']} chips as data {found['mesh']['data']} x model "
            f"{found['mesh']['model']}",
        ),
        (
            "step",
            f"{found['step']}, {found['images']} images, remat {found.get('remat', '-')}, "
            f"compiled in {found['compile_cpu_seconds']:.0f} s of CPU",
        ),
        (
            "memory a chip",
            f"{gib(found['peak_bytes'])} of {gib(found['hbm_bytes'])}: "
            + ("fits" if found["fits"] else "DOES NOT FIT"),
        ),
    ]
    if "argument_bytes" in found:
        rows.append(
            (
                "",
                f"arguments {gib(found['argument_bytes'])}, temporaries {gib(found['temporary_bytes'])}",
            )
        )
    if found.get("replicated_bytes"):
        rows.append(
            (
                "",
                f"of that {gib(found['replicated_bytes'])} replicated, which the mesh does not divide",
            )
        )
    if "step_seconds" in found:
        rows += [
            (
                "FLOPs",
                f"{found['flops']:.4g} analytic, "
                f"{found['executed_flops'] / found['flops']:.3f} times that executed",
            ),
            (
                "collectives",
                ", ".join(
                    f"{kind} {size / 1e9:.3g} GB" for kind, size in found["collectives"].items()
                )
                or "none",
            ),
            (
                "reductions",
                ", ".join(
                    f"{dtype} {size / 1e9:.3g} GB"
                    for dtype, size in found.get("reduced_bytes", {}).items()
                )
                or "none",
            ),
            (
                "seconds",
                f"compute {found['compute_seconds']:.4f}, memory {found['hbm_seconds']:.4f}, "
                f"interconnect {found['interconnect_seconds']:.4f}",
            ),
            (
                "overlapped",
                f"{found['step_seconds']:.4f} s a step, MFU at most {found['mfu_bound']:.1%}",
            ),
            (
                "half exposed",
                f"{found['step_seconds_exposed']:.4f} s a step, MFU at most "
                f"{found['mfu_bound_exposed']:.1%}",
            ),
        ]
    if "chip_hours" in found:
        rows.append(
            (
                "whole schedule",
                f"{found['steps']} steps, {found['chip_hours']:.0f} to "
                f"{found['chip_hours_exposed']:.0f} chip-hours",
            )
        )
    if "least_remat" in found:
        rows.append(
            (
                "least remat",
                f"{found['least_remat'] or 'none of them fits'} (estimated: "
                + ", ".join(
                    f"{name} {gib(size)}" for name, size in found["remat_peak_bytes"].items()
                )
                + ")",
            )
        )
    if "would_help" in found:
        rows.append(("over by", gib(found["over_bytes"])))
        rows += [("would help", text) for text in found["would_help"]]
    return [f"{name:15}{text}" for name, text in rows]


COLUMNS = (
    "program",
    "slice",
    "mesh",
    "images",
    "remat",
    "memory GiB (arguments + temporaries)",
    "fits",
    "executed / analytic FLOPs",
    "collectives GB",
    "compute s",
    "memory s",
    "interconnect s",
    "MFU overlapped",
    "MFU half exposed",
    "chip-hours",
    "compile CPU s",
)


def markdown(directory: str | pathlib.Path) -> str:
    """A table of the reports (`*.json`) in a directory, sorted by name."""
    rows = [COLUMNS, ("---",) * len(COLUMNS)]
    for path in sorted(pathlib.Path(directory).glob("*.json")):
        found = json.loads(path.read_text())
        mesh = found["mesh"]
        row = [
            f"[{path.stem.split('_')[0]}](aot/{path.name}) {found['step']}",
            found["topology"],
            f"{mesh['data']} x {mesh['model']}",
            str(found["images"]),
            found.get("remat", "-"),
        ]
        if "step_seconds" in found:
            row += [
                f"{found['peak_bytes'] / GIB:.2f} ({found['argument_bytes'] / GIB:.2f} + "
                f"{found['temporary_bytes'] / GIB:.2f})",
                "yes" if found["fits"] else "no",
                f"{found['executed_flops'] / found['flops']:.2f}",
                f"{sum(found['collectives'].values()) / 1e9:.1f}",
                f"{found['compute_seconds']:.4f}",
                f"{found['hbm_seconds']:.4f}",
                f"{found['interconnect_seconds']:.4f}",
                f"{found['mfu_bound']:.1%}",
                f"{found['mfu_bound_exposed']:.1%}",
                f"{found['chip_hours']:,.0f} to {found['chip_hours_exposed']:,.0f}"
                if "steps" in found
                else "-",
            ]
        else:
            row += [f"{found['peak_bytes'] / GIB:.2f}", "no", *["-"] * 8]
        rows.append((*row, f"{found['compile_cpu_seconds']:.0f}"))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
