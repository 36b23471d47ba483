"""The house's rules, which a newcomer relies on: short files and lines, one file of a name, the
field's words as names, and functions whose arguments say what they are."""

import ast
import collections
import functools
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from helpers.sources import ROOT, File, sources

MOST_LINES = 400
MOST_COLUMNS = 100
MOST_POSITIONAL = 6
MOST_FILES_BESIDE_FOLDERS = 6
# Names that the project had before it took the field's own, and names that say nothing.
GONE = """
Static Dynamic Given Drawn Seeded begin _draw first_scales given_scales totals contribution
searched ideal_vectors kept draw_last inward outward untold whole _owning _at_once _taken _until
Critic Creation Phase First Features to_signal needs fools tells_apart similar beside_floor doubts
told everything apart who Judge hopeless silent last_words FENCE found given ours theirs wanted
drawn share_interval
"""


def positional(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.arg]:
    """Returns the parameters that a caller may give by position, but for `self` and `cls`."""
    parameters = [*function.args.posonlyargs, *function.args.args]
    return [p for p in parameters if p.arg not in ("self", "cls")]


def too_long(file: File) -> list[str]:
    count = len(file.text.splitlines())
    return [f"{file.path} has {count} lines"] if count > MOST_LINES else []


def too_wide(file: File) -> list[str]:
    return [
        f"{file.path}:{number} has {len(line)} columns"
        for number, line in enumerate(file.text.splitlines(), 1)
        if len(line) > MOST_COLUMNS
    ]


def too_many_parameters(file: File) -> list[str]:
    return [
        f"{file.path}:{function.lineno} {function.name} has {len(positional(function))}"
        for function in file.functions()
        if len(positional(function)) > MOST_POSITIONAL
    ]


def positional_booleans(file: File) -> list[str]:
    """A call such as f(x, True) does not say what is true."""
    places = []
    for function in file.functions():
        arguments = function.args
        parameters = [*arguments.posonlyargs, *arguments.args]
        defaults = dict(
            zip(
                [p.arg for p in parameters[len(parameters) - len(arguments.defaults) :]],
                arguments.defaults,
                strict=True,
            )
        )
        for parameter in positional(function):
            default = defaults.get(parameter.arg)
            by_default = isinstance(default, ast.Constant) and isinstance(default.value, bool)
            annotation = parameter.annotation
            if by_default or (annotation is not None and ast.unparse(annotation) == "bool"):
                places.append(f"{file.path}:{function.lineno} {function.name}({parameter.arg})")
    return places


def untyped_frozen(file: File) -> list[str]:
    """The frozen networks of an objective are typed and named."""
    return [
        f"{file.path}:{function.lineno} {function.name}(frozen: Any)"
        for function in file.functions()
        for parameter in (*function.args.args, *function.args.kwonlyargs)
        if parameter.arg == "frozen"
        and parameter.annotation is not None
        and ast.unparse(parameter.annotation) == "Any"
    ]


def unnamed_results(file: File) -> list[str]:
    """Three results and more have names, in a NamedTuple or a dataclass."""
    places = []
    for function in file.functions():
        result = function.returns
        if (
            isinstance(result, ast.Subscript)
            and ast.unparse(result.value) == "tuple"
            and isinstance(result.slice, ast.Tuple)
            and len(result.slice.elts) >= 3
        ):
            places.append(f"{file.path}:{function.lineno} {function.name}")
    return places


def names_of_before(file: File) -> list[str]:
    """Definitions, parameters, variables and attributes that are set; what is read or called may be
    another library's."""
    places = []
    for node in ast.walk(file.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            name = node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            name = node.attr
        elif isinstance(node, ast.arg):
            name = node.arg
        else:
            continue
        if name in GONE.split():
            places.append(f"{file.path}:{node.lineno} {name}")
    return places


def named_by_article(file: File) -> list[str]:
    """A test's name begins with the unit that it tests: test_<unit>_<behavior>."""
    articles = ("test_a_", "test_an_", "test_the_", "test_what_", "test_every_", "test_each_")
    return [
        f"{file.path}:{function.lineno} {function.name}"
        for function in file.functions()
        if function.name.startswith(articles)
    ]


def undocumented_tests(file: File) -> list[str]:
    """A test says which property holds, for those who see it fail."""
    return [
        f"{file.path}:{function.lineno} {function.name}"
        for function in file.functions()
        if function.name.startswith("test_") and ast.get_docstring(function) is None
    ]


def _is_stage(node: ast.AST) -> bool:
    """Whether an expression is a run's stage, or the section that an objective trains."""
    if isinstance(node, ast.Name):
        return node.id == "stage"
    if isinstance(node, ast.Subscript):
        return isinstance(node.slice, ast.Constant) and node.slice.value == "stage"
    return isinstance(node, ast.Attribute) and node.attr in ("stage", "section")


def _operands(node: ast.AST) -> list[ast.AST]:
    """Returns what a comparison, a match or a choice from a literal dict decides by."""
    if isinstance(node, ast.Compare):
        return [node.left, *node.comparators]
    if isinstance(node, ast.Match):
        return [node.subject]
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Dict):
        return [node.slice]
    return []


