"""A run on the digits that is killed again and again, beside one that is not.

  python tests/kills.py --kills 20 --terms 10
  python tests/kills.py --kills 3 --terms 2 --adversarial --saved

Every life of the run starts from its newest checkpoint and ends at a random step, by SIGKILL or by
SIGTERM. What is printed for each: the step it resumed from, the step it had done when the signal
came, its exit code, and the newest checkpoint that it left. At the end, every loss must be that of
the uninterrupted run, to the last bit, and two thirds of the lives must have ended after a new
checkpoint: all of them with --saved, which waits for one of each life before it draws the step.
"""

import argparse
import dataclasses
import random
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from helpers import processes, small

CHECKPOINT_EVERY = 10
SECONDS = 600  # for one life, most of it imports where the machine is busy


@dataclasses.dataclass(frozen=True)
class Kill:
    """One life of the run.

    Attributes:
      signal: what ended it.
      began, reached: the steps it resumed from and had logged when the signal was sent.
      code: its exit code.
      left: the newest checkpoint after it.
    """

    signal: signal.Signals
    began: int
    reached: int
    code: int
    left: int

    @property
    def after_a_new_checkpoint(self) -> bool:
        return self.left > self.began


def arguments(directory: Path, steps: int, adversarial: bool = False) -> list[str]:
    """`var-jax train` arguments of a small run, every step logged: of a transformer over the tokens
    of a small tokenizer, or of the tokenizer itself with a discriminator and everything that keeps
    its codebook in use."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.py").write_text(small.CONFIG_FILE)
    values = {
        "data.data_dir": directory / "tfds",
        "steps": steps,
        "log_every": 1,
        "eval_every": steps,
        "checkpoint_every": CHECKPOINT_EVERY,
    }
    if adversarial:
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
        small.pipeline().save(directory / "model")
        values["tokenizer_dir"] = directory / "model"
    argument = ":tokenizer" if adversarial else ""
    return [
        "--config",
        f"{directory / 'config.py'}{argument}",
        *(f"--config.{key}={value}" for key, value in values.items()),
    ]


def newest(workdir: Path) -> int:
    return max(processes.checkpoints(workdir), default=0)


def one_life(
    run: list[str],
    workdir: Path,
    cache: Path,
    number: signal.Signals,
    draw: random.Random,
    saved: bool = False,
) -> Kill:
    """Starts the run, and sends it the signal at a random step of the next three checkpoints' time;
    of one checkpoint's after the first that it leaves, where that is waited for."""
    began = newest(workdir)
    target = began + draw.randint(1, 3 * CHECKPOINT_EVERY)
    before = processes.restarts(workdir)
    with processes.running(run, workdir, cache) as alive:
        alive.until(
            lambda: processes.restarts(workdir) > before, SECONDS
        )  # past records are dropped by now
        if saved:
            alive.until(lambda: newest(workdir) > began, SECONDS)
            target = max(processes.records(workdir)) + draw.randint(1, CHECKPOINT_EVERY)
        alive.until(lambda: max(processes.records(workdir), default=0) >= target, SECONDS)
        alive.send(number)
        reached = max(processes.records(workdir))
        code = alive.ended(0, SECONDS)
    return Kill(number, began, reached, code, newest(workdir))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20, help="SIGKILLs (default: %(default)s)")
    parser.add_argument("--terms", type=int, default=10, help="SIGTERMs (default: %(default)s)")
    parser.add_argument(
        "--adversarial", action="store_true", help="train a tokenizer with a discriminator"
    )
    parser.add_argument(
        "--saved", action="store_true", help="end no life before it has left a new checkpoint"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the steps and of the signals' order"
    )
    parser.add_argument(
        "--directory", type=Path, help="where the runs lie (default: one that is deleted)"
    )
    args = parser.parse_args(argv)
    directory = args.directory or Path(tempfile.mkdtemp())
    try:
        landed = report(directory, args.kills, args.terms, args.seed, args.adversarial, args.saved)
        return 0 if landed >= (args.kills + args.terms) * (1 if args.saved else 2 / 3) else 1
    finally:
        if args.directory is None:
            shutil.rmtree(directory)


def report(
    directory: Path,
    kills: int,
    terms: int,
    seed: int,
    adversarial: bool = False,
    saved: bool = False,
) -> int:
    """Runs both and prints every life.

    Returns:
      how many lives ended after a new checkpoint and before the last step; -1 where anything was
      lost.
    """
    draw = random.Random(seed)
    signals = [signal.SIGKILL] * kills + [signal.SIGTERM] * terms
    draw.shuffle(signals)
    # A life is worth 15 steps on average, less what is lost; more, where a checkpoint's way to the
    # disk is waited for.
    steps = (8 if saved else 2) * CHECKPOINT_EVERY * (len(signals) + 1)
    run, cache = arguments(directory, steps, adversarial), directory / "cache"
    whole, killed = directory / "whole", directory / "killed"
    with processes.running(run, whole, cache) as alive:
        assert alive.codes(SECONDS) == [0], alive.told()
    lives = []
    for index, number in enumerate(signals):
        lives.append(life := one_life(run, killed, cache, number, draw, saved))
        print(
            f"{index + 1:3} {life.signal.name}  from step {life.began:4}  at step {life.reached:4} of {steps}  "
            f"exit {life.code:3}  newest checkpoint {life.left:4}",
            flush=True,
        )
    with processes.running(run, killed, cache) as alive:
        assert alive.codes(SECONDS) == [0], alive.told()
    same = all(
        processes.records(killed, split) == processes.records(whole, split)
        for split in ("train", "val")
    )
    complete = sorted(processes.records(killed)) == list(range(1, steps + 1))
    codes = all(
        life.code == (75 if life.signal == signal.SIGTERM else -signal.SIGKILL) for life in lives
    )
    # A SIGTERM saves the step that it stops after.
    stopped = all(life.left >= life.reached for life in lives if life.signal == signal.SIGTERM)
    landed = sum(life.after_a_new_checkpoint and life.reached < steps for life in lives)
    print(
        f"{landed} of {len(lives)} after a new checkpoint and before the last step; exit codes as they should be: "
        f"{codes}; SIGTERM saved its step: {stopped}; all {steps} losses there: {complete}; the same as the "
        f"uninterrupted run's: {same}"
    )
    return landed if same and complete and codes and stopped else -1


if __name__ == "__main__":
    sys.exit(main())
