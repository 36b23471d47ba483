"""The platform that JAX_PLATFORMS asks for, and the line for a machine that does not have it."""

import os
import sys

from var_jax.errors import UserError

# Platforms of JAX_PLATFORMS: the device's name in a sentence, and the extra that brings its
# library.
PLATFORMS = {
    "cuda": ("CUDA device", "cuda"),
    "gpu": ("GPU", "cuda"),
    "tpu": ("TPU", "tpu"),
    "rocm": ("ROCm device", ""),
}


def require_devices():
    """Raises UserError if JAX finds no device of the platform that it is to use."""
    import jax

    try:
        jax.devices()
    except Exception as error:
        if line := without_device(error):
            raise UserError(line) from error
        raise


def without_device(error: BaseException) -> str | None:
    """Returns the line for an error of JAX that finds no device of the requested platform.

    JAX raises a RuntimeError, or a bare assertion if the GPU library is installed and the driver is
    missing.
    """
    asked = os.environ.get("JAX_PLATFORMS", "")
    said = isinstance(error, RuntimeError) and str(error).startswith(
        ("Unable to initialize backend", "Unknown backend")
    )
    asserted = isinstance(error, AssertionError) and not error.args and bool(asked)
    if not (said or (asserted and _no_devices())):
        return None
    known = [name for name in asked.split(",") if name in PLATFORMS]
    if not known:
        return (
            f"JAX_PLATFORMS is {asked!r}, which JAX does not know; it must be cpu, cuda or tpu, "
            "or be left unset for what the machine has"
        )
    device, extra = PLATFORMS[known[0]]
    install = f"install the library by pip install 'var-jax[{extra}]', " if extra else ""
    return (
        f"JAX_PLATFORMS is {asked!r}, and JAX finds no {device} here; {install}run on a machine "
        "that has one, or unset JAX_PLATFORMS"
    )


def _no_devices() -> bool:
    """Returns whether JAX has no backend; JAX is asked again, as it hides an error's origin."""
    try:
        sys.modules["jax"].devices()
    except Exception:
        return True
    return False
