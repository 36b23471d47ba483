"""Options of XLA's compiler for programs on a CPU."""

import functools
import os

import jax
from jax.sharding import Mesh

Options = dict[str, str | int | bool]

# XLA's CPU compiler gives products of matrices to YNNPACK, which does 76 GFLOP/s on a core where
# Eigen does 100 (AVX-512, the shapes of d16), and sums to it too, which it does best.
OPTIONS: Options = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}
# One thread per device. With more, operations overlap, and XLA (jaxlib 0.10.2) may start a
# collective that follows a loop before those inside it; devices that have entered different
# collectives wait for each other until XLA ends the process.
IN_ORDER: Options = {"xla_cpu_multi_thread_eigen": False}
# LLVM's first level of optimization: a third of the time of its last one for programs that draw
# random numbers, which are as fast then and give the same bits.
RUN_ONCE: Options = {"xla_backend_optimization_level": 1}


def options_of_step(mesh: Mesh) -> Options | None:
    """Returns the options of `jax.jit` for a mesh's training step; None for the compiler's own.

    Those of a single device are of an experimental kind, which another version of the compiler may
    not know.
    """
    if mesh.size > 1 or mesh.devices.flat[0].platform != "cpu":
        return options_of_collectives(mesh)
    return OPTIONS if _is_known() else None


def options_of_collectives(mesh: Mesh) -> Options | None:
    """Returns the options of `jax.jit` for a program with collectives over a mesh.

    Several CPU devices, of one process or more, run its collectives in the same order with them;
    None elsewhere.
    """
    several_cpus = mesh.size > 1 and mesh.devices.flat[0].platform == "cpu"
    return IN_ORDER if several_cpus else None


def options_of_run_once(mesh: Mesh) -> Options | None:
    """Returns the options of `jax.jit` for a program that takes longer to compile than to run.

    None stands for the compiler's own options, among them those of XLA_FLAGS, which come first.
    """
    chosen = any(name in os.environ.get("XLA_FLAGS", "") for name in RUN_ONCE)
    if mesh.devices.flat[0].platform != "cpu":
        return None
    return {**(options_of_collectives(mesh) or {}), **({} if chosen else RUN_ONCE)} or None


@functools.cache
def _is_known() -> bool:
    """Returns whether the compiler takes `OPTIONS`."""
    try:
        jax.jit(lambda: 0, compiler_options=OPTIONS).lower().compile()
    except Exception:  # the compiler has no type of its own for this
        return False
    return True
