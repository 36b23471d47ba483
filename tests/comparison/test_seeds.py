"""`comparison.seeds`: runs of several seeds become a mean with an interval."""

import pytest

from var_jax.comparison import seeds
from var_jax.comparison.compared_run import ComparedRun, Measured
from var_jax.errors import UserError


def run(value, name="a", flops=1e12, ci95=None):
    costs = {"train_flops": flops, "seconds_per_image": value}
    return ComparedRun("masked", name, costs, {"fid": Measured(value, ci95)})


def test_mean_with_interval_is_that_of_students_t():
    """Three values of mean 2 and deviation 1 have the interval 2 ± 4.3027 / sqrt(3), by a printed
    table of Student's t for two degrees of freedom."""
    mean, ends = seeds.mean_with_interval([1.0, 2.0, 3.0])
    assert mean == 2
    assert ends == pytest.approx((2 - 2.48414, 2 + 2.48414), abs=1e-4)


def test_join_averages_seeds_and_keeps_other_runs_apart():
    """Seeds of one run at one compute become one run; another compute or name is another run, which
    keeps the interval that it came with."""
    runs = [(run(1.0), 0), (run(3.0), 1), (run(5.0, flops=2e12, ci95=(4.0, 6.0)), 0)]
    joined = seeds.join([*runs, (run(7.0, name="b"), 0)])
    assert [r.quality["fid"].value for r in joined] == [2.0, 5.0, 7.0]
    assert [r.seeds for r in joined] == [2, 1, 1]
    assert joined[0].costs["seconds_per_image"] == 2
    assert joined[1].quality["fid"].ci95 == (4.0, 6.0)


@pytest.mark.parametrize(("seed", "words"), [(None, "without a seed"), (3, "with the seed 3")])
def test_join_refuses_a_repeated_run(seed, words):
    """Two rows of one run would count as independent runs; the line says how to name them."""
    with pytest.raises(UserError, match=words):
        seeds.join([(run(1.0), seed), (run(2.0), seed)])
