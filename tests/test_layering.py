"""Imports point one way: what is named further down may import what is above it, never the other
way round."""

import ast
import functools
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "var_jax"

# From the bottom to the top; a package stands for all its modules that no longer name gives.
# Modules of one level may import each other (without a circle, which Python itself refuses at
# start).
LEVELS = (
    ("errors", "chips"),
    ("whole_file", "labels", "file_kinds", "finite", "state_dicts", "run_records"),
    ("ops",),
    ("config",),
    ("schedules",),
    ("models", "networks", "torch_file", "checkpoint", "pictures", "data", "distributed"),
    ("published",),
    ("convert", "generate", "inputs", "model_directory"),
    ("pipeline", "scaling"),
    ("train",),
    ("evaluate",),
    (
        "quickstart",
        "bench",
        "bench_tokens",
        "sweep",
        "aot",
        "tokenize",
        "sample_set",
        "demo",
        "demo_page",
    ),
    ("cli",),
    ("__main__",),
)
# The package itself holds the version and, when it is asked for, the pipeline.
CURATED = "__init__"


parse = functools.cache(ast.parse)  # every test looks at all sources


def level(module: str) -> int:
    """Of a module's name below the package, by the longest name that is it or a package it lies
    in."""
    found = [
        (len(name), i)
        for i, names in enumerate(LEVELS)
        for name in names
        if module == name or module.startswith(f"{name}.")
    ]
    assert found, f"{module} is on no level of {Path(__file__).name}; put it where it belongs"
    return max(found)[1]


def imports(source: str, modules: set[str]) -> set[str]:
    """Modules of the package that a source imports at run time, wherever in it; not for its types
    alone."""
    found = set()

    def visit(node: ast.AST):
        if (
            isinstance(node, ast.If)
            and isinstance(node.test, ast.Name)
            and node.test.id == "TYPE_CHECKING"
        ):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(parse(source))
    return {known for name in found if (known := within(name, modules))}


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
    found = set()
    for node in ast.walk(parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            base = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            found |= {f"{base}{alias.name}" for alias in node.names}
    return found


def violations(sources: dict[str, str]) -> list[str]:
    """`"a -> b"` for every arrow that goes up, and the rules about single libraries."""
    found = []
    for module, source in sources.items():
        for target in imports(source, set(sources)):
            if target != CURATED and module != CURATED and level(target) > level(module):
                found.append(f"{module} -> {target}")
        for name in outside(source):
            if name.split(".")[0] == "orbax" and module != "checkpoint":
                found.append(f"{module} imports orbax, which only checkpoint may")
            if (
                name.startswith("flax.linen")
                and module.startswith("ops.")
                and module != "ops.partition"
            ):
                found.append(f"{module} imports flax.linen: ops are pure functions")
            if name.split(".")[0] in ("tensorflow", "torch"):
                found.append(f"{module} imports {name}, which nothing needs")
    return sorted(found)


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    files = {
        file.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."): file
        for file in ROOT.rglob("*.py")
    }
    return {name.removesuffix(".__init__"): file.read_text() for name, file in files.items()}


def test_no_arrow_goes_up(sources):
    assert len(sources) > 40 and sources.keys() >= {"errors", "ops.vq", "train.loop", "cli.main"}
    packages = {name for name in sources if any(other.startswith(f"{name}.") for other in sources)}
    assert all(level(name) >= 0 for name in sources.keys() - packages - {CURATED})
    assert violations(sources) == []


@pytest.mark.parametrize(
    ("module", "line", "found"),
    [
        ("errors", "from var_jax.config.model import build", "errors -> config"),
        ("ops.vq", "import var_jax.models.tokenizer", "ops.vq -> models.tokenizer"),
        (
            "models.tokenizer",
            "from var_jax.objectives import losses",
            "models.tokenizer -> train.losses",
        ),
        (
            "data.loader",
            "def f():\n    from var_jax.config.train import DataConfig",
            "data.loader -> train.config",
        ),
        ("generate", "from var_jax import Pipeline", "generate -> pipeline"),
        ("train.loop", "from var_jax.cli.main import main", "train.loop -> cli.main"),
        (
            "train.state",
            "import orbax.checkpoint as ocp",
            "train.state imports orbax, which only checkpoint may",
        ),
        ("ops.vq", "import flax.linen as nn", "ops.vq imports flax.linen: ops are pure functions"),
        ("ops.vq", "from flax import linen", "ops.vq imports flax.linen: ops are pure functions"),
        ("torch_file", "import torch", "torch_file imports torch, which nothing needs"),
    ],
)
def test_what_it_would_find(sources, module, line, found):
    assert violations({**sources, module: f"{sources[module]}\n{line}\n"}) == [found]


def test_what_is_allowed(sources):
    for module, line in (
        ("data.loader", "if TYPE_CHECKING:\n    from var_jax.config.train import DataConfig"),
        ("train.loop", "from var_jax.train import metrics"),
        ("cli.main", "import var_jax"),
        ("train.state", "import orbital"),
    ):
        assert violations({**sources, module: f"{sources[module]}\n{line}\n"}) == []


def test_a_module_on_no_level_is_told():
    with pytest.raises(AssertionError, match="utils is on no level"):
        level("utils")
