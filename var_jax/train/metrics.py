"""What a run tells while it goes: metrics.jsonl, TensorBoard, status.json and a progress bar."""

import contextlib
import datetime
import importlib
import json
import logging
import math
import sys
import time
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from etils import epath
from jaxtyping import UInt8
from tensorboardX import SummaryWriter
from tqdm import tqdm

from var_jax import whole_file
from var_jax.errors import UserError

QUIET_SECONDS = 10.0
BOARD_LIBRARIES = {"gs": "google.cloud.storage", "s3": "boto3"}  # with which tensorboardX writes into a bucket

log = logging.getLogger(__name__)

State = Literal["running", "done", "preempted", "failed"]


class MetricWriter:
    """Writes into `workdir`, as one process of a run should (`enabled`); in the others every method does nothing.

    Records of steps past `resume_step` come from a run that was cut off after its last checkpoint: they are dropped,
    because the run takes those steps again.

    Args:
      steps: length of the whole run.
      resume_step: steps done before.
    Raises:
      UserError: the directory cannot be written (here and in every method).
    """

    def __init__(self, workdir: epath.PathLike, *, steps: int, resume_step: int = 0,
                 enabled: bool = True):
        self._enabled = enabled
        if not enabled:
            return
        self._workdir = epath.Path(workdir)
        self._records = self._workdir / "metrics.jsonl"
        self._steps = steps
        self._step, self._loss = resume_step, None
        self._clock, self._seconds_a_step, self._intervals = time.monotonic(), math.nan, 0
        self._images_a_second = math.nan
        self._spoke = -math.inf
        with self._reporting():
            self._workdir.mkdir(parents=True, exist_ok=True)
            self._kept = self._drop_records_after(resume_step)
            self._restarts = self._restarts_before()
            self._board = _board(self._workdir, resume_step + 1)
        self._bar = tqdm(total=steps, initial=resume_step, unit="step", disable=not sys.stderr.isatty(),
                         dynamic_ncols=True)
        self.status("running")

    def write(self, step: int, split: Literal["train", "val"], values: Mapping[str, Any]):
        """One record. A split's step that is there already stays as it is.

        Args:
          values: scalars, or an array with one value a scale; what is not finite becomes null.
        """
        if not self._enabled or (step, split) in self._kept:
            return
        values = {name: np.asarray(value).tolist() for name, value in values.items()}
        record = {"step": step, "split": split, **{name: _finite(value) for name, value in values.items()}}
        self._kept[step, split] = json.dumps(record, allow_nan=False)
        with self._reporting():
            if _in_bucket(self._workdir):  # where nothing can be appended to
                whole_file.write(self._records, _lines(self._kept))
            else:
                with self._records.open("a") as file:
                    file.write(self._kept[step, split] + "\n")
        if self._board is None:
            return
        for name, value in values.items():
            if isinstance(value, list):
                for k, one in enumerate(value):
                    self._board.add_scalar(f"{split}/{name}/scale_{k}", one, step)
            else:
                self._board.add_scalar(f"{split}/{name}", value, step)
        self._board.flush()

    def image(self, step: int, name: str, image: UInt8[np.ndarray, "h w c"]):
        """A picture for TensorBoard."""
        if self._enabled and self._board is not None:
            self._board.add_image(name, np.asarray(image), step, dataformats="HWC")
            self._board.flush()

    def progress(self, step: int, loss: float, images_per_s: float):
        """Moves the bar (without a terminal: a line every ten seconds at most) and updates status.json.

        Args:
          images_per_s: of training alone; the time that is left counts evaluation too.
        """
        if not self._enabled or step <= self._step:
            return
        now = time.monotonic()
        pace = max(now - self._clock, 1e-9) / (step - self._step)
        # The first interval has compilation in it, which says nothing of the time that is left.
        self._seconds_a_step = pace if self._intervals < 2 else 0.7 * self._seconds_a_step + 0.3 * pace
        self._clock, self._intervals, self._step, self._loss = now, self._intervals + 1, step, float(loss)
        self._images_a_second = images_per_s
        self._bar.set_postfix_str(f"loss {loss:.4g}, {self._images_a_second:.4g} images/s", refresh=False)
        self._bar.update(step - self._bar.n)
        if self._bar.disable and (now - self._spoke >= QUIET_SECONDS or step == self._steps):
            self._spoke = now
            print(f"step {step}/{self._steps}, loss {loss:.4g}, {self._images_a_second:.4g} images/s, "
                  f"{tqdm.format_interval(self._eta)} left", file=sys.stderr, flush=True)
        self.status("running")

    def status(self, state: State):
        """Replaces status.json."""
        if not self._enabled:
            return
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        values = {"step": self._step, "steps": self._steps, "state": state, "loss": _finite(self._loss),
                  "images_per_s": _finite(self._images_a_second), "eta_s": _finite(self._eta),
                  "restarts": self._restarts, "updated": now}
        with self._reporting():
            whole_file.write(self._workdir / "status.json", json.dumps(values, allow_nan=False) + "\n")

    def close(self, state: State):
        """The last status; ends the bar and TensorBoard's file."""
        if not self._enabled:
            return
        self._bar.close()
        if self._board is not None:
            self._board.close()
        self.status(state)

    @property
    def _eta(self) -> float:
        left = self._steps - self._step
        return left * self._seconds_a_step if left else 0.0

    def _drop_records_after(self, step: int) -> dict[tuple[int, str], str]:
        """The records that stay, by step and split; a line that a crash cut short goes too."""
        kept: dict[tuple[int, str], str] = {}
        if not self._records.exists():
            return kept
        for line in self._records.read_text().splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                record = json.loads(line)
                if record["step"] <= step:
                    kept.setdefault((record["step"], record["split"]), line)
        whole_file.write(self._records, _lines(kept))
        return kept

    def _restarts_before(self) -> int:
        status = self._workdir / "status.json"
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return json.loads(status.read_text())["restarts"] + 1 if status.exists() else 0
        return 0

    @contextlib.contextmanager
    def _reporting(self):
        try:
            yield
        except OSError as error:
            raise UserError(f"cannot write in the workdir {self._workdir}: {error.strerror or error}") from error


def _finite(value: Any) -> Any:
    """JSON has no NaN or infinity."""
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _in_bucket(path: epath.Path) -> bool:
    return "://" in str(path)


def _board(workdir: epath.Path, purge_step: int) -> SummaryWriter | None:
    """TensorBoard's writer; None, with a warning, in a bucket that it has no library for."""
    scheme, library = str(workdir).partition("://")[0], None
    if _in_bucket(workdir):
        library = BOARD_LIBRARIES.get(scheme)
        try:
            importlib.import_module(library or "")
        except (ImportError, ValueError):
            remedy = "pip install 'var-jax[gcs]' brings it" if scheme == "gs" else "metrics.jsonl has all figures"
            log.warning("no TensorBoard files in %s: tensorboardX writes there with %s; %s", workdir,
                        library or "nothing", remedy)
            return None
    return SummaryWriter(str(workdir / "tensorboard"), purge_step=purge_step)


def _lines(records: Mapping[tuple[int, str], str]) -> str:
    return "".join(f"{line}\n" for line in records.values())
