"""Options of XLA's compiler for programs on a CPU."""

import functools

import jax
from jax.sharding import Mesh

# XLA's CPU compiler gives products of matrices to YNNPACK, which does 76 GFLOP/s on a core where
# Eigen does 100 (AVX-512, the shapes of d16), and sums to it too, which it does best.
OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}


def compiler_options(mesh: Mesh) -> dict[str, str] | None:
    """Returns the options of `jax.jit` for a mesh's programs; None for the compiler's own.

    The options are of an experimental kind, which another version of the compiler may not know.
    """
    devices = mesh.devices.flat
    if mesh.size > 1 or devices[0].platform != "cpu":
        return None
    return OPTIONS if _is_known() else None


@functools.cache
def _is_known() -> bool:
    """Returns whether the compiler takes `OPTIONS`."""
    try:
        jax.jit(lambda: 0, compiler_options=OPTIONS).lower().compile()
    except Exception:  # the compiler has no type of its own for this
        return False
    return True
