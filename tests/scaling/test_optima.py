"""The best learning rate and batch size, and the runs that they leave for laws of losses."""

import itertools

import numpy as np
import pytest

from var_jax.scaling import optima, optima_text, report, table, tuned_runs

SIZES, TOKENS, BATCHES = (1e6, 4e6, 1.6e7, 6.4e7), (1e8, 4e8, 1.6e9), (16.0, 64.0, 256.0)
RATE_LAW = {"c": 3.0, "a": -0.4, "b": 0.15, "g": 0.5}


def best_rate(size, tokens, batch=64.0):
    law = RATE_LAW
    return law["c"] * size ** law["a"] * tokens ** law["b"] * batch ** law["g"]


def best_batch(tokens):
    return 64.0 * (tokens / 4e8) ** 0.3


def planted(rng=None, noise=0.0, batches=(64.0,), factors=(0.25, 0.5, 1, 2, 4), off=1.2):
    """Rows of a sweep whose loss has its minimum over rate and batch where the laws have it."""
    rows = []
    for size, tokens, batch in itertools.product(SIZES, TOKENS, batches):
        lowest = 2 + 400 * size**-0.4 + 1500 * tokens**-0.4
        lowest *= 1 + 0.01 * np.log(batch / best_batch(tokens)) ** 2
        # The grid is not centered at the optimum, as a real one is not.
        center = off * best_rate(size, tokens, batch)
        for factor in factors:
            rate = center * factor
            loss = lowest * np.exp(0.02 * np.log(rate / best_rate(size, tokens, batch)) ** 2)
            if rng is not None:
                loss *= np.exp(noise * rng.normal())
            row = {"params": size, "tokens": tokens, "compute": 6 * size * tokens, "loss": loss}
            rows.append({"run": f"r{len(rows)}", **row, "learning_rate": rate, "batch_size": batch})
    return rows


def optima_of(rows):
    result = optima.optima(table.build(rows), "loss")
    assert result is not None
    return result


def law(rows, key):
    return optima_of(rows)["laws"][key]


def test_optima_have_the_planted_exponents_of_size_and_tokens():
    """Losses that are parabolas in log rate have the planted law of the best rate exactly, and each
    optimum the loss that is lowest there."""
    rows = planted()
    result = optima_of(rows)
    fitted = result["laws"]["learning_rate~params+tokens"]
    for name in "ab":
        assert fitted[name]["value"] == pytest.approx(RATE_LAW[name], abs=1e-6)
    assert fitted["c"]["value"] == pytest.approx(3.0 * 64**0.5, rel=1e-4)
    assert "batch_size" not in result and len(result["learning_rate"]) == 12
    for entry in result["learning_rate"]:
        expected = best_rate(entry["params"], entry["tokens"])
        assert entry["best_learning_rate"] == pytest.approx(expected, rel=1e-6)
    assert result["warnings"] == []


def test_optima_of_rates_and_batches_have_both_laws():
    """With three batches per budget the rate's law has an exponent of the batch, the batch's best
    follows from the losses at the best rates, and its law has the planted exponent of tokens."""
    result = optima_of(planted(batches=(16.0, 64.0, 256.0)))
    rate = result["laws"]["learning_rate~params+tokens+batch_size"]
    for name in "abg":
        assert rate[name]["value"] == pytest.approx(RATE_LAW[name], abs=1e-6)
    # A parabola in log batch of a loss that is nearly one.
    assert result["laws"]["batch_size~tokens"]["b"]["value"] == pytest.approx(0.3, abs=0.01)
    assert "batch_size~compute" in result["laws"]
    assert "learning_rate~compute" in result["laws"]


def test_optima_of_batches_at_one_rate_are_only_those_of_batches():
    """A sweep that varies the batch alone has no law of the rate, and a warning that its optima are
    those at that rate."""
    rows = [
        {**row, "learning_rate": 1e-3}
        for row in planted(batches=(16.0, 64.0, 256.0), factors=(1,), off=1.0)
    ]
    result = optima_of(rows)
    assert list(result["laws"]) == ["batch_size~tokens", "batch_size~compute"]
    assert "learning_rate" not in result
    assert result["warnings"][0].startswith("fixed-rate")


def test_optima_intervals_hold_the_planted_exponents():
    """Of 60 noisy sweeps the 95 % intervals of both exponents hold the truth in nearly all: fewer
    than 52 would happen by chance in less than one of 100. They are not so wide that this says
    nothing: half a width is far below the exponents."""
    inside = {"a": 0, "b": 0}
    for seed in range(60):
        rows = planted(np.random.default_rng(seed), noise=0.002)
        fitted = law(rows, "learning_rate~params+tokens")
        for name in inside:
            low, high = fitted[name]["ci95"]
            inside[name] += low < RATE_LAW[name] < high
            assert high - low < abs(RATE_LAW[name])
    assert min(inside.values()) >= 52


