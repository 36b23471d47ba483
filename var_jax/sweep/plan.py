"""Expands a family of override dicts into runs with resolved configs, ids, order and commands."""

import dataclasses
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from var_jax.config import idle_keys
from var_jax.config.strict import differences, plain
from var_jax.config.train import TrainConfig
from var_jax.devices import chips
from var_jax.errors import UserError
from var_jax.models import flops
from var_jax.objectives import registry
from var_jax.sweep import claims, grid, run_id
from var_jax.sweep.backend import RunCommand
from var_jax.sweep.grid import Overrides
from var_jax.train import data_sizes
from var_jax.train.workdir import START_TOKEN_ENV, started_with

# Keys in which a branch may differ from the run that it branches from.
BRANCHING = (
    "steps",
    "branch_from",
    "branch_step",
    "optimizer.schedule",
    "optimizer.cooldown_steps",
    "optimizer.final_lr_ratio",
)

Resolve = Callable[[Sequence[str]], TrainConfig]


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a sweep.

    Attributes:
      id: hash of the resolved configuration without `run_id.VOLATILE`, and of the tokenizer if
        there is one.
      label: the overrides that distinguish the run in the sweep.
      config: the resolved configuration.
      flags: the `--config.KEY=VALUE` flags of its command.
      trunk: id of the run that it branches from, or "".
    """

    id: str
    label: str
    config: TrainConfig
    flags: tuple[str, ...]
    trunk: str = ""

    @property
    def own_steps(self) -> int:
        """Steps that this run takes itself, without those that a branch's trunk took."""
        return self.config.steps - self.config.branch_step

    @property
    def compute(self) -> float:
        """Exact training FLOPs of the final model, its trunk included; laws are fitted to them."""
        return self._flops_per_step * self.config.steps

    @property
    def own_compute(self) -> float:
        """Exact training FLOPs that this run takes itself."""
        return self._flops_per_step * self.own_steps

    @property
    def tokens(self) -> int:
        """Training tokens of the final model, its trunk's included."""
        return self.config.steps * self.config.batch_size * self.config.tokenizer.scales.total

    @property
    def params(self) -> dict[str, int]:
        """Numbers of parameters: "total", and "body", the blocks' weight matrices alone."""
        return flops.param_count(self.config.transformer)

    @property
    def _flops_per_step(self) -> float:
        return flops.train_flops_per_image(self.config.transformer) * self.config.batch_size

    def command(self, config_file: str, workdir: str, attempt: int) -> RunCommand:
        """Returns the command that starts an attempt at the run in the sweep's directory."""
        directory = f"{workdir.rstrip('/')}/{self.id}"
        argv = (
            sys.executable,
            "-m",
            "var_jax",
            "train",
            "--config",
            config_file,
            *self.flags,
            "--workdir",
            directory,
        )
        start_token = claims.file(epath.Path(directory), attempt)
        return RunCommand(self.id, directory, argv, attempt, {START_TOKEN_ENV: str(start_token)})


def expand(
    family: Sequence[Overrides], resolve: Resolve, workdir: str, overrides: Sequence[str] = ()
) -> list[Run]:
    """Returns the different runs of a family, trunks before their branches.

    An override `branch_from` is the override dict of the trunk, which becomes a run of the sweep
    too. Its `keep_steps` are the steps at which runs branch off.

    Args:
      resolve: returns the configuration for a list of `--config.KEY=VALUE` flags.
      workdir: the sweep's directory.
      overrides: flags for every run, which take precedence.

    Raises:
      UserError: a key or value is wrong, a run does not train a transformer, a branch does not fit
        its trunk, or the given token cache or tokenizer does not exist.
    """
    if not family:
        raise UserError("the sweep has no runs; get_sweep must return a list of override dicts")
    runs: dict[str, Run] = {}
    members_by_id: dict[str, Overrides] = {}
    fingerprint, sizes = functools.cache(run_id.tokenizer_of), functools.cache(data_sizes.of_data)

    def add(member: Overrides) -> Run:
        member = grid.native(member)
        trunk = None
        if isinstance(member.get("branch_from"), Mapping):
            trunk = add(member["branch_from"])
            member["branch_from"] = f"{workdir.rstrip('/')}/{trunk.id}"
        flags = (*(f"--config.{key}={_text(value)}" for key, value in member.items()), *overrides)
        config = resolve(flags)
        if not registry.leaves_generator(config):
            raise UserError(f"a sweep is of transformers; its config has stage {config.stage!r}")
        tokenizer = fingerprint(config.data.tokens_dir, config.tokenizer_dir)
        config = data_sizes.from_data(config, sizes=sizes)
        trunk_id = trunk.id if trunk else ""
        id = run_id.of_workdir(workdir, config, trunk_id, tokenizer)
        if tokenizer:  # the runs take its sizes, which their costs follow from
            try:
                config = registry.with_frozen_sizes(config, idle_keys.flag_keys(flags))
            except UserError:
                if started_with(epath.Path(workdir) / id) is None:
                    raise
                # A run that has begun has its own copy of the tokenizer, whatever its flags.
                config = registry.with_frozen_sizes(config)
        if trunk is not None:
            _require_branch(config, trunk.config)
        members_by_id.setdefault(id, {k: v for k, v in member.items() if k != "branch_from"})
        return runs.setdefault(id, Run(id, "", config, flags, trunk_id))

    for member in family:
        add(member)
    labels = _labels(members_by_id)
    keep_steps_by_id = {
        run.id: sorted(
            {r.config.branch_step for r in runs.values() if r.trunk == run.id}
            | set(run.config.keep_steps)
        )
        for run in runs.values()
    }
    return [
        dataclasses.replace(
            run,
            label=labels[run.id],
            config=dataclasses.replace(run.config, keep_steps=tuple(keep_steps_by_id[run.id])),
            flags=run.flags
            + (
                (f"--config.keep_steps={_text(tuple(keep_steps_by_id[run.id]))}",)
                if keep_steps_by_id[run.id]
                else ()
            ),
        )
        for run in runs.values()
    ]


