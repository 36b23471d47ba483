"""Checkpoints of a run, written by Orbax: no other module imports it.

A checksum of every array is saved with it, because the storage format detects a file that is too
short, but returns flipped bits as values.
"""

import contextlib
import dataclasses
import json
import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import preservation_policy

from var_jax.errors import UserError
from var_jax.io import atomic, storage_messages
from var_jax.io.array_file import named_leaves
from var_jax.io.system_errors import one_line

log = logging.getLogger(__name__)

LOSS_FILE = "metrics/metrics"  # in a checkpoint, where Orbax looks for it


class Mismatch(UserError):
    """The checkpoint is intact, but it and all older ones are of another model or optimizer."""


class Checkpoints:
    """The checkpoints in a directory (a path or a bucket URL), written while training continues.

    A write that fails raises UserError at the next `save`, `wait` or `close`; earlier checkpoints
    stay as they were. Reading changes nothing in the directory.

    Args:
      keep: number of the newest checkpoints to keep; the one with the lowest held-out loss is kept
        as well.
      keep_steps: steps whose checkpoints are never deleted.
    """

    def __init__(self, directory: epath.PathLike, keep: int, keep_steps: Sequence[int] = ()):
        self._directory = epath.Path(directory)
        self._keep, self._keep_steps = keep, tuple(keep_steps)
        self._writer: ocp.CheckpointManager | None = None
        self._writing: int | None = None
        self._overtaken: list[int] = []

    def save(self, step: int, state: Any, extra: dict, *, wait: bool = False):
        """Starts writing a checkpoint.

        Checkpoints later than the one that was restored are no longer part of this run, and are
        deleted here.

        Args:
          step: number of steps done.
          state: a tree of arrays on any devices; they may be donated once this returns.
          extra: JSON values.
          wait: whether to return only when the checkpoint is on disk.
        Raises:
          UserError: the directory cannot be written, or the save before this one failed.
        """
        self.wait()
        sums = {name: int(value) for name, value in named_leaves(_checksums(state))}
        note = {"extra": extra, "checksums": sums}
        self._writing = step
        with self._reporting():
            if self._writer is None:
                self._writer = self._open_writer()
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

    def _open_writer(self) -> ocp.CheckpointManager:
        best = preservation_policy.BestN(
            get_metric_fn=_negative_loss, n=1, keep_checkpoints_without_metrics=False
        )
        policies = [
            preservation_policy.LatestN(self._keep),
            preservation_policy.CustomSteps(self._keep_steps),
            best,
        ]
        # Without `best_fn`, Orbax neither keeps nor reads metrics.
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
            best_fn=_negative_loss,
            cleanup_tmp_directories=True,
        )
        return ocp.CheckpointManager(self._absolute(), options=options)

    def note_loss(self, step: int, loss: float):
        """Records the held-out loss of a saved checkpoint, by which the best one is kept.

        All processes call it. A state is saved before it is evaluated, so that a preemption during
        the evaluation loses nothing; `restore` reads from this record whether the evaluation was
        completed.

        Raises:
          UserError: the record cannot be written, or the save before it failed.
        """
        self.wait()
        self._writing = step
        with self._reporting():
            if jax.process_index() == 0:
                path = self._absolute() / str(step) / LOSS_FILE
                path.parent.mkdir(exist_ok=True)
                atomic.write(path, json.dumps({"loss": float(loss)}))
            if jax.process_count() > 1:
                multihost_utils.sync_global_devices(f"var_jax: loss of step {step} noted")
            if self._writer is not None:
                self._writer.reload()

    def wait(self):
        """Waits until everything is on disk.

        Raises:
          UserError: a checkpoint could not be written.
        """
        if self._writer is not None:
            with self._reporting():
                self._writer.wait_until_finished()

    def close(self):
        """Waits like `wait`, and ends Orbax's threads."""
        self.wait()
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def steps(self) -> list[int]:
        """Returns the steps with a finished checkpoint, ascending."""
        if not self._directory.is_dir():
            return []
        return sorted(ocp.utils.checkpoint_steps(self._directory))

    def agreed_steps(self) -> list[int]:
        """Returns `steps` as process 0 lists them, the same on every process; all must call it.

        The listings of a shared file system may differ between hosts for a while, and hosts that
        resumed from different steps would not be one run.
        """
        steps = self.steps() if jax.process_index() == 0 else []
        if jax.process_count() == 1:
            return steps
        count = int(multihost_utils.broadcast_one_to_all(np.int32(len(steps))))
        padded = np.resize(np.array(steps, np.int32), count) if steps else np.zeros(count, np.int32)
        return [int(step) for step in multihost_utils.broadcast_one_to_all(padded)]

    def latest_step(self) -> int | None:
        """Returns the newest step with a finished checkpoint, or None."""
        return max(self.steps(), default=None)

    def restore(self, abstract_state: Any, step: int | None = None) -> tuple[Any, dict]:
        """Returns (state, extra) of the newest intact checkpoint, or of `step`.

        `extra["evaluated"]` is True if `note_loss` was called for the state after it was saved.

        Args:
          abstract_state: ShapeDtypeStructs with shardings, which may differ from those that the
            state was saved with.
        Raises:
          UserError: there is no checkpoint, none can be read, or its arrays are not those of
            `abstract_state`.
        """

        def read(path: epath.Path, stored: Any) -> Any:
            _require_same(path, stored, abstract_state)
            if not dataclasses.is_dataclass(abstract_state):
                return _restore_as(path, abstract_state)
            fields = vars(abstract_state)
            if set(fields) == set(stored):
                return _restore_as(path, abstract_state)
            # States of other versions have more or fewer fields: those hold no arrays, as the
            # comparison above ensures.
            common = {name: value for name, value in fields.items() if name in stored}
            empty = dict.fromkeys(set(stored) - set(fields))
            restored = _restore_as(path, common | empty)
            return type(abstract_state)(**fields | {name: restored[name] for name in common})

        intact = self._newest_intact(read, step)
        self._overtaken = [later for later in self.agreed_steps() if later > intact.step]
        has_loss = (self._absolute() / str(intact.step) / LOSS_FILE).exists()
        if jax.process_count() > 1:  # process 0 decides: the others may see its files later
            has_loss = bool(multihost_utils.broadcast_one_to_all(np.int32(has_loss)))
        extra = intact.extra
        if has_loss and "evaluated" in extra:
            extra = {**extra, "evaluated": True}
        return intact.value, extra

    def restore_part(self, part: str, step: int | None = None) -> Any:
        """Returns one field of the saved state ("params", "ema") as nested dicts of numpy arrays.

        Nothing else is read from the checkpoint.

        Raises:
          UserError: there is no checkpoint, none can be read, or it has no such field.
        """

        def read(path: epath.Path, stored: Any) -> Any:
            if not jax.tree.leaves(stored.get(part)):
                raise Mismatch(
                    f"checkpoint {path} has no {part!r}; it has {', '.join(map(repr, stored))}"
                )
            item = {part: jax.tree.map(lambda _: 0, stored[part])}
            args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
            return _restore(
                path, ocp.args.PyTreeRestore(item, restore_args=args, partial_restore=True)
            )

        return self._newest_intact(read, step).value[part]

    def _newest_intact(self, read: Callable, step: int | None) -> "_Intact":
        """Returns the newest checkpoint that can be read, or that of `step`.

        If a newer one is damaged, an older one is returned, and a warning is logged.

        Args:
          read: (path, stored shapes and dtypes) -> the value to return.
        """
        steps = self.agreed_steps()
        if not steps or step not in (None, *steps):
            missing = "no checkpoint" if step is None else f"no checkpoint of step {step}"
            shown = ", ".join(map(str, steps)) or "none"
            raise UserError(f"{missing} in {self._directory}; steps there: {shown}")
        causes = []
        for candidate in reversed(steps) if step is None else [step]:
            path = self._absolute() / str(candidate)
            value, extra, checksums, cause = None, {}, {}, None
            try:
                note = json.loads((path / "note" / "metadata").read_text())
                with storage_messages.silenced():
                    value = read(path, _stored(path))
                extra, checksums = note["extra"], note["checksums"]
            except Mismatch:
                raise
            # A damaged file raises the error of the parser that meets the damage.
            except Exception as error:
                cause = one_line(error)
            # The checksums are a program of all processes together: none may start it alone.
            if _all_agree(intact=not cause):
                cause = _damage(value, checksums)
                if _all_agree(intact=not cause):
                    return _Intact(candidate, value, extra)
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
        """Raises UserError in place of the errors of Orbax and TensorStore for a failed write."""
        try:
            with storage_messages.silenced():
                yield
        # All three are raised for a full disk.
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(
                f"cannot write the checkpoint of step {self._writing} in {self._directory}: "
                f"{one_line(error)}; checkpoints before it are kept"
            ) from error


