"""How the wall time of a run is divided: the shares that a run keeps in its status.json.

The seconds of all categories add up to the wall time from the first start of a workdir to the last
report of its run, whatever ended its processes in between. Time after a run was done, until a
longer one goes on in the same workdir, is not the run's and does not count.
"""

import datetime
from collections.abc import Mapping
from typing import Any

from var_jax.io.json import is_finite_number

KEY = "goodput"  # of status.json

# Categories of the wall time, by the words that describe them; `steps` is the goodput.
CATEGORIES = {
    "steps": "steps",
    "data": "waiting for data",
    "evaluation": "evaluation",
    "checkpoints": "checkpoints",
    "compilation": "compilation",
    "start": "start-up",
    "repeated": "repeated steps",
    "stopped": "stopped",
}
RESTARTS = ("start", "repeated", "stopped")


def seconds(status: Mapping[str, Any]) -> dict[str, float]:
    """Returns the seconds per category of a status.json, all of them; {} if it has no valid ones.

    Runs of earlier versions have none.
    """
    record = status.get(KEY)
    if not isinstance(record, dict) or not _is_seconds(record.get("until")):
        return {}
    values = record.get("seconds")
    if not isinstance(values, dict) or not all(map(_is_seconds, values.values())):
        return {}
    return {name: float(values.get(name, 0.0)) for name in CATEGORIES}


def seconds_since(status: Mapping[str, Any], now: float) -> float:
    """Returns how long before `now` (since 1970) the run made the report that `seconds` reads."""
    return max(0.0, now - status[KEY]["until"])


def line(values: Mapping[str, float]) -> str:
    """Returns the shares of the wall time in one line.

    Args:
      values: seconds per category, as `seconds` returns them.
    """
    total = sum(values.values())
    share = {name: value / total if total else 0.0 for name, value in values.items()}
    parts = [
        f"{share[name]:.1%} {words}" for name, words in CATEGORIES.items() if name not in RESTARTS
    ]
    restarts = ", ".join(f"{share[name]:.1%} {CATEGORIES[name]}" for name in RESTARTS)
    parts.append(f"{sum(share[name] for name in RESTARTS):.1%} starts and restarts ({restarts})")
    wall = datetime.timedelta(seconds=round(total))
    return f"wall time {wall}: {', '.join(parts)}"


def _is_seconds(value: Any) -> bool:
    return is_finite_number(value) and value >= 0
