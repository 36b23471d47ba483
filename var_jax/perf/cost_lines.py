"""The figures of `run_costs` as text."""

from collections.abc import Iterator, Mapping
from typing import Any

from var_jax.config import key_patterns
from var_jax.devices.chips import GIB
from var_jax.perf import aot_lines
from var_jax.scaling import published_log

Row = tuple[str, str]
MIB = 2**20
LOSSES_IN_A_LINE = 4
WIDTH = 19  # of the column of names


def lines(figures: Mapping[str, Any]) -> list[str]:
    """Returns the report of `run_costs.report` as two columns."""
    sections = (_run, _memory, _sampling, _hours, _disk, _expected)
    rows = [row for section in sections for row in section(figures)]
    return [f"{name:{WIDTH}}{text}" for name, text in rows]


def _size(size: float) -> str:
    """Returns a number of bytes as text, small ones in MiB."""
    return aot_lines.gib(size) if size >= 0.1 * GIB else f"{size / MIB:.2f} MiB"


def _run(figures: Mapping[str, Any]) -> Iterator[Row]:
    params = figures["params"]
    yield "run", f"{figures['config']}: {figures['model']}"
    yield "parameters", f"{params['total']:,}, of which {params['body']:,} in the body"
    epochs = "; --images N gives the epochs"
    if "epochs" in figures:
        epochs = f", {figures['epochs']:.4g} epochs of {figures['epoch_images']:,}"
    yield "steps", f"{figures['steps']:,} of {figures['images']} images{epochs}"
    yield (
        "FLOPs",
        f"{figures['flops_per_image']:.4g} per image, {figures['flops']:.4g} per step, "
        f"{figures['train_flops']:.4g} in all (exact)",
    )
    if figures["encoding_flops"]:
        yield "", f"{figures['encoding_flops']:.4g} more per step to encode the images"
    if counted := key_patterns.counted_flops(figures["trainable"]):
        yield "", counted


def _memory(figures: Mapping[str, Any]) -> Iterator[Row]:
    mesh = " x ".join(f"{axis} {size}" for axis, size in figures["mesh"].items())
    if "chip" in figures:
        share = figures["usable_bytes"] / figures["hbm_bytes"]
        by_default = f", of which JAX takes {share:.0%} by default" if share < 1 else ""
        yield (
            "chips",
            f"{figures['devices']} devices of {figures['chip']} as {mesh}, "
            f"{_size(figures['hbm_bytes'])} each{by_default}",
        )
        yield "", f"policy {figures['policy']}, replicas {figures['replicas']}"
        verdict = "fits" if figures["fits"] else "DOES NOT FIT"
    else:
        verdict = "on one device; --chip says whether it fits"
    yield (
        "memory, estimated",
        f"{_size(figures['peak_bytes'])} per device with {figures['dtype']}, remat "
        f"{figures['remat']}, microbatches {figures['microbatches']}: {verdict}",
    )
    encoding = figures["encoding_bytes"]
    yield (
        "",
        f"state {_size(figures['state_bytes'])}, "
        f"gradients {_size(figures['gradient_bytes'])}, "
        f"frozen weights {_size(figures['frozen_bytes'])}",
    )
    if encoding:
        yield "", f"encoding the batch before the step {_size(encoding)}"
    for text in figures.get("would_help", []):
        yield "would help", text
    for dtype, policies in figures["training"].items():
        for remat, fit in policies.items():
            yield f"  {dtype}", f"remat {remat:7} {_size(fit['peak_bytes']):>13}{_fit(fit)}"


def _fit(fit: Mapping[str, Any]) -> str:
    if "fits" not in fit:
        return ""
    most = f"batch at most {fit['most_images']}" if fit["most_images"] else "no batch fits"
    return f"  {'fits' if fit['fits'] else 'does not fit'}, {most}"


def _sampling(figures: Mapping[str, Any]) -> Iterator[Row]:
    if "sampling" not in figures:
        return
    counted = "FLOPs per image, with guidance and the decoder"
    yield "sampling", f"{figures['generation_flops']:.4g} {counted}"
    for dtype, memory in figures["sampling"].items():
        most = memory.get("most_images_per_device")
        yield (
            f"  {dtype}",
            f"weights {_size(memory['weights_bytes'])}, with {memory['images_per_device']} images "
            f"per device {_size(memory['peak_bytes'])}"
            + ("" if most is None else f"; at most {most} images"),
        )


def _hours(figures: Mapping[str, Any]) -> Iterator[Row]:
    if "hours" not in figures:
        return
    yield (
        "time",
        f"{_number(figures['hours'])} hours, {_number(figures['chip_hours'])} chip-hours, "
        f"{figures['step_seconds']:.3g} s per step, at an assumed MFU of {figures['mfu']:.0%}",
    )
    if figures["encoding_chip_hours"]:
        share = figures["encoding_chip_hours"] / figures["chip_hours"]
        yield "", f"{share:.0%} of it to encode images"
    if figures["uncounted_networks"]:
        yield "", "networks of the losses, such as a discriminator, are not counted"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _disk(figures: Mapping[str, Any]) -> Iterator[Row]:
    yield (
        "disk",
        f"{_size(figures['checkpoint_bytes'])} per checkpoint, {figures['keep_checkpoints']} are "
        "kept",
    )
    if size := figures.get("token_cache_bytes_per_view"):
        yield "", f"{_size(size)} of records per view in a token cache, whose steps encode nothing"


def _expected(figures: Mapping[str, Any]) -> Iterator[Row]:
    expected = figures["expected"]
    if expected is None:
        if "not_comparable" in figures:
            yield "expected loss", f"no published log: {figures['not_comparable']}"
        return
    yield "expected", f"a public log of d{published_log.DEPTH} (epochs from 0), training loss:"
    losses = [f"epoch {row['epoch']} {row['loss']:.3f}" for row in expected["training"]]
    for first in range(0, len(losses), LOSSES_IN_A_LINE):
        yield "", ", ".join(losses[first : first + LOSSES_IN_A_LINE])
    for row in expected["validation"]:
        yield (
            "",
            f"validation after {row['passes']} epochs: loss {row['loss']:.3f} (last scale "
            f"{row['loss_last']:.3f}), accuracy {row['accuracy']:.2%} (last scale "
            f"{row['accuracy_last']:.2%})",
        )
    for note in expected["caveats"]:
        yield "", note
