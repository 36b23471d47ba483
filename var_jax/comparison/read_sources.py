"""Reads all sources of a comparison: sweeps, workdirs and tables."""

from collections.abc import Sequence

from etils import epath

from var_jax.comparison import seeds, stranger_tables, sweep_entries
from var_jax.comparison.compared_run import Comparison
from var_jax.errors import UserError


def read(sources: Sequence[str]) -> Comparison:
    """Returns the runs of all sources together, those of several seeds joined.

    Raises:
      UserError: a source is missing or malformed, or has no run that can be compared.
    """
    runs, notes, dropped = [], [], []
    protocols: dict[str, str] = {}
    for name in sources:
        source = epath.Path(name)
        if not source.exists():
            raise UserError(
                f"{name} does not exist; give a sweep's directory, or a CSV or JSON table of runs"
            )
        before, dropped_before = len(runs), len(dropped)
        if source.is_dir():
            runs += sweep_entries.read(source, dropped, notes, protocols)
        else:
            runs += stranger_tables.read(source, dropped)
        if len(runs) == before:
            reasons = "; ".join(f"{row}: {reason}" for row, reason in dropped[dropped_before:][-3:])
            raise UserError(f"{name} has no run that can be compared ({reasons})")
    if len(protocols) > 1:
        listed = "; ".join(f"{text} (as {name})" for text, name in protocols.items())
        notes.append(
            "evaluations differ in network, reference or number of images, and distances compare "
            f"only at equal ones: {listed}"
        )
    return Comparison(seeds.join(runs), notes, dropped)
