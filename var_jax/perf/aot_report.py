"""Memory, FLOPs, traffic and time bounds of one compiled step on one TPU slice."""

import pathlib
import re
import time
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import jax

from var_jax.config import key_patterns
from var_jax.config.train import TrainConfig
from var_jax.devices import chips
from var_jax.io.json import read_object
from var_jax.objectives import registry
from var_jax.objectives.base import Objective
from var_jax.ops import attention_splash
from var_jax.perf import aot, hlo
from var_jax.perf.aot import Step
from var_jax.perf.tpu_slices import Slice

OVERLAP = (
    "step_seconds: the largest of compute at peak, device-memory traffic and collectives, each "
    "wholly hidden behind the largest; step_seconds_exposed: half of the collectives' time is "
    "hidden, half is added"
)
REDUCTIONS = ("all-reduce", "reduce-scatter")
SIZES = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def report(
    config: TrainConfig, tpu_slice: Slice, what: str, images: int | None = None
) -> dict[str, Any]:
    """Compiles a step and returns its memory, work and time bounds.

    `fits` is False if it is too large for the memory of a device.

    Returns:
      plain values for JSON. Bytes are per device, `flops` over all devices; times are lower bounds,
      in seconds.
    Raises:
      UserError: the mesh does not divide the model or the batch, or the stage has no such step.
    """
    objective = registry.with_frozen_shapes(config)
    is_training = what == "train"
    if is_training:
        step = aot.lower_train_step(objective, tpu_slice)
    else:
        step = aot.lower_sampling(objective, tpu_slice, images)
    figures: dict[str, Any] = {
        "topology": tpu_slice.name,
        "chip": tpu_slice.chip.name,
        "step": what,
        "devices": len(tpu_slice.devices),
        "chips": len(tpu_slice.devices) // tpu_slice.chip.devices_per_chip,
        "mesh": dict(step.mesh.shape),
        "images": step.images,
        "microbatches": config.microbatches,
        "flops": step.flops,
        "trainable": config.trainable if is_training else "",
        "replicated_bytes": step.replicated_bytes,
        "hbm_bytes": tpu_slice.chip.hbm_bytes,
    }
    figures |= objective.report()
    start, start_cpu = time.perf_counter(), time.process_time()
    try:
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
        figures |= memory(compiled)
        figures["fits"] = figures["peak_bytes"] <= tpu_slice.chip.hbm_bytes
        figures |= _times(step, hlo.Program(compiled.as_text()), tpu_slice, _kernel_share(config))
        _schedule(figures, config)
    if is_training and objective.remat_choices:
        figures |= _knobs(objective, figures)
    return figures


def memory(compiled: jax.stages.Compiled) -> dict[str, float]:
    """Returns the bytes on one device by kind.

    They are those of arguments, results that do not reuse arguments, temporaries, code, and their
    sum.
    """
    stats = compiled.memory_analysis()
    parts = {
        "argument_bytes": stats.argument_size_in_bytes,
        "output_bytes": stats.output_size_in_bytes - stats.alias_size_in_bytes,
        "temporary_bytes": stats.temp_size_in_bytes,
        "code_bytes": stats.generated_code_size_in_bytes,
    }
    return {**parts, "peak_bytes": sum(parts.values())}


def _times(
    step: Step, program: hlo.Program, tpu_slice: Slice, kernel_share: float
) -> dict[str, Any]:
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
    hidden = max(compute, memory_seconds, network)
    exposed = max(compute, memory_seconds, network / 2) + network / 2
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
    data, current, choices = figures["mesh"]["data"], objective.model.remat, objective.remat_choices
    saved = {name: aot.residual_bytes(objective, name, data) for name in choices}
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
    config, choices = objective.config, objective.remat_choices
    current, model = objective.model.remat, figures["mesh"]["model"]
    more = choices[choices.index(current) + 1 :]
    advice = [
        f"{objective.section}.remat={name}: about {gib(peaks[name])}"
        for name in more
        if peaks[name] < peaks[current]
    ]
    rows = config.batch_size // figures["mesh"]["data"] // config.microbatches
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


def gib(size: float) -> str:
    """Returns a number of bytes as text in GiB."""
    return f"{size / chips.GIB:.2f} GiB"


