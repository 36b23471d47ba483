"""`comparison.equal_compute`: the order of objectives at one compute, and what it rests on."""

import pytest

from var_jax.comparison import equal_compute
from var_jax.comparison.compared_run import ComparedRun, Comparison, Measured


def run(objective, value, flops=3e13, ci95=None, quality="fid"):
    return ComparedRun(
        objective, f"{value}", {"train_flops": flops}, {quality: Measured(value, ci95)}
    )


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (14.0, "next_scale is ahead: no interval overlaps its own."),
        (12.5, "The interval of next_scale overlaps that of masked."),
        (None, "Without all intervals, the order may be by chance."),
    ],
)
def test_sentences_rest_on_the_overlap_of_intervals(end, words):
    """Of two objectives at one compute the lower distance comes first; it is called ahead only if
    both intervals are there and apart."""
    ends = None if end is None else (end, 17.0)
    runs = [run("masked", 15.0, 3.1e13, ends), run("next_scale", 12.0, 3e13, (11.0, 13.0))]
    (text,) = equal_compute.sentences(Comparison(runs))
    assert text.startswith("fid at 3e+13 training FLOPs: next_scale 12 [11, 13], masked 15")
    assert text.endswith(words)


def test_sentences_take_the_best_run_of_each_objective():
    """Of several learning rates the best stands for its objective, with how many it is the best of;
    a share is better the higher."""
    runs = [run("masked", value, quality="recall") for value in (0.2, 0.4, 0.3)]
    (text,) = equal_compute.sentences(Comparison([*runs, run("flow", 0.3, quality="recall")]))
    assert "masked 0.4 (best of 3 runs), flow 0.3." in text


def test_sentences_leave_out_other_computes_and_what_is_not_comparable():
    """Runs whose compute differs by a tenth, losses of other tokens, and qualities without a known
    direction give no sentence."""
    for runs in (
        [run("masked", 1.0), run("flow", 2.0, 3.3e13)],
        [run("masked", 1.0, quality="loss"), run("flow", 2.0, quality="loss")],
        [run("masked", 1.0, quality="beauty"), run("flow", 2.0, quality="beauty")],
    ):
        assert equal_compute.sentences(Comparison(runs)) == []
