"""Every command on malformed inputs: one line that names the input, exit code 2, nothing written.

The table of docs/results/malformed_inputs.md is what this module prints:

  PYTHONPATH=.:tests python tests/cli/test_malformed_inputs.py > docs/results/malformed_inputs.md
"""

import contextlib
import io
import os
import re
import shutil
import tempfile
from pathlib import Path

import pytest

from helpers import small
from malformed import comparisons, files, runs
from malformed.inputs import Case
from var_jax.cli.main import main

CASES = files.CASES | runs.CASES | comparisons.CASES
TABLE = Path(__file__).parents[2] / "docs" / "results" / "malformed_inputs.md"


def refuse(case: Case) -> tuple[int, str, str]:
    """Runs a case where one is; returns the exit code, stderr and stdout."""
    case.make()
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(case.command.split(" "))
    return code, err.getvalue(), out.getvalue()


@pytest.mark.parametrize("name", CASES)
def test_commands_refuse_malformed_inputs_in_one_line(name, model_dir, tmp_path, monkeypatch):
    """Holds for every input of the table that its line names what was wrong and is that of the
    guide, that the exit code is 2, and that no file comes, goes or changes; a reader that takes the
    input for sound prints something else or writes the output."""
    case = CASES[name]
    monkeypatch.setenv("SLURM_NTASKS", "1")  # this process has used JAX and joins no others
    shutil.copytree(model_dir, tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    made = []
    listing = case._replace(make=lambda: (case.make(), made.append(contents())))
    code, error, printed = refuse(listing)
    assert (code, printed) == (2, ""), error
    assert error.startswith("var-jax: ") and error.count("\n") == 1, error
    assert case.words in error
    assert contents() == made[0]
    assert cells(case, code, error) == table_rows()[name]


def contents() -> dict[str, bytes | None]:
    """{path: content} below the working directory; None of what is no readable file. What TFDS
    keeps for itself is left out."""
    paths = [path for path in sorted(Path(".").rglob("*")) if path.parts[0] != "tfds"]
    return {str(path): path.read_bytes() if path.is_file() else None for path in paths}


def cells(case: Case, code: int, error: str) -> list[str]:
    """Returns the cells of a case's row after its name, as the table has them."""

    def shorten(text: str) -> str:
        return text.replace("|", "\\|").replace("a" * 300, "aaa...")

    line = shorten(error.strip()).replace(f"{Path.cwd()}/", "")
    return [case.what, f"`{shorten(case.command)}`", str(code), line]


def table_rows() -> dict[str, list[str]]:
    """Returns {case: its further cells} of the guide's table."""
    rows = [line for line in TABLE.read_text().splitlines() if line.startswith("| `")]
    split_rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]
    return {name.strip("`"): further for name, *further in split_rows}


def test_table_of_malformed_inputs_has_every_case():
    """A case that is added is added to the guide, by the command in this module's docstring."""
    assert list(table_rows()) == list(CASES)


def print_table():
    """Prints docs/results/malformed_inputs.md: what each case's command answers."""
    print("# Malformed inputs\n")
    print("What the commands answer to inputs that are damaged, of another kind or out of range.")
    print("`tests/cli/test_malformed_inputs.py` makes the inputs, checks the answers, and wrote")
    print("this table by `PYTHONPATH=.:tests python tests/cli/test_malformed_inputs.py`.\n")
    print("| case | input | command | exit code | line |\n|---|---|---|---|---|")
    os.environ["SLURM_NTASKS"] = "1"
    above = Path.cwd()
    with tempfile.TemporaryDirectory() as directory:
        small.pipeline().save(Path(directory) / "model")
        for name, case in CASES.items():
            place = Path(directory) / f"case_{name}"
            shutil.copytree(Path(directory) / "model", place / "model")
            os.chdir(place)
            code, error, _ = refuse(case)
            print(f"| `{name}` | {' | '.join(cells(case, code, error))} |", flush=True)
        os.chdir(above)


if __name__ == "__main__":
    print_table()