class _Intact(NamedTuple):
    """A checkpoint that was read: its step, the state or its part, and its extra values."""

    step: int
    value: Any
    extra: dict


def _negative_loss(metrics: dict[str, float]) -> float:
    return -metrics["loss"]


@jax.jit
def _checksums(tree: Any) -> Any:
    """Returns the wrapping sum of each array's bits, independent of sharding and order."""

    def checksum(x):
        width = x.dtype.itemsize
        bits = x if x.dtype == bool else jax.lax.bitcast_convert_type(x, f"uint{8 * min(width, 4)}")
        return jnp.sum(bits.astype(jnp.uint32), dtype=jnp.uint32)

    return jax.tree.map(checksum, tree)


def _damage(tree: Any, checksums: dict[str, int]) -> str | None:
    """Returns a message about the first array whose bits differ from the saved ones, or None."""
    for name, value in named_leaves(_checksums(tree)):
        if int(value) != checksums.get(name):
            return f"the bits of {name} are not those that were saved"
    return None


def _all_agree(*, intact: bool) -> bool:
    """Returns whether every process found its part intact: all must resume from the same step."""
    if jax.process_count() == 1:
        return intact
    return bool(np.all(multihost_utils.process_allgather(np.array(intact))))


def _stored(path: epath.Path) -> Any:
    """Returns the shapes and dtypes of a checkpoint's arrays, as nested dicts."""
    return ocp.PyTreeCheckpointHandler().metadata(path / "state").tree


