"""Scripts and config files that lie outside any package, loaded as modules."""

import importlib.util
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]


def load_module(path: Path) -> ModuleType:
    """Returns a Python file as a fresh module, which `sys.modules` does not list."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_script(name: str) -> ModuleType:
    """Returns a script of `launch/` by its file's name without the ending."""
    return load_module(ROOT / "launch" / f"{name}.py")
