"""Checkpoints of a run (Orbax; the only file that knows it), and single files of arrays
(safetensors).

Every array's checksum is kept beside it: the storage format notices a short file, but hands out
flipped bits as values.
"""

import contextlib
import dataclasses
import errno
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import preservation_policy as preserve
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save as serialise

from var_jax.errors import UserError
from var_jax.io import atomic
from var_jax.io.file_kinds import refuse_stand_in

log = logging.getLogger(__name__)

DTYPES = {
    "BF16": jnp.dtype("bfloat16"),
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "BOOL": "bool",
    "U8": "uint8",
    "U32": "uint32",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
}

LOSS_FILE = "metrics/metrics"  # of a checkpoint, as Orbax names it

# TensorStore buries the system's word for it in a long message.
SYSTEM_CAUSES = [
    os.strerror(code)
    for code in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG)
]

# What is raised is reported here in one line: Orbax's log adds a stack trace of it, and
# TensorStore's other writes another one each when they find Orbax's event loop gone.
logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)
logging.getLogger("asyncio").addFilter(
    lambda record: "exception was never retrieved" not in record.getMessage()
)


def _without_closed_loops(hook: Callable) -> Callable:
    return lambda raised: None if str(raised.exc_value) == "Event loop is closed" else hook(raised)


sys.unraisablehook = _without_closed_loops(sys.unraisablehook)
warnings.filterwarnings("ignore", "coroutine .*async_serialize.* was never awaited", RuntimeWarning)


class Mismatch(UserError):
    """A sound checkpoint of another run: older ones are no better."""


