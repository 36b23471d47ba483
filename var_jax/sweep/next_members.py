"""Turns the next runs that a fit proposes into members of a sweep, by the sizes that it has."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

from var_jax.config.model import TransformerConfig
from var_jax.config.strict import plain
from var_jax.errors import UserError
from var_jax.models import flops
from var_jax.scaling import sweep_runs
from var_jax.sweep import plan
from var_jax.sweep.grid import Overrides

BETWEEN = 2  # sizes between each two
APART = math.log(1.05)  # least distance of two sizes
SAME_SIZE = 1e-3  # relative difference of two numbers of parameters of one size


def members(
    planned: Sequence[plan.Run],
    sizes: Sequence[tuple[float, float]],
    further: Mapping[float, plan.Run] | None = None,
) -> list[Overrides]:
    """Returns overrides of the sweep's base, as an entry of `get_sweep` each.

    A size that the sweep trains at several rates or batches is that of its first such run.

    Args:
      planned: the sweep's runs.
      sizes: the parameters of each new run, in total or of the blocks alone, and its tokens.
      further: what `further_sizes` returned, if new runs may be of those.

    Raises:
      UserError: the sweep has no run of such a size.
    """
    out = []
    for params, tokens in sizes:
        run = (further or {}).get(params)
        run = run or next((run for run in planned if _has(run, params)), None)
        if run is None:
            known = sorted({run.params["total"] for run in planned})
            raise UserError(
                f"the sweep has no run of {params:,.0f} parameters, as the table has; its sizes "
                f"are {', '.join(f'{count:,}' for count in known)}"
            )
        per_step = run.tokens / run.config.steps
        out.append(sweep_runs.of_length(plain(run.config), per_step, tokens))
    return out


def further_sizes(planned: Sequence[plan.Run], known: Sequence[float]) -> dict[float, plan.Run]:
    """Returns runs of sizes between those of a sweep, by their exact number of parameters.

    Between each two are up to `BETWEEN`: transformers of the depth and the channels per head of
    either, whose numbers of parameters divide the distance most evenly. Their rate lies between
    both on a logarithmic scale of the width, and all else is the nearer run's.

    Args:
      planned: the sweep's runs.
      known: the parameters of a table's sizes, in total or of the blocks alone, as the keys are.
    """
    first = {run.params["total"]: run for run in reversed(planned)}
    runs = [first[count] for count in sorted(first)]
    kinds = runs[0].params
    kind = next((k for k in kinds if all(_is_one(size, runs, k) for size in known)), "total")
    out: dict[float, plan.Run] = {}
    for below, above in itertools.pairwise(runs):
        low, high = (math.log(run.params[kind]) for run in (below, above))
        options = {
            math.log(flops.param_count(transformer)[kind]): transformer
            for near in (below, above)
            for transformer in _transformers(near.config.transformer, above.config.transformer)
        }
        inside = [size for size in options if low + APART < size < high - APART]
        for step in range(1, BETWEEN + 1):
            if inside:
                aim = low + (high - low) * step / (BETWEEN + 1)
                best = min(inside, key=lambda size: abs(size - aim))
                inside = [size for size in inside if abs(size - best) > APART]
                run = _between(below, above, options[best])
                out[float(run.params[kind])] = run
    return out


def _is_one(size: float, runs: Sequence[plan.Run], kind: str) -> bool:
    return any(_is_same(run.params[kind], size) for run in runs)


def _transformers(near: TransformerConfig, widest: TransformerConfig) -> list[TransformerConfig]:
    """Returns transformers of one depth and channels per head, up to twice the widest's width."""
    head = near.width // near.heads
    return [
        dataclasses.replace(near, width=heads * head, heads=heads)
        for heads in range(1, 2 * widest.width // head + 1)
    ]


def _between(below: plan.Run, above: plan.Run, transformer: TransformerConfig) -> plan.Run:
    """Returns the nearer run with another transformer, and the rate of its width."""
    ends = [(run.config.transformer.width, run.config.optimizer.base_lr) for run in (below, above)]
    (low, first), (high, last) = ends
    share = 0.5 if low == high else math.log(transformer.width / low) / math.log(high / low)
    near = below if share < 0.5 else above
    rate = float(first ** (1 - share) * last**share)
    optimizer = dataclasses.replace(near.config.optimizer, base_lr=rate)
    config = dataclasses.replace(near.config, transformer=transformer, optimizer=optimizer)
    return dataclasses.replace(near, config=config)


def _has(run: plan.Run, params: float) -> bool:
    return any(_is_same(count, params) for count in run.params.values())


def _is_same(count: float, params: float) -> bool:
    return abs(count - params) <= SAME_SIZE * params
