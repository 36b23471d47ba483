"""Reads the runs of a sweep, as override dicts, from a config file."""

import re

from var_jax.cli.args import call, read_config
from var_jax.errors import UserError


def read(config: str) -> list[dict]:
    """Returns the checked result of the config file's `get_sweep`.

    Raises:
      UserError: the file has none, or it returns something else than a list of override dicts.
    """
    read_config(config)  # reports faults of the file's get_config first
    family, file = call(config, "get_sweep"), config.partition(":")[0]
    returned = f"get_sweep() of {file} returns"
    if not isinstance(family, list):
        raise UserError(f"{returned} {type(family).__name__}; it must be a list of dicts")
    for number, member in enumerate(family):
        if not isinstance(member, dict):
            raise UserError(f"{returned} {member!r:.60} as run {number}; it must be a dict")
        _require_keys(member, f"{returned} run {number} with")
    return family


def _require_keys(member: dict, returned: str):
    """Raises UserError for a key that is none of a config, and of a section in place of a value."""
    for key, value in member.items():
        right = isinstance(key, str) and re.fullmatch(r"[a-z]\w*(\.\w+)*", key)
        if not right or key.startswith("config."):
            raise UserError(
                f"{returned} the key {key!r:.60}; it must be such as 'optimizer.base_lr'"
            )
        if key == "branch_from" and isinstance(value, dict):
            _require_keys(value, f"{returned} branch_from with")
        elif isinstance(value, dict):
            inner = next(iter(value), "KEY")
            raise UserError(f"{returned} a dict as {key!r}; it must be given as '{key}.{inner}'")
