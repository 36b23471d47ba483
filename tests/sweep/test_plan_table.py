import pytest

from sweep import drive
from var_jax.devices.chips import CHIPS
from var_jax.errors import UserError
from var_jax.sweep import plan


def rows(**settings) -> list[list[str]]:
    sweep = drive.sweep("sweep", seeds=1)
    return [
        line.split() for line in plan.lines(sweep.runs, **{"chip": "v5p", "mfu": 0.4, **settings})
    ]


def test_plan_table_adds_up():
    """The table has the runs' ids, sizes and FLOPs. Its last row sums the FLOPs that are left to
    do, to which a branch adds its own last fifth; hours and cost follow from the chip's peak, the
    utilization and the price."""
    trunk, branch = drive.sweep("sweep", seeds=1).runs
    header, first, second, total = rows(price=1e9)
    assert header == [
        "run",
        "overrides",
        "params",
        "body",
        "tokens",
        "FLOPs",
        "to",
        "do",
        "v5p-hours",
        "cost",
    ]
    assert first[0] == trunk.id and second[0] == branch.id
    assert [int(text.replace(",", "")) for text in first[-7:-5]] == [
        trunk.params["total"],
        trunk.params["body"],
    ]
    to_do, hours, cost = (float(text.replace(",", "")) for text in total[-3:])
    assert to_do == pytest.approx(trunk.compute + branch.compute / 5, rel=5e-3)
    assert hours == pytest.approx(to_do / (0.4 * CHIPS["v5p"].peak_flops * 3600), rel=1e-2)
    assert cost == pytest.approx(hours * 1e9, rel=1e-2)
    assert float(second[-4]) == pytest.approx(branch.compute, rel=5e-3)  # what the law sees


def test_plan_table_has_no_cost_without_a_price():
    """Without a price the header and the rows have no column for the cost."""
    assert rows()[0][-1] == "v5p-hours" and len(rows()[-1]) == len(rows(price=1.0)[-1]) - 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"chip": "v5q"}, "--chip 'v5q' is not in the table; did you mean 'v5p'"),
        ({"mfu": 0.0}, "--mfu is 0; it must be above 0 and at most 1"),
        ({"mfu": 40.0}, "--mfu is 40"),
        ({"price": -1.0}, "--price is -1"),
    ],
)
def test_plan_table_names_mistakes_in_options(settings, words):
    """An unknown chip, and a utilization or a price out of range, are refused with the option and
    its value."""
    with pytest.raises(UserError, match=words):
        rows(**settings)


def test_aligned_pads_cells_to_their_columns():
    """Every cell is padded to the width of its column: the first column is flush left and the
    second one flush right."""
    assert plan.aligned([["a", "1"], ["bcd", "23"]], left=1) == ["a     1", "bcd  23"]
