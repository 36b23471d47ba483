"""The kind of device that programs are compiled for."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

import jax

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
