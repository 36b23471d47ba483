"""The generated pages of the documentation name everything that they are about."""

from pathlib import Path

import pytest

from helpers.scripts import load_script
from var_jax.config.docs import sections

pytest.importorskip("mkdocs", reason="mkdocs comes with the extra [docs]")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def docs_reference():
    return load_script("docs_reference")


def test_config_page_has_a_row_for_every_key(docs_reference):
    """Each key of the dataclasses is one row with three cells: a meaning with a "|" in it would
    make more of them."""
    rows = [line for line in docs_reference.config_page().splitlines() if line.startswith("| `")]
    keys = [key.path for section in sections() for key in section.keys]
    assert [row.split("`")[1] for row in rows] == keys
    assert {row.replace("\\|", "").count("|") for row in rows} == {4}


def test_room_page_has_every_module(docs_reference):
    """Every module of the package is on the page of its folder; each folder has a first line."""
    for room in docs_reference.rooms():
        page = docs_reference.room_page(room)
        modules = {path.stem for path in (ROOT / "var_jax" / room).glob("*.py")} - {"__init__"}
        assert modules == {
            line.rpartition(".")[2] for line in page.splitlines() if line.startswith("::: ")
        }
        assert page.split("\n\n")[1].endswith("."), room