@pytest.mark.parametrize(
    ("off", "words"),
    [(5.0, "add smaller rates"), (0.2, "add larger rates")],
)
def test_optima_at_the_edge_are_refused(off, words):
    """Where the best rate is an end of those that were run, the optimum is refused with what to
    add, and no law of the rate is fitted; the laws of losses say that better rates may exist."""
    rows = planted(off=off)
    result = optima_of(rows)
    assert all(words in entry["refused"] for entry in result["learning_rate"])
    assert result["laws"] == {} and words in result["warnings"][0]
    notes = tuned_runs.at_the_best(table.build(rows)).notes
    assert any(note.startswith("best-at-edge: at 12 of 12") for note in notes)


def test_optima_below_a_diverged_rate_ask_for_rates_between():
    """A run that diverged has no loss; the largest that converged is then no optimum, and the
    remedy is not a larger one."""
    rows = planted(off=0.25)
    for row in rows[4::5]:
        row["loss"] = float("nan")
    entries = optima_of(rows)["learning_rate"]
    assert "between it and the diverged one" in entries[0]["refused"]


def test_optima_of_sizes_and_tokens_that_rise_together_are_refused():
    """With one budget per size, in proportion, nothing tells the two exponents apart; the law of
    compute needs no telling."""
    rows = [row for row in planted() if row["tokens"] == 1e8]
    for row in rows:
        row["tokens"] = 20 * row["params"]
    result = optima_of(rows)
    refused = result["laws"]["learning_rate~params+tokens"]
    assert refused["a"]["value"] is None and "confounded" in refused["warnings"][0]
    assert result["laws"]["learning_rate~compute"]["h"]["value"] is not None


def test_at_the_best_leaves_one_setting_per_size_and_budget():
    """Only the runs at the best rate and batch remain, by the mean over seeds; the others are
    listed as dropped with the reason, and budgets that were run once are counted."""
    rows = planted(batches=(16.0, 64.0))
    seeds = [{**row, "run": row["run"] + "s", "loss": row["loss"] * 1.001} for row in rows]
    single = {**rows[0], "run": "alone", "params": 1e5}
    runs = tuned_runs.at_the_best(table.build([*rows, *seeds, single]))
    assert len(runs) == 2 * 12 + 1
    reasons = {reason for _, reason in runs.dropped}
    assert reasons == {
        "its learning rate or batch size is not the best of its size and token budget"
    }
    for size, tokens in itertools.product(SIZES, TOKENS):
        same = (runs["params"] == size) & (runs["tokens"] == tokens)
        left = [r["loss"] for r in rows if (r["params"], r["tokens"]) == (size, tokens)]
        assert runs["loss"][same].min() == min(left) and same.sum() == 2
    assert any(note.startswith("untuned: 1 of 13") for note in runs.notes)


def test_build_takes_rates_of_one_name_for_different_points():
    """A table whose runs are named by size has several rates under one name: they are runs of
    their own, no contradictions, and the optimum is that of all."""
    rows = [{**row, "run": f"{row['params']:g} {row['tokens']:g}"} for row in planted()]
    runs = table.build(rows)
    assert len(runs) == 60 and runs.dropped == () and len(set(runs.run)) == 60
    fitted = law(rows, "learning_rate~params+tokens")
    assert fitted["a"]["value"] == pytest.approx(RATE_LAW["a"], abs=1e-6)


def test_at_the_best_keeps_a_table_of_one_setting_per_budget():
    """Rates that differ between sizes alone are no reason to leave a run out."""
    runs = table.build(planted(factors=(1,)))
    assert tuned_runs.at_the_best(runs) is runs
    assert optima.optima(runs, "loss") is None


def test_fit_table_fits_losses_at_the_best_rate_alone():
    """The joint law of a sweep over rates is that of the same sweep at its best rates, and report
    and plots show the optima."""
    rows = planted(np.random.default_rng(0), noise=1e-4)
    result, pictures = report.fit_table(table.build(rows), resamples=0, forms="none")
    best = tuned_runs.at_the_best(table.build(rows))
    alone, _ = report.fit_table(best, resamples=0, forms="none")
    joint = result["laws"]["loss~params+tokens"]
    assert joint["n_runs"] == 12
    assert joint["alpha"] == alone["laws"]["loss~params+tokens"]["alpha"]
    assert "optima.png" in pictures and "optima" not in alone
    assert any(note.startswith("best-setting: 48 runs") for note in result["warnings"])
    text = "\n".join(optima_text.report_lines(result["optima"]))
    assert "best learning_rate~params+tokens: c N^a D^b: c" in text
    assert "| 1e+06 | 1e+08 | 64 |" in text


