"""Kills a training run on the digits again and again, and compares it with a run left alone.

  python launch/kill_training.py --kills 20 --terms 10
  python launch/kill_training.py --kills 3 --terms 2 --adversarial --saved
  python launch/kill_training.py --kills 3 --terms 2 --objective masked

The run is started again after every signal. Each start resumes from the newest checkpoint and ends
at a random step, by SIGKILL or by SIGTERM; one line for each gives the step it resumed from, the
last step it logged, its exit code and the newest checkpoint it left. At the end, every loss must
equal that of the uninterrupted run to the last bit, and two thirds of the starts must have ended
after a new checkpoint: all of them with --saved, which waits for a new checkpoint before it picks
the step.
"""

import argparse
import dataclasses
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from helpers import diffusion, masked, next_token, processes, small  # noqa: E402
from var_jax.io import goodput_record  # noqa: E402
from var_jax.io.json import read_object  # noqa: E402

ADVERSARIAL = "adversarial"
# The model whose tokenizer a transformer learns over, by its objective.
MODELS = {
    "next_scale": small.pipeline,
    "next_token": next_token.pipeline,
    "masked": masked.pipeline,
    "diffusion": diffusion.pipeline,
}
CHECKPOINT_EVERY = 10
WALL_TIME_ERROR = 0.02
TIMEOUT = 600  # seconds for one start, most of which are imports where the machine is busy


@dataclasses.dataclass(frozen=True)
class Life:
    """One start of the run, from its beginning to its signal.

    Attributes:
      signal: the signal that ended it.
      resumed_step: the checkpoint it resumed from.
      last_step: the last step it had logged when the signal was sent.
      exit_code: its exit code, negative for a signal.
      newest_checkpoint: the newest checkpoint after it.
    """

    signal: signal.Signals
    resumed_step: int
    last_step: int
    exit_code: int
    newest_checkpoint: int

    @property
    def left_new_checkpoint(self) -> bool:
        return self.newest_checkpoint > self.resumed_step


def train_arguments(directory: Path, steps: int, kind: str = "next_scale") -> list[str]:
    """Returns `var-jax train` arguments of a small run that logs every step.

    Args:
      directory: receives the config file, the data and, for a transformer, its tokenizer.
      kind: an objective of `MODELS`, or `ADVERSARIAL` for the tokenizer itself, with a
        discriminator and everything that keeps its codebook in use.
    """
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.py").write_text(small.CONFIG_FILE)
    values = {
        "data.data_dir": directory / "tfds",
        "steps": steps,
        "log_every": 1,
        "eval_every": steps,
        "checkpoint_every": CHECKPOINT_EVERY,
    }
    if kind == ADVERSARIAL:
        values |= {
            "adversarial.weight": 0.2,
            "adversarial.start": 5,
            "adversarial.warmup": 10,
            "adversarial.channels": 8,
            "adversarial.layers": 1,
            "adversarial.lecam": 0.01,
            "codebook.init": "sampled",
            "codebook.revive_threshold": 0.1,
            "codebook.entropy": 0.005,
        }
    else:
        model = MODELS[kind]()
        model.save(directory / "model")
        values |= {
            "tokenizer_dir": directory / "model",
            "tokenizer.scales": model.config.tokenizer.scales,
            "transformer.objective": kind,
        }
    argument = ":tokenizer" if kind == ADVERSARIAL else ""
    return [
        "--config",
        f"{directory / 'config.py'}{argument}",
        *(f"--config.{key}={value}" for key, value in values.items()),
    ]


def newest_checkpoint(workdir: Path) -> int:
    return max(processes.checkpoints(workdir), default=0)


def start_and_kill(
    arguments: list[str],
    workdir: Path,
    cache: Path,
    number: signal.Signals,
    rng: random.Random,
    *,
    saved: bool = False,
) -> Life:
    """Starts the run and sends it the signal at a random step.

    The step is one of the next three checkpoints' time; where a new checkpoint is waited for
    (`saved`), it is within one checkpoint's time after it.
    """
    resumed_step = newest_checkpoint(workdir)
    target = resumed_step + rng.randint(1, 3 * CHECKPOINT_EVERY)
    restarts = processes.restarts(workdir)
    with processes.running(arguments, workdir, cache) as run:
        # The count of restarts is written after the records past the checkpoint are dropped.
        run.until(lambda: processes.restarts(workdir) > restarts, TIMEOUT)
        if saved:
            run.until(lambda: newest_checkpoint(workdir) > resumed_step, TIMEOUT)
            target = max(processes.records(workdir)) + rng.randint(1, CHECKPOINT_EVERY)
        run.until(lambda: max(processes.records(workdir), default=0) >= target, TIMEOUT)
        run.send(number)
        last_step = max(processes.records(workdir))
        exit_code = run.ended(0, TIMEOUT)
    return Life(number, resumed_step, last_step, exit_code, newest_checkpoint(workdir))


