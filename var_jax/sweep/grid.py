"""Combinators of override dicts, {"optimizer.base_lr": 1e-4, ...}, for `get_sweep`."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from var_jax.errors import UserError

Overrides = dict[str, Any]


def sweep(key: str, values: Iterable[Any]) -> list[Overrides]:
    """Returns one override dict per value of a key."""
    return [{key: native(value)} for value in values]


def product(*families: Iterable[Overrides]) -> list[Overrides]:
    """Returns every combination of one member of each family; the last family varies fastest."""
    return [_merged(members) for members in itertools.product(*families)]


def zip(*families: Iterable[Overrides]) -> list[Overrides]:
    """Merges the members of the families that have the same index.

    Raises:
      UserError: the families are not equally long.
    """
    lists = [list(family) for family in families]
    if len({len(members) for members in lists}) > 1:
        raise UserError(
            f"zip of families of {', '.join(str(len(members)) for members in lists)} members; "
            "they must be equally long"
        )
    return [
        _merged([members[i] for members in lists]) for i in range(len(lists[0]) if lists else 0)
    ]


def annealed(member: Overrides, steps: Sequence[int], cooldown: float) -> list[Overrides]:
    """Returns one override dict trained for several numbers of steps, all to the end of a cooldown.

    The longest run comes first; every other one is a branch off it, where its own cooldown begins,
    and computes that alone (Hägele et al. 2024). The base's `optimizer.schedule` is "cooldown".

    Args:
      member: what the runs share.
      steps: numbers of steps, in ascending order.
      cooldown: share of a run's steps that its cooldown takes.
    """

    def length(n: int) -> Overrides:
        return {"steps": n, "optimizer.cooldown_steps": round(cooldown * n)}

    trunk = {**member, **length(steps[-1])}
    branches = [
        {**member, **length(n), "branch_from": trunk, "branch_step": n - round(cooldown * n)}
        for n in steps[:-1]
    ]
    return [trunk, *branches]


def between(base: Mapping[str, Any], other: Mapping[str, Any]) -> Overrides:
    """Returns the keys in which a config's nested values differ from a base, as overrides of it.

    A sweep over configs that other files or functions make gets its members by it.

    Args:
      base: `to_dict()` of the ConfigDict that a sweep's `get_config` returns.
      other: that of another ConfigDict of the same keys.
    """
    overrides: Overrides = {}
    for key, value in other.items():
        if isinstance(value, Mapping):
            inner = between(base[key], value)
            overrides |= {f"{key}.{name}": changed for name, changed in inner.items()}
        elif value != base[key]:
            overrides[key] = value
    return overrides


def chain(*families: Iterable[Overrides]) -> list[Overrides]:
    """Returns the members of all families, one family after the other."""
    return [native(member) for family in families for member in family]


def native(value: Any) -> Any:
    """Converts numbers and arrays of numpy, JAX and ml_dtypes to Python types.

    Values within dicts and lists are converted too, and an array becomes a tuple, as in configs.
    The repr of a numpy number has its type, "np.float64(0.001)", which no config reads, and arrays
    cannot be compared by truth value.
    """
    if isinstance(value, Mapping):
        return {key: native(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(native, value)) if type(value) in (list, tuple) else value
    if hasattr(value, "tolist") and hasattr(value, "shape"):
        return _as_tuple(value.tolist())
    return value


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value


def _merged(members: Iterable[Overrides]) -> Overrides:
    merged: Overrides = {}
    for member in members:
        for key, value in native(member).items():
            if key in merged and merged[key] != value:
                raise UserError(
                    f"a sweep sets {key} to {merged[key]!r} and to {value!r} in one run; "
                    "let one of its families set it"
                )
            merged[key] = value
    return merged