def test_batches_whose_best_rates_are_all_at_the_edge_are_refused_and_plotted():
    """No batch has a loss where the best rate of each is the smallest that was run: the best batch
    is refused by that name, and the plot has no line for it."""
    rows = planted(batches=BATCHES, off=20.0, factors=(1, 2, 4))
    result, pictures = report.fit_table(table.build(rows), resamples=0, forms="none")
    reasons = [entry["refused"] for entry in result["optima"]["batch_size"]]
    assert reasons and all(reason.startswith("few-batches") for reason in reasons)
    assert "optima.png" in pictures


@pytest.mark.parametrize("rate", ["from the batch", "unknown"])
def test_optima_of_batches_whose_rates_follow_them_have_the_law_of_the_batch(rate):
    """A sweep over the batch at one base rate, whose effective rates are in proportion to it, and
    a table without rates: no batch has several rates, and the batch's law is the planted one."""
    rows = planted(batches=(16.0, 64.0, 256.0), factors=(1,), off=1.0)
    for row in rows:
        del row["learning_rate"]
        if rate == "from the batch":
            row["learning_rate"] = 1e-4 * row["batch_size"] / 256
    result = optima_of(rows)
    assert "learning_rate" not in result
    assert result["laws"]["batch_size~tokens"]["b"]["value"] == pytest.approx(0.3, abs=0.01)
    assert len(tuned_runs.at_the_best(table.build(rows))) == 12


def test_optima_of_rates_without_batches_have_the_law_of_the_rate():
    """A table that does not say its batches has one unknown batch per size and budget, not one per
    run: its rates have the planted law."""
    rows = planted()
    for row in rows:
        del row["batch_size"]
    result = optima_of(rows)
    assert "batch_size" not in result and result["warnings"] == []
    fitted = result["laws"]["learning_rate~params+tokens"]
    assert fitted["a"]["value"] == pytest.approx(RATE_LAW["a"], abs=1e-6)


def test_optima_of_too_few_rates_are_refused_by_that_name():
    """Two rates bound no optimum: more rates are asked for, and none is called an edge."""
    notes = optima_of(planted(factors=(0.5, 2)))["warnings"]
    assert [note.split(":")[0] for note in notes] == ["few-rates"]
    assert "3 rates with a loss are needed, there are 2" in notes[0]


def test_optima_outside_the_points_of_their_parabola_are_refused():
    """Of nine rates with much noise the parabola through five has its minimum between rates that
    were run, and before all five. It is no optimum of theirs."""
    rates = 1e-4 * 2.0 ** np.arange(9)
    losses = [3.0, 3.0, 2.8, 2.6, 3.0, 2.5, 2.9, 2.9, 2.8]
    base = {"params": 1e6, "tokens": 1e8, "batch_size": 64.0}
    rows = [
        {"run": f"r{i}", **base, "learning_rate": rate, "loss": loss}
        for i, (rate, loss) in enumerate(zip(rates, losses, strict=True))
    ]
    x, y = np.log(rates[3:8]), np.log(losses[3:8])
    a, b, _ = np.polyfit(x, y, 2)
    assert a > 0 and np.log(rates[0]) < -b / (2 * a) < x[0]
    (entry,) = optima_of(rows)["learning_rate"]
    assert entry["refused"].startswith("rate-unclear")


@pytest.mark.parametrize("batches", [(64.0, 64.0), (64.0, 16.0)])
def test_at_the_best_tells_budgets_apart_by_their_steps(batches):
    """Where only steps say how long runs were trained, those of 100 and of 400 at their own rates
    are two budgets, and none is left out as badly tuned. Steps count by their batch: 400 of 16
    images are the same budget as 100 of 64, of which the best is kept."""
    rows = [
        {
            "run": f"{size:g} {steps}",
            "params": size,
            "step": steps,
            "batch_size": batch,
            "learning_rate": rate,
            "loss": 2 + 400 * size**-0.4 + 9 * steps**-0.4,
        }
        for size in SIZES
        for steps, batch, rate in ((100, batches[0], 1e-3), (400, batches[1], 2e-3))
    ]
    runs = tuned_runs.at_the_best(table.build(rows))
    assert len(runs) == (8 if batches[0] == batches[1] else 4)


def test_build_keeps_a_run_whose_log_has_the_rate_of_each_step_whole():
    """A training log's rate changes from row to row: the rows stay one run's curve, whose final
    loss is the last one, and a warning says that the column is ignored."""
    rows = [
        {"run": f"{size:g}", "params": size, "tokens": tokens, "loss": 2 + 400 * tokens**-0.4}
        for size in SIZES
        for tokens in (1e8, 2e8, 3e8)
    ]
    for row in rows:
        row["learning_rate"] = 1e-3 * (1 - row["tokens"] / 4e8)
    runs = table.build(rows)
    assert set(runs.run) == {f"{size:g}" for size in SIZES}
    assert list(runs.finals()["tokens"]) == [3e8] * 4
    assert "learning_rate" not in runs.columns
    assert any(note.startswith("setting-varies: learning_rate") for note in runs.notes)