def _require_branch(branch: TrainConfig, trunk: TrainConfig):
    """Raises UserError unless branch and trunk do the same up to the step of branching."""
    free = (*run_id.VOLATILE, *BRANCHING, "microbatches")
    other = [d for d in differences(plain(branch), plain(trunk)) if not d.startswith(free)]
    if other:
        raise UserError(f"a branch differs from its trunk in more than its end: {'; '.join(other)}")
    at = branch.branch_step
    for name, config in (("branch", branch), ("trunk", trunk)):
        o = config.optimizer
        if o.schedule not in ("constant", "cooldown"):
            raise UserError(
                f"the {name} has optimizer.schedule {o.schedule!r}; runs can share steps under "
                "'cooldown' or 'constant' only"
            )
        if o.weight_decay != o.final_weight_decay:
            raise UserError(
                f"the {name} changes its weight decay over the run; runs can share steps only with "
                "final_weight_decay equal to weight_decay"
            )
        constant = config.steps - (o.cooldown_steps if o.schedule == "cooldown" else 0)
        if not max(1, trunk.branch_step) <= at <= constant:
            raise UserError(
                f"branch_step is {at}; the {name} has a constant rate from step "
                f"{max(1, trunk.branch_step)} to {constant} only"
            )
    if at >= branch.steps:
        raise UserError(f"branch_step is {at}; it must be below the branch's steps {branch.steps}")


def _labels(members_by_id: Mapping[str, Overrides]) -> dict[str, str]:
    """Returns labels by id: the overrides that distinguish the runs, keys without their sections.

    Overrides that follow from others are left out.
    """
    keys = dict.fromkeys(key for member in members_by_id.values() for key in member)
    label_keys: list[str] = []
    num_distinct = 1
    for key in keys:
        candidate_keys = [*label_keys, key]
        labels = {
            tuple(_text(member.get(k)) for k in candidate_keys) for member in members_by_id.values()
        }
        if len(labels) > num_distinct:
            label_keys, num_distinct = candidate_keys, len(labels)
    return {
        id: " ".join(
            f"{k.rpartition('.')[2]}={_short(member[k])}" for k in label_keys if k in member
        )
        for id, member in members_by_id.items()
    }


def _text(value: Any) -> str:
    return repr(value) if isinstance(value, float) else str(value)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def lines(runs: Sequence[Run], *, chip: str, mfu: float, price: float = 0.0) -> list[str]:
    """Returns the sweep's table: a header, one line per run and one for the total.

    "FLOPs" are the exact training FLOPs of the final model, which laws are fitted to. "to do" are
    those that the run takes itself, without a branch's trunk; chip-hours and cost follow from them.

    Args:
      chip: name of a chip, as `chips.named` takes it.
      mfu: fraction of the chip's peak that training reaches.
      price: price of a chip-hour; 0 leaves the cost out.

    Raises:
      UserError: the chip is unknown, or `mfu` or `price` is out of range.
    """
    peak = chips.named(chip)
    if not 0 < mfu <= 1:
        raise UserError(f"--mfu is {mfu:g}; it must be above 0 and at most 1")
    if price < 0:
        raise UserError(f"--price is {price:g}; it must be 0 or more")
    flops_per_chip_hour = peak.peak_flops * mfu * 3600

    def costs(flops: float) -> list[str]:
        hours = flops / flops_per_chip_hour
        return [f"{flops:.3g}", f"{hours:.3g}", *([f"{hours * price:,.2f}"] if price else [])]

    header = [
        "run",
        "overrides",
        "params",
        "body",
        "tokens",
        "FLOPs",
        "to do",
        f"{peak.name}-hours",
        *(["cost"] if price else []),
    ]
    rows = [
        [
            run.id,
            run.label,
            f"{run.params['total']:,}",
            f"{run.params['body']:,}",
            f"{run.tokens:.3g}",
            f"{run.compute:.3g}",
            *costs(run.own_compute),
        ]
        for run in runs
    ]
    total = [
        "total",
        f"{len(runs)} runs, {len({run.params['total'] for run in runs})} sizes",
        "",
        "",
        "",
        "",
        *costs(sum(run.own_compute for run in runs)),
    ]
    return aligned([header, *rows, total], left=2)


def aligned(rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """Returns rows as lines with aligned columns, the first `left` flush left, the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
