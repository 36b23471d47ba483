"""Silences the messages of Orbax and TensorStore that repeat an error they raise.

A write that fails is raised, and `var_jax.io.checkpoint` reports it in one line. Orbax logs a stack
trace of the same error, and TensorStore's remaining writes each print another one when they find
Orbax's event loop closed. Silencing changes the state of the process, so nothing is silenced at
import: a command calls `silence` when it starts, and a library function uses `silenced`.
"""

import contextlib
import logging
import sys
import warnings
from collections.abc import Callable, Iterator

SECOND_ERRORS = (
    "Task exception was never retrieved",
    "Future exception was never retrieved",
    "_GatheringFuture exception was never retrieved",
    "unhandled exception during asyncio.run() shutdown",
)
UNAWAITED = "coroutine .*async_serialize.* was never awaited"


def silence() -> Callable[[], None]:
    """Silences the messages in this process, and returns a function that undoes it.

    A second call changes nothing, and the function that it returns undoes nothing.
    """
    # Absl makes its logger with its own class, which finds the caller's file, unless a logger of
    # that name exists already: `getLogger` must not come first.
    import absl.logging  # noqa: F401

    undo = contextlib.ExitStack()
    for name, keep in (("absl", _is_not_of_orbax), ("asyncio", _is_not_second_error)):
        logger = logging.getLogger(name)
        if keep not in logger.filters:
            logger.addFilter(keep)
            undo.callback(logger.removeFilter, keep)
    if not isinstance(sys.unraisablehook, _WithoutClosedLoops):
        hook = _WithoutClosedLoops(sys.unraisablehook)
        sys.unraisablehook = hook
        undo.callback(_restore_hook, hook)
    before = list(warnings.filters)
    warnings.filterwarnings("ignore", UNAWAITED, RuntimeWarning)
    added = warnings.filters[0]
    if added not in before:
        undo.callback(_remove_warning_filter, added)
    return undo.close


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Silences the messages within a `with` block, and leaves the process as it was before."""
    undo = silence()
    try:
        yield
    finally:
        undo()


class _WithoutClosedLoops:
    """Calls the earlier unraisable hook, except for a closed event loop."""

    def __init__(self, hook: Callable):
        self.hook = hook

    def __call__(self, unraisable):
        if str(unraisable.exc_value) != "Event loop is closed":
            self.hook(unraisable)


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname


def _is_not_second_error(record: logging.LogRecord) -> bool:
    """Returns whether a line is about something else than a task that failed after another one.

    The first failure is raised; of several arrays that cannot be read, the rest fail unheard.
    """
    return not record.getMessage().startswith(SECOND_ERRORS)


def _restore_hook(hook: _WithoutClosedLoops):
    """Restores the earlier hook, unless other code has replaced this one since."""
    if sys.unraisablehook is hook:
        sys.unraisablehook = hook.hook


def _remove_warning_filter(added: tuple):
    """Removes one entry, and leaves those that others have added since."""
    with contextlib.suppress(ValueError):
        warnings.filters.remove(added)  # pyright: ignore[reportAttributeAccessIssue]
