"""What a compiled step depends on besides a run's settings: versions, sources and environment."""

import functools
import hashlib
import importlib.metadata
import os
import platform
from collections.abc import Sequence
from pathlib import Path

import jax

# Folders of this package whose code a compiled step is made of.
CODE = ("adapters", "config", "devices", "models", "objectives", "ops", "pretrained", "train")
# Libraries that trace a step. Those of its compiler depend on the platform.
LIBRARIES = ("jax", "jaxlib", "flax", "optax")
# Flags of XLA that no program depends on: where it is dumped, and the number of CPU devices, which
# is compared as such.
NO_PROGRAM_FLAGS = ("xla_dump", "xla_force_host_platform_device_count")
# Options of JAX, also set by variables such as JAX_ENABLE_X64, that change traced programs.
JAX_OPTIONS = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
    "jax_numpy_dtype_promotion",
    "jax_use_shardy_partitioner",
    "jax_disable_most_optimizations",
)


def versions(kind: str) -> dict[str, str]:
    """Returns the versions of the libraries that trace and compile a step for a platform.

    Args:
      kind: the platform, "cpu", "gpu" or "tpu".
    """
    names = (*LIBRARIES, *["libtpu"] * (kind == "tpu"))
    return {name: importlib.metadata.version(name) for name in names}


@functools.cache
def sources(folders: Sequence[str] = CODE) -> str:
    """Returns a fingerprint of the code in folders of this package.

    A checkout may change at any time, whatever version the package has.
    """
    root, digest = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(file for folder in folders for file in (root / folder).glob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def environment(kind: str) -> dict[str, str]:
    """Returns the settings of compilers and of JAX that a process has beside a run's config.

    These are the flags in XLA_FLAGS, for a TPU also those in LIBTPU_INIT_ARGS, and the options of
    JAX that change a traced program, each by its own name.

    Args:
      kind: the platform, "cpu", "gpu" or "tpu".
    """
    result = {}
    for variable in ("XLA_FLAGS", *["LIBTPU_INIT_ARGS"] * (kind == "tpu")):
        for flag in os.environ.get(variable, "").split():
            name, _, value = flag.lstrip("-").partition("=")
            if not name.startswith(NO_PROGRAM_FLAGS):
                result[f"{variable} {name}"] = value or "true"
    options = {name: jax.config.values.get(name) for name in JAX_OPTIONS}
    return result | {name.upper(): str(value) for name, value in options.items()}


def processor() -> str:
    """Returns the processor's kind and a fingerprint of its instructions.

    A program that was compiled for more of them than a processor has would end with SIGILL.
    """
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine()} {hashlib.sha256(flags.encode()).hexdigest()[:12]}"