def lines(figures: Mapping[str, Any]) -> list[str]:
    """Returns one report as two columns."""
    rows = [
        (
            "slice",
            f"{figures['topology']}, {figures['devices']} devices as data "
            f"{figures['mesh']['data']} x model {figures['mesh']['model']}",
        ),
        (
            "step",
            f"{figures['step']}, {figures['images']} images, remat {figures.get('remat', '-')}, "
            f"compiled in {figures['compile_cpu_seconds']:.0f} s of CPU",
        ),
        (
            "memory per device",
            f"{gib(figures['peak_bytes'])} of {gib(figures['hbm_bytes'])}: "
            + ("fits" if figures["fits"] else "DOES NOT FIT"),
        ),
    ]
    if "argument_bytes" in figures:
        rows.append(
            (
                "",
                f"arguments {gib(figures['argument_bytes'])}, "
                f"temporaries {gib(figures['temporary_bytes'])}",
            )
        )
    if figures.get("replicated_bytes"):
        rows.append(
            (
                "",
                f"of that {gib(figures['replicated_bytes'])} replicated, which the mesh does not "
                "divide",
            )
        )
    if "step_seconds" in figures:
        rows += [
            (
                "FLOPs",
                f"{figures['flops']:.4g} analytic, "
                f"{figures['executed_flops'] / figures['flops']:.3f} times that executed",
            ),
            *[
                ("", text)
                for text in [key_patterns.counted_flops(figures.get("trainable", ""))]
                if text
            ],
            (
                "collectives",
                ", ".join(
                    f"{kind} {size / 1e9:.3g} GB" for kind, size in figures["collectives"].items()
                )
                or "none",
            ),
            (
                "reductions",
                ", ".join(
                    f"{dtype} {size / 1e9:.3g} GB"
                    for dtype, size in figures.get("reduced_bytes", {}).items()
                )
                or "none",
            ),
            (
                "seconds",
                f"compute {figures['compute_seconds']:.4f}, memory {figures['hbm_seconds']:.4f}, "
                f"interconnect {figures['interconnect_seconds']:.4f}",
            ),
            (
                "overlapped",
                f"{figures['step_seconds']:.4f} s per step, MFU at most {figures['mfu_bound']:.1%}",
            ),
            (
                "half exposed",
                f"{figures['step_seconds_exposed']:.4f} s per step, MFU at most "
                f"{figures['mfu_bound_exposed']:.1%}",
            ),
        ]
    if "chip_hours" in figures:
        rows.append(
            (
                "whole schedule",
                f"{figures['steps']} steps, {figures['chip_hours']:.0f} to "
                f"{figures['chip_hours_exposed']:.0f} chip-hours",
            )
        )
    if "least_remat" in figures:
        rows.append(
            (
                "least remat",
                f"{figures['least_remat'] or 'none of them fits'} (estimated: "
                + ", ".join(
                    f"{name} {gib(size)}" for name, size in figures["remat_peak_bytes"].items()
                )
                + ")",
            )
        )
    if "would_help" in figures:
        rows.append(("over by", gib(figures["over_bytes"])))
        rows += [("would help", text) for text in figures["would_help"]]
    width = max(len(name) for name, _ in rows) + 2
    return [f"{name:{width}}{text}" for name, text in rows]


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
    """Returns a table of the reports (`*.json`) in a directory, sorted by name."""
    rows = [COLUMNS, ("---",) * len(COLUMNS)]
    for path in sorted(pathlib.Path(directory).glob("*.json")):
        figures = read_object(path)
        mesh = figures["mesh"]
        row = [
            f"[{path.stem.split('_')[0]}](aot/{path.name}) {figures['step']}",
            figures["topology"],
            f"{mesh['data']} x {mesh['model']}",
            str(figures["images"]),
            figures.get("remat", "-"),
        ]
        if "step_seconds" in figures:
            row += [
                f"{figures['peak_bytes'] / chips.GIB:.2f} "
                f"({figures['argument_bytes'] / chips.GIB:.2f} + "
                f"{figures['temporary_bytes'] / chips.GIB:.2f})",
                "yes" if figures["fits"] else "no",
                f"{figures['executed_flops'] / figures['flops']:.2f}",
                f"{sum(figures['collectives'].values()) / 1e9:.1f}",
                f"{figures['compute_seconds']:.4f}",
                f"{figures['hbm_seconds']:.4f}",
                f"{figures['interconnect_seconds']:.4f}",
                f"{figures['mfu_bound']:.1%}",
                f"{figures['mfu_bound_exposed']:.1%}",
                f"{figures['chip_hours']:,.0f} to {figures['chip_hours_exposed']:,.0f}"
                if "steps" in figures
                else "-",
            ]
        else:
            row += [f"{figures['peak_bytes'] / chips.GIB:.2f}", "no", *["-"] * 8]
        rows.append((*row, f"{figures['compile_cpu_seconds']:.0f}"))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
