"""Imports point one way: what is named further down may import what is above it, never the other
way round."""

import ast
import functools
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "var_jax"

# Folders of the package, and the modules beside them, from the bottom to the top. Modules of one
# folder may import each other, without a circle.
FOLDERS = (
    "errors",
    "config",
    "devices",
    "ops",
    "models",
    "io",
    "data",
    "pretrained",
    "adapters",
    "sampling",
    "pipeline",
    "scaling",
    "comparison",
    "objectives",
    "train",
    "evaluate",
    "sweep",
    "perf",
    "studies",
    "demo",
    "cli",
    "__main__",
)
# The package itself holds the version and, when it is asked for, the pipeline.
CURATED = "__init__"


parse = functools.cache(ast.parse)  # every test looks at all sources


def level(module: str) -> int:
    """Returns the level of a module, given by its name below the package: that of its folder."""
    folder = module.split(".")[0]
    assert folder in FOLDERS, f"{module} is on no level of {Path(__file__).name}; name its folder"
    return FOLDERS.index(folder)


def imports(source: str, modules: set[str]) -> set[str]:
    """Modules of the package that a source imports at run time, wherever in it; not for its types
    alone."""
    result = set()

    def visit(node: ast.AST):
        if (
            isinstance(node, ast.If)
            and isinstance(node.test, ast.Name)
            and node.test.id == "TYPE_CHECKING"
        ):
            return
        if isinstance(node, ast.Import):
            result.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            result.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(parse(source))
    return {known for name in result if (known := within(name, modules))}


def within(name: str, modules: set[str]) -> str | None:
    """The module of the package that holds an imported name: `var_jax.config.strict.build` lies in
    `config`."""
    if name.split(".")[0] != "var_jax":
        return None
    parts = name.split(".")[1:]
    for end in range(len(parts), 0, -1):
        if ".".join(parts[:end]) in modules:
            return ".".join(parts[:end])
    return {"Pipeline": "pipeline"}.get(".".join(parts), CURATED)


