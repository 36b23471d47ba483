"""The notebooks of docs/notebooks run as they stand, and keep their outputs small."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
TRAINING_STEPS = re.compile(r"(--config\.(?:steps|eval_every|checkpoint_every)=)\d+")
MAX_BYTES = 400_000  # of a file with its pictures: a repository keeps every version


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.parametrize(
    "steps",
    [
        pytest.param(10, marks=pytest.mark.slow),
        pytest.param(None, marks=pytest.mark.study, id="all"),
    ],
)
def test_notebook_runs_from_its_own_folder(path, steps):
    """An error in a cell ends the run, whose trainings have ten steps or as many as the notebook
    says; a kernel started by Jupyter begins in the file's folder."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells if steps else []:
        cell.source = TRAINING_STEPS.sub(rf"\g<1>{steps}", cell.source)
    resources = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=3600, kernel_name="python3", resources=resources).execute()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_committed_executed_and_small(path):
    """A reader on the site sees what the cells gave, in order, without errors or local paths."""
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    kinds = {output.output_type for cell in cells for output in cell.outputs}
    assert kinds <= {"stream", "display_data", "execute_result"}
    text = path.read_text()
    assert len(text) < MAX_BYTES
    assert str(ROOT) not in text
