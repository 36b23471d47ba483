"""`comparison.quality_laws`: laws per objective, and what they tell of ten times the compute."""

import numpy as np
import pytest

from var_jax.comparison import compared_run, quality_laws
from var_jax.comparison.compared_run import ComparedRun, Comparison, Measured

FLOPS = 1e12 * 3.0 ** np.arange(6)


def runs(objective, values, quality="frechet_distance", tokenizer=""):
    return [
        ComparedRun(
            objective,
            f"{objective}{i}",
            {"train_flops": flops},
            {quality: Measured(value, None)},
            tokenizer=tokenizer,
        )
        for i, (flops, value) in enumerate(zip(FLOPS, values, strict=False))
    ]


def law(floor, amplitude, seed=0, noise=0.01):
    noises = np.random.default_rng(seed).normal(size=len(FLOPS)) * noise
    return (floor + amplitude * (FLOPS / 1e12) ** -0.3) * np.exp(noises)


def test_fit_contains_the_planted_value_at_ten_times_the_compute():
    """Of runs from a known law, the predicted interval at ten times the largest compute contains
    the law's value there."""
    laws = quality_laws.fit(Comparison(runs("masked", law(5, 20))))
    at = laws["frechet_distance"]["masked"].summary["prediction"]
    assert at["train_flops"] == pytest.approx(10 * FLOPS[-1])
    truth = 5 + 20 * (at["train_flops"] / 1e12) ** -0.3
    assert at["ci95"][0] <= truth <= at["ci95"][1]


@pytest.mark.parametrize(("factor", "words"), [(3, "masked is ahead"), (1, "cannot tell")])
def test_verdicts_name_the_objective_ahead_only_where_intervals_are_apart(factor, words):
    """A law three times as high is told apart and the better one named; another draw of the same
    law is not."""
    both = Comparison(runs("masked", law(5, 20)) + runs("flow", factor * law(5, 20, seed=1)))
    ((quality, text),) = quality_laws.verdicts(both, quality_laws.fit(both))
    assert quality == "frechet_distance" and words in text


def envelope(objective, factor):
    """Runs of eight sizes with six token budgets, of a joint law: their law is an envelope."""
    return [
        ComparedRun(
            objective,
            f"{objective} {n:.1e} {d:.1e}",
            {"train_flops": 6 * n * d},
            {
                "frechet_distance": Measured(
                    factor * (1.82 + 478 * n**-0.347 + 2143 * d**-0.367), None
                )
            },
            params=n,
        )
        for n in np.geomspace(3e7, 3e9, 8)
        for d in np.geomspace(6e8, 6e10, 6)
    ]


def test_verdict_of_envelopes_of_unknown_noise_tells_nothing():
    """An envelope's intervals are too short where its runs are noisy, which no column here tells:
    even laws far apart are not called apart, and the reason is named."""
    both = Comparison(envelope("masked", 1) + envelope("flow", 3))
    ((_, text),) = quality_laws.verdicts(both, quality_laws.fit(both))
    assert "cannot tell" in text and "frontier-noise-unknown" in text


def test_fit_of_a_share_is_that_of_its_complement():
    """Recall that rises as 1 less a falling law is fitted, and predicted as a recall below 1 whose
    interval contains the planted one; the better is the higher."""
    low, high = 1 - law(0.2, 0.5), 1 - law(0.5, 0.4, seed=1)
    both = Comparison(runs("masked", low, "recall") + runs("flow", high, "recall"))
    laws = quality_laws.fit(both)
    at = laws["recall"]["masked"].summary["prediction"]
    truth = 0.8 - 0.5 * (at["train_flops"] / 1e12) ** -0.3
    assert at["ci95"][0] <= truth <= at["ci95"][1] < 1
    ((_, text),) = quality_laws.verdicts(both, laws)
    assert text.endswith("masked is ahead.")


def test_fit_refuses_few_computes_and_rising_qualities():
    """Three computes give no law, nor does a score that rises without a bound; the reason is in the
    entry, and there is no verdict."""
    few = Comparison(runs("masked", law(5, 20)[:3]))
    rising = Comparison(runs("masked", law(5, 20), "inception_score"))
    for comparison, word in ((few, "few-computes"), (rising, "rising")):
        laws = quality_laws.fit(comparison)
        ((entry,),) = ((by_name["masked"] for by_name in laws.values()),)
        assert word in entry.summary["warnings"][0] and entry.law is None
        assert quality_laws.verdicts(comparison, laws) == []


def test_verdicts_leave_out_qualities_without_a_known_direction():
    """Laws far apart name nobody where it is not known whether lower or higher is better, while the
    same numbers as a distance do."""
    for quality, count in (("beauty", 0), ("frechet_distance", 1)):
        rivals = [runs("masked", law(5, 20), quality), runs("flow", law(15, 60), quality)]
        both = Comparison(sum(rivals, []))
        assert len(quality_laws.verdicts(both, quality_laws.fit(both))) == count


def test_comparable_takes_losses_of_orders_over_one_tokenizer_alone():
    """Cross-entropy of next-token orders with one tokenizer is comparable; with another tokenizer,
    an unknown one or another objective it is not, and distances always are."""
    orders = ("next_token", "next_token_zcurve")

    def compares(names, tokenizers, quality="loss"):
        pairs = zip(names, tokenizers, strict=True)
        both = [r for name, t in pairs for r in runs(name, [1.0], quality, tokenizer=t)]
        return compared_run.comparable(Comparison(both), quality, names)

    assert compares(orders, ("t", "t"))
    assert not compares(orders, ("t", "u"))
    assert not compares(orders, ("", ""))
    assert not compares(("next_token", "masked"), ("t", "t"))
    assert compares(("next_token", "masked"), ("t", "u"), "frechet_distance")