def outside(source: str) -> set[str]:
    """Every name that a source imports, dotted."""
    result = set()
    for node in ast.walk(parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            base = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            result |= {f"{base}{alias.name}" for alias in node.names}
    return result


def violations(sources: dict[str, str]) -> list[str]:
    """`"a -> b"` for every arrow that goes up, and the rules about single libraries."""
    result = []
    for module, source in sources.items():
        for target in imports(source, set(sources)):
            if target != CURATED and module != CURATED and level(target) > level(module):
                result.append(f"{module} -> {target}")
        for name in outside(source):
            if name.split(".")[0] == "orbax" and module != "io.checkpoint":
                result.append(f"{module} imports orbax, which only io.checkpoint may")
            if (
                name.startswith("flax.linen")
                and module.startswith("ops.")
                and module != "devices.sharding"
            ):
                result.append(f"{module} imports flax.linen: ops are pure functions")
            if name.split(".")[0] in ("tensorflow", "torch"):
                result.append(f"{module} imports {name}, which nothing needs")
    return sorted(result)


def require_no_circle(sources: dict[str, str]):
    """Raises `graphlib.CycleError` if modules import each other in a circle, within functions too:
    Python starts with many circles, such as those."""
    names = set(sources)
    arrows = {name: imports(source, names) - {CURATED} for name, source in sources.items()}
    del arrows[CURATED]
    graphlib.TopologicalSorter(arrows).prepare()


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    files = {
        file.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."): file
        for file in ROOT.rglob("*.py")
    }
    return {name.removesuffix(".__init__"): file.read_text() for name, file in files.items()}


def test_imports_point_downward(sources):
    """No module imports from a folder above its own: the whole package is read."""
    assert sources.keys() >= {"errors", "ops.vq", "train.loop", "cli.main"}
    assert violations(sources) == []


def test_folders_hold_nearly_everything():
    """At most six files lie beside the folders, and every folder and file has its level."""
    beside = {file.stem for file in ROOT.glob("*.py")}
    folders = {path.name for path in ROOT.iterdir() if any(path.glob("*.py"))}
    assert len(beside) <= 6
    assert folders | beside - {CURATED} == set(FOLDERS)


def test_imports_have_no_circle(sources):
    """The whole package has none, and a planted one of two modules of one folder is found."""
    require_no_circle(sources)
    line = "def late():\n    from var_jax.ops import vq"
    with pytest.raises(graphlib.CycleError, match="vq"):
        require_no_circle({**sources, "ops.resize": f"{sources['ops.resize']}\n{line}\n"})


@pytest.mark.parametrize(
    ("module", "line", "result"),
    [
        ("errors", "from var_jax.config.strict import build", "errors -> config.strict"),
        ("ops.vq", "import var_jax.models.tokenizer", "ops.vq -> models.tokenizer"),
        (
            "models.tokenizer",
            "from var_jax.objectives import base",
            "models.tokenizer -> objectives.base",
        ),
        (
            "data.loader",
            "def f():\n    from var_jax.train.loop import train",
            "data.loader -> train.loop",
        ),
        ("sampling.sampler", "from var_jax import Pipeline", "sampling.sampler -> pipeline"),
        ("train.loop", "from var_jax.cli.main import main", "train.loop -> cli.main"),
        (
            "train.state",
            "import orbax.checkpoint as ocp",
            "train.state imports orbax, which only io.checkpoint may",
        ),
        ("ops.vq", "import flax.linen as nn", "ops.vq imports flax.linen: ops are pure functions"),
        ("ops.vq", "from flax import linen", "ops.vq imports flax.linen: ops are pure functions"),
        ("io.torch_file", "import torch", "io.torch_file imports torch, which nothing needs"),
    ],
)
def test_violations_names_the_arrow(sources, module, line, result):
    """A line that breaks a rule is found, and nothing else: the rules are not empty."""
    assert violations({**sources, module: f"{sources[module]}\n{line}\n"}) == [result]


def test_violations_allows_imports_for_types_and_of_the_own_level(sources):
    """Imports for annotations alone, of the own folder and of the package itself break no rule."""
    for module, line in (
        ("data.loader", "if TYPE_CHECKING:\n    from var_jax.train.loop import train"),
        ("train.loop", "from var_jax.train import progress"),
        ("cli.main", "import var_jax"),
        ("train.state", "import orbital"),
    ):
        assert violations({**sources, module: f"{sources[module]}\n{line}\n"}) == []


def test_level_refuses_an_unknown_folder():
    """A module in a folder that has no level is an error that names it."""
    with pytest.raises(AssertionError, match="utils"):
        level("utils.misc")


def test_import_of_the_package_loads_no_library():
    """A process that only imports the package has loaded neither JAX nor numpy, so that `--help`
    and a mistake in a command are answered at once."""
    code = "import sys, var_jax; print(sorted({'jax', 'flax', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("module", ["var_jax", "var_jax.io.checkpoint", "var_jax.train.loop"])
def test_import_leaves_hooks_filters_and_loggers_as_they_were(module):
    """A process that has loaded the libraries itself sees no change of the hook for exceptions that
    nobody raises, of the filters of warnings, or of any logger, when it imports the package."""
    code = f"""
import logging, sys, warnings
import flax, grain, jax, numpy, optax, orbax.checkpoint, tensorflow_datasets

def state():
    loggers = {{
        name: (logger.level, logger.disabled, [*logger.filters], [*logger.handlers])
        for name, logger in logging.root.manager.loggerDict.items()
        if isinstance(logger, logging.Logger) and not name.startswith("var_jax")
    }}
    root = (logging.root.level, [*logging.root.filters], [*logging.root.handlers])
    return {{"root": root, **loggers}}, sys.unraisablehook, [*warnings.filters]

loggers, *others = state()
import {module}
after, *others_after = state()
print(others == others_after, [name for name in loggers if after[name] != loggers[name]])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True []\n"
