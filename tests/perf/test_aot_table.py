"""The page of compiled steps, and what recipes and other pages take from its reports."""

import json
import re
from pathlib import Path

import pytest

from var_jax.perf import aot_lines

ROOT = Path(__file__).parents[2]
REPORTS = ROOT / "docs" / "results" / "aot"
PAGE = (ROOT / "docs" / "results" / "aot.md").read_text()


def test_table_of_the_page_is_that_of_its_reports():
    """The page's largest table is what `launch/aot_table.sh` prints for the reports beside it."""
    assert aot_lines.markdown(REPORTS) in PAGE


def bounds(report: Path) -> str:
    """Returns both bounds of a report's MFU as the page has them."""
    figures = json.loads(report.read_text())
    return f"{figures['mfu_bound']:.1%}, {figures['mfu_bound_exposed']:.1%}"


@pytest.mark.parametrize(
    "path", sorted((REPORTS / "fsdp_full").glob("*.json")), ids=lambda p: p.stem
)
def test_table_of_policies_has_the_reports_of_both(path):
    """Each row has the bounds of the report of fsdp, and those of the one of zero1."""
    program, slice_ = path.stem.split("_")
    row = next(
        line
        for line in PAGE.splitlines()
        if line.startswith(f"| {program} | {slice_.replace('-', ':')} |")
    )
    assert f"| {bounds(path)} |" in row and bounds(REPORTS / path.name) in row


def test_recipes_state_the_cost_of_their_reports():
    """The chip-hours in the headers of the ImageNet configs are those of the reports."""
    header = (ROOT / "configs" / "imagenet256.py").read_text().partition("from ml_collections")[0]
    costs = re.findall(
        r"^\| (\w+) +\| ([\d,]+ to [\d,]+) chip-hours of (\w+) ", header, re.MULTILINE
    )
    assert {"d16", "d20", "d24", "d30", "tokenizer"} == {name for name, *_ in costs}
    for name, hours, chip in costs:
        (report,) = REPORTS.glob(f"{name}_{chip}-{'4x4x8' if chip == 'v5p' else '16x16'}.json")
        assert hours == chip_hours(report), name
    header = (ROOT / "configs" / "imagenet512.py").read_text()
    assert f"{chip_hours(REPORTS / 'd36_v5p-4x4x8.json')} chip-hours of TPU v5p" in header


def chip_hours(report: Path) -> str:
    figures = json.loads(report.read_text())
    return f"{figures['chip_hours']:,.0f} to {figures['chip_hours_exposed']:,.0f}"
