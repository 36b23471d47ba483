"""Turns the next runs that a fit proposes into members of a sweep, by the sizes that it has."""

from collections.abc import Sequence

from var_jax.config.strict import plain
from var_jax.errors import UserError
from var_jax.scaling import sweep_runs
from var_jax.sweep import plan
from var_jax.sweep.grid import Overrides

SAME_SIZE = 1e-3  # relative difference of two numbers of parameters of one size


def members(planned: Sequence[plan.Run], sizes: Sequence[tuple[float, float]]) -> list[Overrides]:
    """Returns overrides of the sweep's base, as an entry of `get_sweep` each.

    A size that the sweep trains at several rates or batches is that of its first such run.

    Args:
      planned: the sweep's runs.
      sizes: the parameters of each new run, in total or of the blocks alone, and its tokens.

    Raises:
      UserError: the sweep has no run of such a size.
    """
    out = []
    for params, tokens in sizes:
        run = next((run for run in planned if _has(run, params)), None)
        if run is None:
            known = sorted({run.params["total"] for run in planned})
            raise UserError(
                f"the sweep has no run of {params:,.0f} parameters, as the table has; its sizes "
                f"are {', '.join(f'{count:,}' for count in known)}"
            )
        per_step = run.tokens / run.config.steps
        out.append(sweep_runs.of_length(plain(run.config), per_step, tokens))
    return out


def _has(run: plan.Run, params: float) -> bool:
    return any(abs(count - params) <= SAME_SIZE * params for count in run.params.values())
