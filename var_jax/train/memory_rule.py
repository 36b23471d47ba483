"""What a run does where its config says "auto": the policy of its mesh, and its rematerialization.

Both follow from one estimate of memory, without a compilation. `perf.aot` compiles the choice, and
`perf.aot_search` compares choices by their compiled programs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from jax.sharding import Mesh

from var_jax.config.rematerialization import AUTO
from var_jax.config.sections import Policy
from var_jax.devices import chips
from var_jax.objectives.base import Objective
from var_jax.train import memory_estimate

# The share of a device's memory that the estimate may take: compilers' figures for training are up
# to 1.3 times the estimate (docs/guides/scale.md).
LARGEST_SHARE = 0.6


class Settings(NamedTuple):
    """The two settings that a config may leave to the rule.

    Attributes:
      policy: `mesh.policy`.
      remat: the trained model's `remat`.
    """

    policy: Policy
    remat: str


def is_open(objective: Objective[Any]) -> bool:
    """Returns whether a run's config leaves a setting to the rule."""
    return AUTO in (objective.config.mesh.policy, objective.model.remat)


def resolve(objective: Objective[Any], mesh: Mesh) -> Objective[Any]:
    """Returns the objective with settings in place of "auto", for the devices of a mesh."""
    return choices(objective, mesh)[0]


def choices(objective: Objective[Any], mesh: Mesh) -> list[Objective[Any]]:
    """Returns the objective with the settings of the rule, and with those that take least memory.

    Both are one where nothing is left to choose.
    """
    if not is_open(objective):
        return [objective]
    device = mesh.devices.flat[0]
    chip = chips.chip_of_kind(device.device_kind)
    budget = chip.usable_bytes if chip else None
    settings = choose(objective, mesh.shape, device.platform, budget)
    least = _open_settings(objective)[-1]
    return [with_settings(objective, one) for one in dict.fromkeys((settings, least))]


def choose(
    objective: Objective[Any], mesh: Mapping[str, int], platform: str, budget: float | None
) -> Settings:
    """Returns the first settings, from the fastest on, whose memory is estimated to fit.

    Where none are, or the memory of a device is not known, they are those that take least.

    Args:
      mesh: number of devices along each mesh axis.
      platform: of the devices, "tpu", "gpu" or "cpu".
      budget: bytes of memory that a program can use on a device; None if not known.
    """
    options, config = _open_settings(objective), objective.config
    if len(options) == 1 or budget is None:
        return options[-1]
    dtype, residuals, memory = objective.model.dtype, None, {}
    for policy in dict.fromkeys(one.policy for one in options):
        of_policy = with_settings(objective, Settings(policy, options[-1].remat))
        memory[policy] = memory_estimate.of_training(of_policy, mesh, platform, dtype, residuals)
        residuals = memory[policy].residuals
    for one in options:
        peak = memory[one.policy].peak(one.remat, config.batch_size, config.microbatches)
        if peak <= LARGEST_SHARE * budget:
            return one
    return options[-1]


def with_settings(objective: Objective[Any], settings: Settings) -> Objective[Any]:
    """Returns the objective with these settings."""
    config, section = objective.config, objective.section
    model = dataclasses.replace(objective.model, remat=settings.remat)
    mesh = dataclasses.replace(config.mesh, policy=settings.policy)
    return objective.with_config(dataclasses.replace(config, mesh=mesh, **{section: model}))


def _open_settings(objective: Objective[Any]) -> list[Settings]:
    """Returns the settings that a config allows, from the fastest to the smallest.

    To gather weights once more takes less time than to compute the forward pass once more.
    """
    policy, remat = objective.config.mesh.policy, objective.model.remat
    policies = ("zero1", "hsdp") if policy == AUTO else (policy,)
    remats = _remats(objective) if remat == AUTO else (remat,)
    return [Settings(one, another) for another in remats for one in policies]


def _remats(objective: Objective[Any]) -> tuple[str, ...]:
    """Returns the policies of rematerialization that the rule considers, from the least one on.

    For a transformer "dots" is the least: what it computes again are elementwise results, which
    take a few FLOPs each, and keeping them would write and read several times the bytes that the
    products take. Between it and "full" are those of some of the blocks.
    """
    every = memory_estimate.remat_values(objective)
    return every[every.index("dots") :] if "dots" in every else every