class Checkpoints:
    """Checkpoints in a directory (a path or bucket URL), written while training goes on.

    A write that failed raises UserError at the next `save`, `wait` or `close`; earlier checkpoints
    stay as they were. Reading alone changes nothing in the directory.

    Args:
      keep: the newest ones that are kept; the one of the lowest loss is kept besides.
      keep_steps: of these steps all are kept.
    """

    def __init__(self, directory: epath.PathLike, keep: int, keep_steps: Sequence[int] = ()):
        self._directory = epath.Path(directory)
        self._keep, self._keep_steps = keep, tuple(keep_steps)
        self._writer: ocp.CheckpointManager | None = None
        self._writing: int | None = None
        self._overtaken: list[int] = []

    def save(self, step: int, state: Any, extra: dict, wait: bool = False):
        """Starts writing `state` (arrays on any devices; free to be donated on return) and `extra`,
        which JSON takes.

        Checkpoints later than the one that was restored are not of this run any more, and are
        deleted here.

        Args:
          wait: return when it is on disk.
        Raises:
          UserError: the directory cannot be written, or the save before this one failed.
        """
        self.wait()
        sums = {name: int(value) for name, value in _named(_checksums(state))}
        note = {"extra": extra, "checksums": sums}
        self._writing = step
        with self._reporting():
            if self._writer is None:
                best = preserve.BestN(
                    get_metric_fn=_goodness, n=1, keep_checkpoints_without_metrics=False
                )
                kept = [preserve.LatestN(self._keep), preserve.CustomSteps(self._keep_steps), best]
                # Without `best_fn`, metrics are neither kept nor read
                options = ocp.CheckpointManagerOptions(
                    preservation_policy=preserve.AnyPreservationPolicy(kept),
                    best_fn=_goodness,
                    cleanup_tmp_directories=True,
                )
                self._writer = ocp.CheckpointManager(self._absolute(), options=options)
            while self._overtaken:
                self._writer.delete(self._overtaken.pop())
            self._writer.save(
                step,
                force=True,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(state), note=ocp.args.JsonSave(note)
                ),
            )
        if wait:
            self.wait()

    def note_loss(self, step: int, loss: float):
        """Notes the held-out loss of a saved state, by which the best one is kept; all processes
        call it.

        A state is saved before it is evaluated, so that no time that is left is lost to the
        evaluation. `restore` tells by this note whether the evaluation came to its end.

        Raises:
          UserError: it cannot be written, or the save could not.
        """
        self.wait()
        self._writing = step
        with self._reporting():
            if jax.process_index() == 0:
                path = self._absolute() / str(step) / LOSS_FILE  # where Orbax looks for it
                path.parent.mkdir(exist_ok=True)
                atomic.write(path, json.dumps({"loss": float(loss)}))
            if jax.process_count() > 1:
                multihost_utils.sync_global_devices(f"var_jax: loss of step {step} noted")
            if self._writer is not None:
                self._writer.reload()

    def wait(self):
        """Returns when everything is on disk.

        Raises:
          UserError: it could not be written.
        """
        if self._writer is not None:
            with self._reporting():
                self._writer.wait_until_finished()

    def close(self):
        """`wait`, and an end to Orbax's threads."""
        self.wait()
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def steps(self) -> list[int]:
        """Steps with a finished checkpoint, ascending."""
        return (
            sorted(ocp.utils.checkpoint_steps(self._directory)) if self._directory.is_dir() else []
        )

    def agreed_steps(self) -> list[int]:
        """`steps` as process 0 lists them, the same on every process, all of which must ask.

        Listings of a file system that several hosts share may lag behind one another, and hosts
        that resumed from different steps would not be one run.
        """
        steps = self.steps() if jax.process_index() == 0 else []
        if jax.process_count() == 1:
            return steps
        count = int(multihost_utils.broadcast_one_to_all(np.int32(len(steps))))
        padded = np.resize(np.array(steps, np.int32), count) if steps else np.zeros(count, np.int32)
        return [int(step) for step in multihost_utils.broadcast_one_to_all(padded)]

    def latest_step(self) -> int | None:
        return max(self.steps(), default=None)

    def restore(self, abstract_state: Any, step: int | None = None) -> tuple[Any, dict]:
        """(state, extra) of the newest sound checkpoint, or of `step`.

        `extra["evaluated"]` is True where the loss of the state was noted after it was saved.

        Args:
          abstract_state: ShapeDtypeStructs with shardings, which need not be those that it was
            saved with.
        Raises:
          UserError: there is none, none can be read, or its arrays are not those of
            `abstract_state`.
        """

        def whole(path: epath.Path, wanted: Any) -> Any:
            args = jax.tree.map(
                lambda a: ocp.ArrayRestoreArgs(
                    sharding=a.sharding, global_shape=a.shape, dtype=a.dtype
                ),
                wanted,
            )
            return _restore(path, ocp.args.PyTreeRestore(wanted, restore_args=args))

        def read(path: epath.Path, stored: Any) -> Any:
            _require_same(path, stored, abstract_state)
            if not dataclasses.is_dataclass(abstract_state) or set(vars(abstract_state)) <= set(
                stored
            ):
                return whole(path, abstract_state)
            # Of fields that came to the state after the checkpoint was written, none holds an
            # array.
            held = whole(
                path,
                {name: value for name, value in vars(abstract_state).items() if name in stored},
            )
            return type(abstract_state)(**vars(abstract_state) | held)

        found, state, extra = self._newest_sound(read, step)
        self._overtaken = [later for later in self.agreed_steps() if later > found]
        noted = (self._absolute() / str(found) / LOSS_FILE).exists()
        if jax.process_count() > 1:  # the word of one of them: files may be seen later elsewhere
            noted = bool(multihost_utils.broadcast_one_to_all(np.int32(noted)))
        return state, {**extra, "evaluated": True} if noted and "evaluated" in extra else extra

    def restore_part(self, part: str, step: int | None = None) -> Any:
        """One field of the saved state ("params", "ema") as nested dicts of numpy arrays; nothing
        else is read.

        Raises:
          UserError: there is no checkpoint, none can be read, or it has no such part.
        """

        def read(path: epath.Path, stored: Any) -> Any:
            if not jax.tree.leaves(stored.get(part)):
                raise Mismatch(
                    f"checkpoint {path} has no {part!r}; it has {', '.join(map(repr, stored))}"
                )
            wanted = {part: jax.tree.map(lambda _: 0, stored[part])}
            args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
            return _restore(
                path, ocp.args.PyTreeRestore(wanted, restore_args=args, partial_restore=True)
            )

        return self._newest_sound(read, step)[1][part]

    def _newest_sound(self, read: Callable, step: int | None) -> tuple[int, Any, dict]:
        """(step, what `read` returns, extra), of an older checkpoint with a warning when a newer
        one is damaged."""
        steps = self.agreed_steps()
        if not steps or step not in (None, *steps):
            wanted = "no checkpoint" if step is None else f"no checkpoint of step {step}"
            raise UserError(
                f"{wanted} in {self._directory}; steps there: {', '.join(map(str, steps)) or 'none'}"
            )
        causes = []
        for candidate in reversed(steps) if step is None else [step]:
            path = self._absolute() / str(candidate)
            value, extra, sums, cause = None, {}, {}, None
            try:
                note = json.loads((path / "note" / "metadata").read_text())
                value, extra, sums = read(path, _stored(path)), note["extra"], note["checksums"]
            except Mismatch:
                raise
            except (
                Exception
            ) as error:  # damaged files raise whatever the parser of the damaged place raises
                cause = _one_line(error)
            # Checksums are a program of all processes together: none may start it alone.
            if _agreed(not cause):
                cause = _damage(value, sums)
                if _agreed(not cause):
                    return candidate, value, extra
            causes.append(f"step {candidate}: {cause or 'another process could not read it'}")
            if step is None and candidate != steps[0]:
                log.warning(
                    "checkpoint of step %d in %s cannot be read (%s); trying the one before",
                    candidate,
                    self._directory,
                    cause,
                )
        raise UserError(
            f"no checkpoint in {self._directory} can be read ({'; '.join(causes)}); "
            "restore the directory from a copy, or start in an empty one"
        )

    def _absolute(self) -> epath.Path:
        return self._directory.resolve() if "://" not in str(self._directory) else self._directory

    @contextlib.contextmanager
    def _reporting(self):
        try:
            yield
        except (
            OSError,
            ValueError,
            RuntimeError,
        ) as error:  # Orbax and TensorStore raise all three for a full disk
            raise UserError(
                f"cannot write the checkpoint of step {self._writing} in {self._directory}: "
                f"{_one_line(error)}; checkpoints before it are kept"
            ) from error


