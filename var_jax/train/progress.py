"""A run's reports of its progress: metrics.jsonl, TensorBoard, W&B, status.json, a progress bar."""

import contextlib
import datetime
import json
import math
import sys
import time
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from etils import epath
from jaxtyping import UInt8
from tqdm import tqdm

from var_jax.errors import UserError
from var_jax.io import goodput_record, run_records
from var_jax.io.json import read_object_or_none
from var_jax.train.goodput import Goodput
from var_jax.train.metric_files import open_files
from var_jax.train.tensorboard_files import BucketBoard, open_board
from var_jax.train.wandb_board import WandbBoard

QUIET_SECONDS = 10.0


class MetricWriter:
    """Writes a run's metrics and status into `workdir`.

    One process of a run does so (`enabled`); in the others every method does nothing.

    Records of steps past `resume_step` come from a run that was cut off after its last checkpoint:
    they are dropped, because the run takes those steps again.

    Args:
      steps: length of the whole run.
      resume_step: steps done before.
      goodput: the clock of this start, whose shares status.json has.
      wandb_config: the plain config of a run that logs to W&B, with its `wandb_project`.
    Raises:
      UserError: the directory cannot be written (here and in every method).
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        *,
        steps: int,
        resume_step: int = 0,
        goodput: Goodput | None = None,
        wandb_config: Mapping[str, Any] | None = None,
        enabled: bool = True,
    ):
        self._enabled = enabled
        if not enabled:
            return
        self._workdir = epath.Path(workdir)
        self._steps, self._goodput = steps, goodput
        self._reported: dict[str, Any] = {}
        self._step, self._loss, self._held_out_loss = resume_step, None, None
        self._seen, self._first = resume_step, None
        self._clock, self._seconds_a_step, self._intervals = time.monotonic(), math.nan, 0
        self._images_a_second = math.nan
        self._spoke = -math.inf
        with self._reporting():
            self._workdir.mkdir(parents=True, exist_ok=True)
            before = self._status_before()
            self._restarts = self._restarts_after(before)
            if goodput is not None:
                goodput.follow(before, resume_step)
            self._files, self._kept = open_files(self._workdir, resume_step)
            self._held_out_loss = self._last_held_out_loss()
            self._board = open_board(self._workdir, resume_step + 1)
            self._boards: list[Any] = [self._board]
            self._wandb: WandbBoard | None = None
            if wandb_config:
                project = wandb_config["wandb_project"]
                self._wandb = WandbBoard(self._workdir, project, wandb_config)
                self._boards.append(self._wandb)
        self._bar = tqdm(
            total=steps,
            initial=resume_step,
            unit="step",
            disable=not sys.stderr.isatty(),
            dynamic_ncols=True,
        )
        self.status("running", at_once=True)

    def write(self, step: int, split: Literal["train", "val"], values: Mapping[str, Any]):
        """Writes one record; a split's step that is there already stays as it is.

        Args:
          values: scalars, or an array with one value per scale; numbers that are not finite become
            null.
        """
        if not self._enabled or (step, split) in self._kept:
            return
        values = {name: np.asarray(value).tolist() for name, value in values.items()}
        if split == "val" and "loss" in values:
            self._held_out_loss = values["loss"]
        record = {
            "step": step,
            "split": split,
            **{name: _finite(value) for name, value in values.items()},
        }
        self._kept.add((step, split))
        with self._reporting():
            self._files.record(json.dumps(record, allow_nan=False))
        for board in self._boards:
            for name, value in values.items():
                if isinstance(value, list):
                    for k, one in enumerate(value):
                        board.add_scalar(f"{split}/{name}/scale_{k}", one, step)
                else:
                    board.add_scalar(f"{split}/{name}", value, step)
            board.flush()
        if split == "val" and "loss" in values:
            psnr = f", PSNR {values['psnr']:.2f} dB" if "psnr" in values else ""
            self._say(f"step {step}/{self._steps}, held-out loss {values['loss']:.4g}{psnr}")
            self.status("running")  # a picture or a checkpoint may take minutes from here

    def evaluating(self, step: int):
        """Prints that the held-out images are measured next, which may take minutes."""
        if self._enabled and (step, "val") not in self._kept:
            self._say(f"step {step}/{self._steps}, evaluating on the held-out images")

    def skipped(self, step: int, metrics: Mapping[str, Any], count: int):
        """Prints that a step changed nothing, because its loss or gradient has a spike.

        Args:
          metrics: those of the step.
          count: number of steps skipped so far.
        """
        if self._enabled:
            loss, norm = (float(metrics[name]) for name in ("loss", "grad_norm"))
            self._say(
                f"step {step}/{self._steps} skipped: loss {loss:.4g}, gradient norm {norm:.4g}; "
                f"{count} skipped so far"
            )

    def image(self, step: int, name: str, image: UInt8[np.ndarray, "h w c"]):
        """Shows a picture in TensorBoard, and in W&B."""
        for board in self._boards if self._enabled else ():
            board.add_image(name, np.asarray(image), step, dataformats="HWC")
            board.flush()

    def advance(self, step: int, loss: float):
        """Advances the progress bar; without a terminal, prints a line.

        It prints one for the first step, and then one every ten seconds at most.

        Call it at every step; it writes no file.
        """
        if not self._enabled or step <= self._seen:
            return
        now = time.monotonic()
        self._seen, self._first = step, self._first or (step, now)
        pace = self._pace(now)
        rate = f"{self._images_a_second:.4g} images/s"
        if math.isnan(self._images_a_second):
            rate = f"{1 / pace:.3g} steps/s" if math.isfinite(pace) else "compiled"
        self._bar.set_postfix_str(f"loss {loss:.4g}, {rate}", refresh=False)
        self._bar.update(step - self._bar.n)
        if self._bar.disable and (now - self._spoke >= QUIET_SECONDS or step == self._steps):
            self._spoke = now
            seconds = (self._steps - step) * pace if step < self._steps else 0.0
            left = f", {tqdm.format_interval(seconds)} left" if math.isfinite(seconds) else ""
            self._say(f"step {step}/{self._steps}, loss {loss:.4g}, {rate}{left}")

    def progress(self, step: int, loss: float, images_per_s: float):
        """Advances the progress as `advance` does, and updates status.json.

        Args:
          images_per_s: rate of training, without evaluation; the remaining time includes
            evaluation.
        """
        if not self._enabled or step <= self._step:
            return
        now = time.monotonic()
        pace = max(now - self._clock, 1e-9) / (step - self._step)
        if not self._intervals and self._first is not None and step > self._first[0]:
            pace = max(now - self._first[1], 1e-9) / (step - self._first[0])
        # The first interval includes compilation, which says nothing about the remaining time.
        self._seconds_a_step = (
            pace if self._intervals < 2 else 0.7 * self._seconds_a_step + 0.3 * pace
        )
        self._clock, self._intervals, self._step, self._loss = (
            now,
            self._intervals + 1,
            step,
            float(loss),
        )
        self._images_a_second = images_per_s
        self.advance(step, loss)
        self.status("running")

    def status(
        self, state: run_records.ReportedState, *, diverged: str = "", at_once: bool = False
    ):
        """Replaces status.json, in a bucket within some seconds or `at_once`.

        In it, "loss" is the last training loss, "held_out_loss" that of the last evaluation, and
        "diverged" of a run that did so says what is not finite.
        """
        if not self._enabled:
            return
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        values = {
            "step": self._step,
            "steps": self._steps,
            "state": state,
            "loss": _finite(self._loss),
            "held_out_loss": _finite(self._held_out_loss),
            "images_per_s": _finite(self._images_a_second),
            "eta_s": _finite(self._eta),
            "restarts": self._restarts,
            "updated": now,
        }
        if diverged:
            values["diverged"] = diverged
        if self._goodput is not None:
            values[goodput_record.KEY] = self._goodput.record()
        self._reported = values
        with self._reporting():
            self._files.status(json.dumps(values, allow_nan=False) + "\n", at_once=at_once)

    def flush(self):
        """Returns when every record so far is safe, even if this machine fails.

        Call it before a checkpoint is written: a run that resumes from the checkpoint does not take
        the steps before it again.
        """
        if not self._enabled:
            return
        with self._reporting():
            self._files.flush()
            if isinstance(self._board, BucketBoard):
                self._board.upload()

    def close(self, state: run_records.ReportedState, diverged: str = ""):
        """Writes the last status, and ends the bar and the files.

        Args:
          diverged: what is not finite, of a run that ends for this reason.
        """
        if not self._enabled:
            return
        self._bar.close()
        with self._reporting():
            self._board.close()
        self.status(state, diverged=diverged)
        with self._reporting():
            self._files.close(merge=state == "done")
        if self._wandb:  # last: it may wait for the network, and this process may be killed
            self._wandb.close(failed=state == "failed")
        if seconds := goodput_record.seconds(self._reported):
            print(goodput_record.line(seconds), file=sys.stderr, flush=True)

    def _say(self, line: str):
        """Prints a line on stderr, above the bar if there is one."""
        if self._bar.disable:
            print(line, file=sys.stderr, flush=True)
        else:
            self._bar.write(line, file=sys.stderr)

    @property
    def _eta(self) -> float:
        left = self._steps - self._step
        return left * self._seconds_a_step if left else 0.0

    def _pace(self, now: float) -> float:
        """Returns the seconds per step, measured over the intervals between two records.

        Before the first interval is over, it is measured over the steps after the first one, which
        includes compilation; at the first step it is NaN.
        """
        if self._intervals or self._first is None or self._seen == self._first[0]:
            return self._seconds_a_step
        step, then = self._first
        return max(now - then, 1e-9) / (self._seen - step)

    def _last_held_out_loss(self) -> float | None:
        """Returns the last held-out loss of the records that stay."""
        steps = [step for step, split in self._kept if split == "val"]
        for line in run_records.read_lines(self._workdir) if steps else ():
            if run_records.key(line) == (max(steps), "val"):
                return json.loads(line).get("loss")
        return None

    def _status_before(self) -> dict[str, Any]:
        """Returns status.json as the start before left it; {} if there is none."""
        return read_object_or_none(self._workdir / "status.json") or {}

    def _restarts_after(self, before: Mapping[str, Any]) -> int:
        restarts = before.get("restarts")
        return restarts + 1 if isinstance(restarts, int) else 0

    @contextlib.contextmanager
    def _reporting(self):
        try:
            yield
        except OSError as error:
            raise UserError(
                f"cannot write in the workdir {self._workdir}: {error.strerror or error}"
            ) from error


def _finite(value: Any) -> Any:
    """Returns a value with null in place of numbers that are not finite, which JSON lacks."""
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
