"""The sources of the checkout, as tests of how they read take them."""

import ast
import dataclasses
import functools
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class File:
    """A Python source: its path below the checkout, and its text."""

    path: Path
    text: str

    @functools.cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def folder(self) -> str:
        """Returns such as "var_jax/ops"; the file itself for one that lies beside the folders."""
        return "/".join(self.path.parts[:2])

    def texts(self) -> Iterator[tuple[int, str]]:
        """Yields (line, text on one line) of every comment and string; what is inserted into a
        string is a 0."""
        for token in tokenize.generate_tokens(io.StringIO(self.text).readline):
            if token.type == tokenize.COMMENT:
                yield token.start[0], " ".join(token.string.split())
        nodes = list(ast.walk(self.tree))
        templates = [node for node in nodes if isinstance(node, ast.JoinedStr)]
        parts = {part for template in templates for part in template.values}
        for template in templates:
            values = [getattr(part, "value", None) for part in template.values]
            text = "".join(value if isinstance(value, str) else "0" for value in values)
            yield template.lineno, " ".join(text.split())
        for node in nodes:
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in parts:
                yield node.lineno, " ".join(node.value.split())

    def functions(self) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
        for node in ast.walk(self.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield node


@functools.cache
def sources(top: str) -> tuple[File, ...]:
    return tuple(
        File(path.relative_to(ROOT), path.read_text())
        for path in sorted((ROOT / top).rglob("*.py"))
    )
