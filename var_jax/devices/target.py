"""The kind of device that programs are compiled for, and how they are compiled for a CPU."""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Iterator

import jax
from jax.sharding import Mesh

# XLA's CPU compiler gives products of matrices to YNNPACK, which does 76 GFLOP/s on a core where
# Eigen does 100 (AVX-512, the shapes of d16), and sums to it too, which it does best.
OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}


_for_others = contextvars.ContextVar("_for_others", default=False)


@contextlib.contextmanager
def tracing_for_other_devices() -> Iterator[None]:
    """Makes `is_single_cpu` False while programs for other devices are traced on this machine."""
    token = _for_others.set(True)
    try:
        yield
    finally:
        _for_others.reset(token)


def platform() -> str:
    """Returns "cpu", "gpu" or "tpu": the platform of the mesh that is set, else of this host.

    The mesh may consist of devices that are not attached, for which a program is only compiled.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def is_single_cpu() -> bool:
    """Returns whether programs are compiled for one CPU device, under the mesh that is set."""
    if _for_others.get() or platform() != "cpu":
        return False
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.empty or mesh.size == 1


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
