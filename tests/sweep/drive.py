"""A sweep of stub runs (`trainer.py`): three trunks of 40 steps, each with a branch; as a script,
driven to its end.

python drive.py WORKDIR JOBS
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from var_jax.config.model import TokenizerConfig, TransformerConfig
from var_jax.config.scales import Scales
from var_jax.config.train import OptimizerConfig, TrainConfig
from var_jax.sweep import driver, plan
from var_jax.sweep.backend import RunCommand
from var_jax.sweep.local import Local

SCALES = Scales.parse("1,2")
BASE = TrainConfig(
    stage="transformer",
    steps=40,
    batch_size=4,
    checkpoint_every=4,
    tokenizer=TokenizerConfig(scales=SCALES),
    transformer=TransformerConfig(depth=1, scales=SCALES),
    optimizer=OptimizerConfig(schedule="cooldown", cooldown_steps=8),
)


@dataclasses.dataclass(frozen=True)
class Stub(Local):
    """Local processes, of the stub in place of `python -m var_jax train`."""

    def submit(self, commands: Sequence[RunCommand]) -> list[str]:
        trainer = str(Path(__file__).with_name("trainer.py"))
        return super().submit(
            [dataclasses.replace(c, argv=(c.argv[0], trainer, *c.argv[4:])) for c in commands]
        )


def resolve(flags: Sequence[str]) -> TrainConfig:
    keys = dict(flag.removeprefix("--config.").split("=", 1) for flag in flags)
    cooldown = int(keys.pop("optimizer.cooldown_steps", 8))
    return dataclasses.replace(
        BASE,
        optimizer=dataclasses.replace(BASE.optimizer, cooldown_steps=cooldown),
        **{key: value if key == "branch_from" else int(value) for key, value in keys.items()},
    )


def sweep(
    workdir, jobs: int = 0, seeds: int = 3, branches: bool = True, **settings
) -> driver.Sweep:
    trunks = [{"seed": seed, "steps": 40} for seed in range(seeds)]
    family = [
        *trunks,
        *(
            {**t, "steps": 20, "optimizer.cooldown_steps": 4, "branch_step": 16, "branch_from": t}
            for t in trunks
            if branches
        ),
    ]
    return driver.Sweep(
        plan.expand(family, resolve, str(workdir)),
        "stub.py",
        str(workdir),
        "local",
        Stub(),
        jobs,
        **settings,
    )


def plan_file(path: Path, **plan) -> str:
    """What the stub is told by the environment's STUB_PLAN: `pause` a step, and by run what goes
    `wrong`."""
    path.write_text(json.dumps(plan))
    return str(path)


if __name__ == "__main__":
    sys.exit(1 if driver.drive(sweep(sys.argv[1], int(sys.argv[2])), interval=0.1) else 0)