def switches_on_stage(file: File) -> list[str]:
    """What depends on what is trained is asked of the objective.

    The config's own validation may ask: `__post_init__` of a config's dataclass.
    """
    allowed = set()
    for function in file.functions():
        if file.folder == "var_jax/config" and function.name == "__post_init__":
            allowed.update(ast.walk(function))
    return [
        f"{file.path}:{node.lineno}"
        for node in ast.walk(file.tree)
        if node not in allowed and any(map(_is_stage, _operands(node)))
    ]


def names_an_objective(file: File) -> list[str]:
    """An objective is asked what it does, and not which one it is."""
    return [
        f"{file.path}:{node.lineno} {name}"
        for node in ast.walk(file.tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("var_jax.objectives")
        for name in (alias.name for alias in node.names)
        if name in objectives()
    ]


Rule = Callable[[File], list[str]]
# Folders and files that may do what a rule forbids elsewhere, because it is their matter:
# objectives are what is trained; `idle_keys` and `idle_rules` are the validation of keys without
# effect.
ALLOWED: dict[Rule, set[str]] = {
    switches_on_stage: {
        "var_jax/objectives",
        "var_jax/config/idle_keys.py",
        "var_jax/config/idle_rules.py",
    },
    names_an_objective: {"var_jax/objectives"},
}
PACKAGE_RULES = (
    too_long,
    too_wide,
    too_many_parameters,
    positional_booleans,
    untyped_frozen,
    unnamed_results,
    names_of_before,
    switches_on_stage,
    names_an_objective,
)


@functools.cache
def objectives() -> frozenset[str]:
    """Returns the names of the classes that derive from Objective, and of the modules with them."""
    names, modules = {"Objective"}, set()
    files = [file for file in sources("var_jax") if file.folder == "var_jax/objectives"]
    for _ in files:  # a class may be defined in a later file than one that derives from it
        for file in files:
            for node in file.tree.body:
                bases = [ast.unparse(base) for base in getattr(node, "bases", ())]
                if names & {base.partition("[")[0] for base in bases}:
                    names.add(node.name)
                    modules.add(file.path.stem)
    return frozenset(names - {"Objective"} | modules)


def broken(rule: Rule, top: str) -> list[str]:
    allowed = ALLOWED.get(rule, set())
    return [
        place
        for file in sources(top)
        if not any(file.path.is_relative_to(path) for path in allowed)
        for place in rule(file)
    ]


@pytest.mark.parametrize("rule", PACKAGE_RULES, ids=lambda rule: rule.__name__)
def test_package_keeps_the_rule(rule):
    """No source of the package has a place that the rule names; every source is read."""
    assert len(sources("var_jax")) > 100
    assert broken(rule, "var_jax") == []


@pytest.mark.parametrize(
    "rule",
    [too_long, too_wide, names_of_before, named_by_article, undocumented_tests],
    ids=lambda rule: rule.__name__,
)
@pytest.mark.parametrize("top", ["tests", "launch", "configs"])
def test_scripts_and_tests_keep_the_rule(top, rule):
    """Tests, scripts and configs have short files and lines and the field's words as names too, and
    tests are named after what they test."""
    assert sources(top) and broken(rule, top) == []


def test_package_has_few_files_beside_its_folders():
    """A newcomer who lists the package sees rooms, not files."""
    beside = [path.name for path in (ROOT / "var_jax").glob("*.py")]
    assert len(beside) <= MOST_FILES_BESIDE_FOLDERS, beside


def test_package_has_one_file_of_a_name():
    """A file's name finds one file, but for commands, which are named as what they run."""
    paths = collections.defaultdict(list)
    for file in sources("var_jax"):
        if file.path.name != "__init__.py" and file.folder != "var_jax/cli":
            paths[file.path.name].append(str(file.path))
    assert {name: places for name, places in paths.items() if len(places) > 1} == {}


def constants_with_two_homes(files: Iterable[File]) -> list[str]:
    """Constants with one name and one value in several files; aliases are none."""
    places = collections.defaultdict(list)
    for file in files:
        for node in file.tree.body:
            if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Name):
                continue
            name = node.targets[0].id
            is_alias = isinstance(node.value, ast.Name | ast.Attribute)
            if name.isupper() and not is_alias:
                places[name, ast.unparse(node.value)].append(str(file.path))
    return [f"{name} in {', '.join(homes)}" for (name, _), homes in places.items() if homes[1:]]