def _restore_as(path: epath.Path, abstract: Any) -> Any:
    """Restores a tree of ShapeDtypeStructs, each with its sharding."""
    args = jax.tree.map(
        lambda leaf: ocp.ArrayRestoreArgs(
            sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype
        ),
        abstract,
    )
    return _restore(path, ocp.args.PyTreeRestore(abstract, restore_args=args))


def _restore(path: epath.Path, args: Any) -> Any:
    """Restores without Orbax's checkpointer.

    At its barrier the other processes would wait for one that failed.
    """
    return ocp.PyTreeCheckpointHandler().restore(path / "state", args=args)


def _require_same(path: epath.Path, stored: Any, expected: Any):
    """Raises Mismatch if the arrays of two trees differ in name, shape or dtype."""
    expected_arrays, stored_arrays = _shapes_and_dtypes(expected), _shapes_and_dtypes(stored)
    for name in sorted(expected_arrays.keys() | stored_arrays.keys()):
        in_run = expected_arrays.get(name, "not there")
        in_checkpoint = stored_arrays.get(name, "not there")
        if in_run != in_checkpoint:
            raise Mismatch(
                f"checkpoint {path} is of another model or optimizer: {name} is {in_checkpoint} "
                f"in it and {in_run} in this run"
            )


def _shapes_and_dtypes(tree: Any) -> dict[str, tuple]:
    return {
        name: (tuple(leaf.shape), jnp.dtype(leaf.dtype).name) for name, leaf in named_leaves(tree)
    }
