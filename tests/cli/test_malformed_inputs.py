"""Every command on malformed inputs: one line that names the input, exit code 2, nothing written.

The table of docs/results/malformed_inputs.md is what this module prints:

  PYTHONPATH=.:tests python tests/cli/test_malformed_inputs.py > docs/results/malformed_inputs.md
"""

import contextlib
import io
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from helpers import small
from malformed import files, runs
from malformed.inputs import Case
from var_jax.cli.main import main

CASES = files.CASES | runs.CASES


def refuse(case: Case) -> tuple[int, str, str]:
    """Runs a case where one is; returns the exit code, stderr and stdout."""
    case.make()
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(case.command.split(" "))
    return code, err.getvalue(), out.getvalue()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_commands_refuse_malformed_inputs_in_one_line(case, model_dir, tmp_path, monkeypatch):
    """Holds for every input of the table that its line names what was wrong, that the exit code is
    2, and that no file comes, goes or changes; a reader that takes the input for sound prints
    something else or writes the output."""
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


def contents() -> dict[str, bytes | None]:
    """{path: content} below the working directory; None of what is no readable file. What TFDS
    keeps for itself is left out."""
    paths = [path for path in sorted(Path(".").rglob("*")) if path.parts[0] != "tfds"]
    return {str(path): path.read_bytes() if path.is_file() else None for path in paths}


def test_table_of_malformed_inputs_has_every_case():
    """A case that is added is added to the guide, by the command in this module's docstring."""
    table = Path(__file__).parents[2] / "docs" / "results" / "malformed_inputs.md"
    rows = [line for line in table.read_text().splitlines() if line.startswith("| ")]
    names = [row.split("|")[1].strip().strip("`") for row in rows[1:]]
    assert names == list(CASES)


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
            line = error.strip().replace("|", "\\|").replace("a" * 300, "aaa...")
            command = case.command.replace("a" * 300, "aaa...")
            print(f"| `{name}` | {case.what} | `{command}` | {code} | {line} |", flush=True)
        os.chdir(above)


if __name__ == "__main__":
    print_table()
