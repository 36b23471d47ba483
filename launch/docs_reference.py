"""Hook of mkdocs (mkdocs.yml names it): writes the pages of the reference while the site is built.

Commands are described by their `--help`, config keys by the docstrings of the config's dataclasses,
Python by the docstrings of the package. No page of the reference is written by hand, and none is
kept in the repository.
"""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from var_jax.cli.main import COMMANDS
from var_jax.config import docs
from var_jax.config.strict import plain
from var_jax.config.train import default_config

ROOT = Path(__file__).parents[1]
COLUMNS = "96"  # of a help text; argparse reads the variable of this name


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Replaces the "Reference" entry of the navigation."""
    python = [{"Overview": "reference/python.md"}]
    python += [{room: f"reference/python/{room}.md"} for room in rooms()]
    reference = [
        {"Commands": "reference/commands.md"},
        {"Config keys": "reference/config.md"},
        {"Python": python},
    ]
    for entry in config.nav:
        if "Reference" in entry:
            entry["Reference"] = reference
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages to the site's files."""
    pages = {
        "reference/commands.md": commands_page(),
        "reference/config.md": config_page(),
        "reference/python.md": python_page(),
    }
    pages |= {f"reference/python/{room}.md": room_page(room) for room in rooms()}
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    return files


def rooms() -> list[str]:
    """Returns the names of the package's folders."""
    return sorted(path.parent.name for path in ROOT.glob("var_jax/*/__init__.py"))


def help_text(command: str) -> str:
    """Returns what `var-jax COMMAND --help` prints."""
    process = subprocess.run(
        [sys.executable, "-m", "var_jax", command, "--help"],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": COLUMNS, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return process.stdout


def commands_page() -> str:
    """Returns the page of the commands: a table, then the help text of each."""
    with ThreadPoolExecutor(2) as pool:
        texts = list(pool.map(help_text, COMMANDS))
    lines = [
        "# Commands",
        "",
        "`var-jax COMMAND` and `python -m var_jax COMMAND` are the same program. A mistake is",
        "answered with one line and exit code 2; a run that was preempted, with everything saved,",
        "ends with 75.",
        "",
        "| command | purpose |",
        "|---|---|",
        *(f"| [`{name}`](#{name}) | {purpose} |" for name, purpose in COMMANDS.items()),
    ]
    for name, text in zip(COMMANDS, texts, strict=True):
        lines += ["", f"## {name}", "", "```text", text.rstrip(), "```"]
    return "\n".join(lines) + "\n"


def config_page() -> str:
    """Returns the page of the config keys: one table per section."""
    default = plain(default_config().to_dict())
    lines = [
        "# Config keys",
        "",
        "A config is a Python file with `get_config(arg)`, which starts from",
        "`var_jax.config.train.default_config()`. `--config.KEY=VALUE` overrides a key in every",
        "command that takes `--config`, and `var-jax config FILE.py:ARG` prints the values of a",
        "file (with `--diff` only those that are not the defaults).",
    ]
    for section in docs.sections():
        title = f"`{section.name}`" if section.name else "The run"
        lines += ["", f"## {title}", "", section.about, "", "| key | default | meaning |"]
        lines += ["|---|---|---|"]
        for key in section.keys:
            meaning = key.meaning
            if key.choices:
                meaning += f" ({', '.join(f'`{choice!r}`' for choice in key.choices)})"
            cells = [f"`{key.path}`", f"`{_value(default, key.path)!r}`", meaning]
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def python_page() -> str:
    """Returns the page of the public object, with links to the rooms' pages."""
    links = [f"- [`var_jax.{room}`](python/{room}.md): {_first_line(room)}" for room in rooms()]
    return "\n".join(
        [
            "# Python",
            "",
            "`var_jax.Pipeline` is a trained model. Everything else is a module of one of these",
            "folders, which import downward only ([architecture](../architecture.md)):",
            "",
            *links,
            "",
            "::: var_jax.pipeline.Pipeline",
            "    options:",
            "      inherited_members: true",
            "",
            "::: var_jax.errors",
            "",
        ]
    )


def room_page(room: str) -> str:
    """Returns the page of one folder of the package: every module with its public names."""
    modules = sorted(path.stem for path in (ROOT / "var_jax" / room).glob("*.py"))
    names = [f"var_jax.{room}.{module}" for module in modules if module != "__init__"]
    blocks = [f"::: {name}" for name in names]
    return "\n\n".join([f"# var_jax.{room}", _first_line(room), *blocks]) + "\n"


def _first_line(room: str) -> str:
    """Returns the first paragraph of a folder's docstring."""
    import ast

    tree = ast.parse((ROOT / "var_jax" / room / "__init__.py").read_text())
    docstring = ast.get_docstring(tree) or ""
    return " ".join(docstring.split("\n\n")[0].split())


def _value(config: dict, path: str) -> object:
    """Returns the value at a dotted path of a nested dict."""
    for name in path.split("."):
        config = config[name]
    return config
