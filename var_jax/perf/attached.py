"""The training step compiled for the devices of this machine, for `var-jax aot --topology here`."""

import time
from collections.abc import Callable
from typing import Any

import jax

from var_jax.config.train import TrainConfig
from var_jax.objectives import registry
from var_jax.perf import aot, uncached
from var_jax.train import mesh_choice

HERE = "here"  # as a topology


def report(
    config: TrainConfig, keep: Callable[[aot.Step, jax.stages.Compiled], None] | None = None
) -> dict[str, Any]:
    """Compiles a config's training step for all devices of this process.

    Args:
      keep: called with the step and its compiled program.
    Returns:
      plain values for JSON; bytes are per device, and `flops` over all devices. Bounds of time,
      which `aot_report` has for TPU slices, need the peaks of a known chip.
    Raises:
      UserError: the mesh does not divide the model or the batch.
    """
    objective, devices = registry.with_frozen_shapes(config), jax.devices()
    step = aot.lower_train_step(objective, mesh_choice.choose(objective, devices))
    start, start_cpu = time.perf_counter(), time.process_time()
    with uncached.compilation():
        compiled = step.lowered.compile()
    figures = {
        "topology": HERE,
        "device_kind": devices[0].device_kind,
        "step": "train",
        "devices": len(devices),
        "mesh": dict(step.mesh.shape),
        "policy": step.objective.config.mesh.policy,
        "replicas": step.mesh.shape.get("replica", 1),
        "remat": step.objective.model.remat,
        "images": step.images,
        "microbatches": config.microbatches,
        "flops": step.flops,
        "compile_seconds": time.perf_counter() - start,
        "compile_cpu_seconds": time.process_time() - start_cpu,
        **aot.memory(compiled),
    }
    if keep is not None:
        keep(step, compiled)
    return figures


def lines(figures: dict[str, Any]) -> list[str]:
    """Returns the figures as lines for a terminal."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in figures["mesh"].items())
    return [
        f"{figures['devices']} devices of this machine ({figures['device_kind']}) as {mesh}, "
        f"{figures['images']} images per step",
        f"settings  policy {figures['policy']}, replicas {figures['replicas']}, remat "
        f"{figures['remat']}, microbatches {figures['microbatches']}",
        f"memory    {figures['peak_bytes'] / 2**30:.2f} GiB per device",
        f"compiled  in {figures['compile_cpu_seconds']:.0f} s of processor time",
    ]