def compare(
    directory: Path,
    kills: int,
    terms: int,
    seed: int,
    *,
    kind: str = "next_scale",
    saved: bool = False,
) -> int:
    """Trains both runs, and prints every start of the killed one and the comparison.

    Returns:
      how many starts ended after a new checkpoint and before the last step; -1 where a loss, an
      exit code, a SIGTERM's checkpoint or the sum of the wall time is not what it must be.
    """
    rng = random.Random(seed)
    signals = [signal.SIGKILL] * kills + [signal.SIGTERM] * terms
    rng.shuffle(signals)
    # A start gains 15 steps on average, less what the signal loses; more where it waits for a
    # checkpoint to reach the disk.
    steps = (8 if saved else 2) * CHECKPOINT_EVERY * (len(signals) + 1)
    arguments = train_arguments(directory, steps, kind)
    cache = directory / "cache"
    uninterrupted, killed = directory / "uninterrupted", directory / "killed"

    # The run that is left alone.
    with processes.running(arguments, uninterrupted, cache) as run:
        assert run.codes(TIMEOUT) == [0], run.output()

    # The run that is killed, and its last start, which reaches the end.
    lives, first_start = [], time.time()
    for index, number in enumerate(signals):
        life = start_and_kill(arguments, killed, cache, number, rng, saved=saved)
        lives.append(life)
        print(
            f"{index + 1:3} {life.signal.name}  from step {life.resumed_step:4}  "
            f"at step {life.last_step:4} of {steps}  exit {life.exit_code:3}  "
            f"newest checkpoint {life.newest_checkpoint:4}",
            flush=True,
        )
    with processes.running(arguments, killed, cache) as run:
        assert run.codes(TIMEOUT) == [0], run.output()

    # Where its time went, until its last report.
    wall = (killed / "status.json").stat().st_mtime - first_start
    seconds = goodput_record.seconds(read_object(killed / "status.json"))
    print(goodput_record.line(seconds))
    print(f"accounted for: {sum(seconds.values()):.1f} of {wall:.1f} s", flush=True)

    # What must hold.
    adds_up = abs(sum(seconds.values()) - wall) <= WALL_TIME_ERROR * wall
    same_losses = all(
        processes.records(killed, split) == processes.records(uninterrupted, split)
        for split in ("train", "val")
    )
    every_step = sorted(processes.records(killed)) == list(range(1, steps + 1))
    exit_codes = {signal.SIGTERM: 75, signal.SIGKILL: -signal.SIGKILL}
    right_codes = all(life.exit_code == exit_codes[life.signal] for life in lives)
    # A SIGTERM saves the step that the run stops after.
    terms_saved = all(
        life.newest_checkpoint >= life.last_step for life in lives if life.signal == signal.SIGTERM
    )
    landed = sum(life.left_new_checkpoint and life.last_step < steps for life in lives)
    print(
        f"{landed} of {len(lives)} after a new checkpoint and before the last step; "
        f"exit codes as they should be: {right_codes}; SIGTERM saved its step: {terms_saved}; "
        f"all {steps} losses there: {every_step}; the same as the uninterrupted run's: "
        f"{same_losses}"
    )
    holds = same_losses and every_step and right_codes and terms_saved and adds_up
    return landed if holds else -1


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20, help="SIGKILLs (default: %(default)s)")
    parser.add_argument("--terms", type=int, default=10, help="SIGTERMs (default: %(default)s)")
    trained = parser.add_mutually_exclusive_group()
    trained.add_argument(
        "--objective",
        choices=MODELS,
        default="next_scale",
        help="of the transformer that is trained (default: %(default)s)",
    )
    trained.add_argument(
        "--adversarial", action="store_true", help="train a tokenizer with a discriminator"
    )
    parser.add_argument(
        "--saved", action="store_true", help="end no start before it has left a new checkpoint"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the steps and of the signals' order"
    )
    parser.add_argument(
        "--directory", type=Path, help="keeps both runs (default: a directory that is deleted)"
    )
    args = parser.parse_args(argv)
    directory = args.directory or Path(tempfile.mkdtemp())
    try:
        landed = compare(
            directory,
            args.kills,
            args.terms,
            args.seed,
            kind=ADVERSARIAL if args.adversarial else args.objective,
            saved=args.saved,
        )
    finally:
        if args.directory is None:
            shutil.rmtree(directory)
    enough = (args.kills + args.terms) * (1 if args.saved else 2 / 3)
    return 0 if landed >= enough else 1


if __name__ == "__main__":
    sys.exit(main())
