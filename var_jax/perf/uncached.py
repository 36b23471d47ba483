"""Compilation that neither reads nor writes the folder of compiled programs."""

import contextlib
from collections.abc import Iterator

import jax
from jax.experimental.compilation_cache import compilation_cache


@contextlib.contextmanager
def compilation() -> Iterator[None]:
    """A context in which compilation leaves that folder alone.

    Use it for reports of the compiler's work and for programs that are saved: on a CPU, one that
    was read from the folder is saved without its machine code.

    It holds for the process, so that one thread may use it at a time, and not for programs that the
    process has in memory. JAX asks once per process whether it uses the folder, so that the answer
    is taken back before and after.
    """
    before = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()
