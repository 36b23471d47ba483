"""Finds the config file that `--config` names: by its path, or by the name of a shipped config."""

import difflib
import os
from pathlib import Path

from var_jax.errors import UserError, did_you_mean

PACKAGE = Path(__file__).parents[1]


def find(path: str) -> str:
    """Returns the path of a config file, given by its path or by its name, such as "digits".

    A file of that path comes first, whatever its name. Where there is no folder `configs`, as away
    from a checkout, `configs/digits.py` is the shipped config too, so that the commands of the
    guides work there.

    Raises:
      UserError: there is neither such a file nor a config of that name.
    """
    if os.path.isfile(path):
        return path
    names = shipped()
    name = path
    if os.path.dirname(path) == "configs" and not os.path.lexists("configs"):
        name = Path(path).stem
    if name in names:
        return str(names[name])
    raise UserError(f"no config file {path!r}; {_remedy(path, names)}")


def shipped() -> dict[str, Path]:
    """Returns the configs that come with var_jax, by name.

    They lie in the checkout's `configs/`, which an installed package has in its own folder.
    """
    installed = PACKAGE / "configs"
    folder = installed if installed.is_dir() else PACKAGE.parent / "configs"
    return {file.stem: file for file in sorted(folder.glob("*.py"))}


def _remedy(path: str, names: dict[str, Path]) -> str:
    """Returns a hint about a config file that was not found."""
    if os.path.lexists(path):
        kind = "a directory" if os.path.isdir(path) else "a link that leads to no file"
        return f"it is {kind}"
    beside = [str(file) for file in Path(path).parent.glob("*.py")]
    if close := difflib.get_close_matches(path, beside, n=1):
        return f"did you mean {close[0]!r}?"
    name = Path(path).stem
    if name in names:
        return f"var_jax's own config of that name is given without a path, as {name!r}"
    known = did_you_mean(name, names).removeprefix("; ") if names else "none is installed"
    return f"give the path of a file, or the name of a config that comes with var_jax ({known})"
