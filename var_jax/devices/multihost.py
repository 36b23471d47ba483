"""Exchanges between the processes of a run: texts, errors, and settings that must be the same."""

import json
import socket
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import jax
import numpy as np
from jax.experimental import multihost_utils

from var_jax.errors import RunFailed, UserError

MAX_TEXT_LENGTH = 500  # characters that one process contributes to an error message
MAX_PROCESSES_SHOWN = 4

Result = TypeVar("Result")


def is_multiprocess() -> bool:
    """Returns whether this process is one of several."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def processes_on_host() -> int:
    """Returns how many processes of this run share this host, and so its memory.

    Every process has to call it.
    """
    host = socket.gethostname()
    return gather_texts(host).count(host)


def require_same(
    what: str, mine: Mapping[str, Any], differences: Callable[[Any, Any], list[str]], remedy: str
):
    """Raises UserError if a process of a run has a description that differs from process 0's.

    Call it in every process for things whose differences would silently spoil a run, such as the
    settings. A single process checks nothing.

    Args:
      what: the name of the thing, for the message.
      mine: this process's description of it, as a JSON value.
      differences: takes the descriptions of process 0 and of this process, and returns the
        differences in words.
      remedy: the correction, for the message.
    Raises:
      UserError: the descriptions differ (on all processes, with the same line).
    """
    if not is_multiprocess():
        return
    own = json.dumps(mine)
    first = broadcast_text(own)
    different = differences(json.loads(first), json.loads(own)) if own != first else []
    texts = gather_texts("; ".join(different)[:MAX_TEXT_LENGTH])
    hosts = gather_texts(socket.gethostname()[:MAX_TEXT_LENGTH])
    wrong = [i for i, text in enumerate(texts) if text]
    if not wrong:
        return
    shown = [f"process {i} (host {hosts[i]}): {texts[i]}" for i in wrong[:MAX_PROCESSES_SHOWN]]
    if len(wrong) > MAX_PROCESSES_SHOWN:
        shown.append(f"and {len(wrong) - MAX_PROCESSES_SHOWN} processes more")
    raise UserError(
        f"{what} of process 0 (host {hosts[0]}) and others differ: {' | '.join(shown)}; {remedy}"
    )


def run_on_all(work: Callable[[], Result]) -> Result:
    """Runs `work` on every process and returns this process's own result.

    A UserError or RunFailed on any process is raised on all of them. Use it for work in which no
    process waits for another, such as reading files: without it the others would continue, and wait
    in vain for the one that failed. No other exception is exchanged; the process that has one
    leaves the group, and the others end when they notice its loss.

    Raises:
      UserError, RunFailed: `work` raised it on any process.
    """
    result, mistake = None, None
    try:
        result = work()
    except (UserError, RunFailed) as error:
        if not is_multiprocess():
            raise
        mistake = error
    # Only success is the empty text, whatever the error says.
    message = "" if mistake is None else str(mistake) or type(mistake).__name__
    texts = gather_texts(message[:MAX_TEXT_LENGTH])
    failed = [i for i, text in enumerate(texts) if text]
    if failed:
        kinds = gather_texts("RunFailed" if isinstance(mistake, RunFailed) else "")
        if mistake is not None:
            raise mistake
        kind = RunFailed if kinds[failed[0]] else UserError
        raise kind(f"process {failed[0]} has ended: {texts[failed[0]]}")
    return cast(Result, result)


def broadcast_text(text: str) -> str:
    """Returns process 0's text on every process."""
    if not is_multiprocess():
        return text
    content = np.frombuffer(text.encode(), np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    padded = np.zeros(length, np.uint8)
    if jax.process_index() == 0:
        padded[:] = content
    received = np.asarray(multihost_utils.broadcast_one_to_all(padded))
    return received.astype(np.uint8).tobytes().decode()


def gather_texts(text: str) -> list[str]:
    """Returns the texts of all processes, ordered by process index, on every process."""
    if not is_multiprocess():
        return [text]
    content = np.frombuffer(text.encode(), np.uint8)
    lengths = np.ravel(multihost_utils.process_allgather(np.int32(len(content))))
    padded = np.zeros(max(int(lengths.max()), 1), np.uint8)
    padded[: len(content)] = content
    rows = np.asarray(multihost_utils.process_allgather(padded)).astype(np.uint8)
    return [row[:length].tobytes().decode() for row, length in zip(rows, lengths, strict=True)]