def _goodness(metrics: dict[str, float]) -> float:
    return -metrics["loss"]


def save_arrays(path: epath.PathLike, tree: Any):
    """Nested dicts of arrays to one safetensors file with keys "a/b/c", whole or not at all.

    Raises:
      UserError: the file cannot be written.
    """
    path = epath.Path(path)
    flat = {name: np.ascontiguousarray(value) for name, value in _named(tree)}
    try:
        atomic.write(path, [serialise(flat)])
    except OSError as error:
        raise UserError(f"cannot write {path}: {_one_line(error)}") from error


def load_arrays(path: epath.PathLike) -> dict:
    """The nested dicts of numpy arrays that `save_arrays` wrote.

    Raises:
      UserError: the file is missing, truncated or of another kind.
    """
    refuse_stand_in(path, "safetensors")
    try:
        flat = deserialize(
            epath.Path(path).read_bytes()
        )  # the library's own loader has no bfloat16
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} does not read as safetensors: {_one_line(error)}") from error
    tree: dict = {}
    for name, value in flat:
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = np.frombuffer(value["data"], DTYPES[value["dtype"]]).reshape(value["shape"])
    return tree


def _named(tree: Any) -> list[tuple[str, Any]]:
    """("a/b/0", leaf) for every leaf, whether it lies in dicts, tuples or dataclasses."""
    return [
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    ]


@jax.jit
def _checksums(tree: Any) -> Any:
    """The wrapping sum of an array's bits, which no sharding and no order of summation changes."""

    def one(x):
        width = x.dtype.itemsize
        bits = x if x.dtype == bool else jax.lax.bitcast_convert_type(x, f"uint{8 * min(width, 4)}")
        return jnp.sum(bits.astype(jnp.uint32), dtype=jnp.uint32)

    return jax.tree.map(one, tree)


def _damage(tree: Any, expected: dict[str, int]) -> str | None:
    for name, value in _named(_checksums(tree)):
        if int(value) != expected.get(name):
            return f"the bits of {name} are not those that were saved"
    return None


def _agreed(sound: bool) -> bool:
    """Whether every process found its part sound: all must go back to the same step."""
    if jax.process_count() == 1:
        return sound
    return bool(np.all(multihost_utils.process_allgather(np.array(sound))))


def _one_line(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    causes = [cause for cause in SYSTEM_CAUSES if cause in text] or text.strip().splitlines()
    return causes[0][:300] if causes else type(error).__name__


def _stored(path: epath.Path) -> Any:
    """Shapes and dtypes of what a checkpoint holds, as nested dicts."""
    return ocp.PyTreeCheckpointHandler().metadata(path / "state").tree


def _restore(path: epath.Path, args: Any) -> Any:
    """Without Orbax's checkpointer, at whose barrier sound processes would wait for one that
    failed."""
    return ocp.PyTreeCheckpointHandler().restore(path / "state", args=args)


def _require_same(path: epath.Path, stored: Any, wanted: Any):
    """Raises Mismatch when two trees differ in their arrays."""
    ours, theirs = (
        {name: (tuple(leaf.shape), jnp.dtype(leaf.dtype).name) for name, leaf in _named(tree)}
        for tree in (wanted, stored)
    )
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            here, there = (tree.get(name, "not there") for tree in (ours, theirs))
            raise Mismatch(
                f"checkpoint {path} is of another model or optimizer: {name} is {there} in it and {here} "
                "in this run"
            )
