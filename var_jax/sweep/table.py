"""What a sweep will cost, before it costs anything: the table of `sweep --dry-run`."""

from collections.abc import Sequence

from var_jax.chips import CHIPS
from var_jax.errors import UserError, did_you_mean
from var_jax.sweep.plan import Run


def lines(runs: Sequence[Run], *, chip: str, mfu: float, price: float = 0.0) -> list[str]:
    """One line a run and one for the sum.

    FLOPs are exact training FLOPs: of the model at its end ("FLOPs", what laws are fitted against) and what the run
    itself takes ("to do": a branch's trunk has the rest). Chip-hours and cost are of the latter.

    Args:
      chip: name of a chip in `chips.CHIPS`.
      mfu: share of its peak that training reaches.
      price: of a chip-hour; 0 leaves the cost out.
    Raises:
      UserError: no such chip, or an `mfu` or `price` out of range.
    """
    if chip not in CHIPS:
        raise UserError(f"--chip {chip!r} is not in the table{did_you_mean(chip, CHIPS)}")
    if not 0 < mfu <= 1:
        raise UserError(f"--mfu is {mfu:g}; it must be above 0 and at most 1")
    if price < 0:
        raise UserError(f"--price is {price:g}; it must be 0 or more")
    an_hour = CHIPS[chip].peak_flops * mfu * 3600

    def costs(flops: float) -> list[str]:
        hours = flops / an_hour
        return [f"{flops:.3g}", f"{hours:.3g}", *([f"{hours * price:,.2f}"] if price else [])]

    header = ["run", "overrides", "params", "body", "tokens", "FLOPs", "to do", f"{chip}-hours",
              *(["cost"] if price else [])]
    rows = [[run.id, run.label, f"{run.params['total']:,}", f"{run.params['body']:,}", f"{run.tokens:.3g}",
             f"{run.compute:.3g}", *costs(run.own_compute)] for run in runs]
    total = ["total", f"{len(runs)} runs, {len({run.params['total'] for run in runs})} sizes", "", "", "", "",
             *costs(sum(run.own_compute for run in runs))]
    return aligned([header, *rows, total], left=2)


def aligned(rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """Rows as lines with columns one under the other, the first `left` flush left and the others flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) if i < left else cell.rjust(width)
                      for i, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip() for row in rows]