def test_package_has_one_home_of_a_constant():
    """A value that is changed in one of two places would leave the other behind: no two files of
    the package define one name with one value, which the check does find in two sources."""
    assert constants_with_two_homes(sources("var_jax")) == []
    twins = [File(Path(f"var_jax/ops/{name}.py"), "CODE = 75\nSIZE = 1") for name in "ab"]
    others = [File(Path("var_jax/ops/c.py"), "CODE = 2\nSIZE = a.SIZE")]
    assert constants_with_two_homes(others + twins[:1]) == []
    assert [line.split()[0] for line in constants_with_two_homes(twins)] == ["CODE", "SIZE"]


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (too_long, "\n" * 401),
        (too_wide, f"# {'x' * 99}"),
        (too_many_parameters, "def f(self, a, b, c, d, e, f, g): ..."),
        (positional_booleans, "def f(a, /, loud=False): ..."),
        (positional_booleans, "def f(loud: bool): ..."),
        (untyped_frozen, "def f(x, *, frozen: Any): ..."),
        (unnamed_results, "def f() -> tuple[int, int, str]: ..."),
        (names_of_before, "for found in x: ..."),
        (names_of_before, "def f(*, given): ..."),
        (names_of_before, "class Critic: ..."),
        (names_of_before, "self.kept = x"),
        (switches_on_stage, "x = 1 if config.stage in ('tokenizer',) else 2"),
        (switches_on_stage, "match stage:\n    case _: ..."),
        (switches_on_stage, "x = find(config).section == 'tokenizer'"),
        (switches_on_stage, "x = run['stage'] != 'tokenizer'"),
        (switches_on_stage, "x = {'tokenizer': 1, 'transformer': 2}[config.stage]"),
        (switches_on_stage, "def __post_init__(self):\n    x = self.stage == 'tokenizer'"),
        (names_an_objective, "from var_jax.objectives.next_scale import NextScale"),
        (named_by_article, "def test_the_loss(): ..."),
        (undocumented_tests, "def test_loss_is_finite():\n    assert loss < inf"),
    ],
)
def test_rule_names_a_place_that_breaks_it(rule, text):
    """The rules are not empty: each names the place in a source that breaks it."""
    (place,) = rule(File(Path("var_jax/ops/x.py"), text))
    assert place.startswith("var_jax/ops/x.py")


def test_switch_on_stage_is_allowed_in_validation_alone():
    """`__post_init__` of the config's dataclasses may ask for the stage, and nothing else there."""
    switch = "(self):\n    return self.stage == 'tokenizer'"
    config = Path("var_jax/config/x.py")
    assert switches_on_stage(File(config, f"def __post_init__{switch}")) == []
    assert switches_on_stage(File(config, f"def model{switch}")) == ["var_jax/config/x.py:2"]


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (too_long, "\n" * 400),
        (too_wide, f"# {'x' * 98}"),
        (too_many_parameters, "def f(self, a, b, c, d, e, f, *, g): ..."),
        (positional_booleans, "def f(a, *, loud: bool = False): ..."),
        (untyped_frozen, "def f(frozen: Frozen): ..."),
        (unnamed_results, "def f() -> tuple[int, ...]: ..."),
        (names_of_before, "x = y.found + library.given(whole=1)"),
        (switches_on_stage, "x = seconds[config.stage] if 'stage' in run else f'{config.stage}'"),
        (names_an_objective, "from var_jax.objectives.base import Objective"),
        (named_by_article, "def test_loss_is_finite(): ..."),
        (undocumented_tests, "def test_loss_is_finite():\n    'It has no overflow.'"),
        (undocumented_tests, "def loss_of(x):\n    return x"),
    ],
)
def test_rule_allows_what_it_should(rule, text):
    """What comes closest to breaking a rule is allowed."""
    assert rule(File(Path("var_jax/ops/x.py"), text)) == []
