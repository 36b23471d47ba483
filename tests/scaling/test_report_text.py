"""What a reader of report.md and of the command's lines is told."""

import dataclasses

import numpy as np
import pytest

from scaling.planted import single
from var_jax.scaling import checklist, report, report_text, table


def fitted(losses, **columns):
    """Returns fit.json's content, and report.md, of runs of one size each."""
    sizes = np.geomspace(1e6, 3e7, len(losses))
    records = []
    for i, (size, loss) in enumerate(zip(sizes, losses, strict=True)):
        others = {name: values[i] for name, values in columns.items()}
        records.append({"run": f"r{i}", "params": size, **others, "loss": loss})
    result, pictures = report.fit_table(table.build(records), resamples=20)
    content = report_text.plain(result)
    return content, report_text.markdown(content, list(pictures), "runs.csv")


@pytest.fixture(scope="module")
def few():
    """Four noisy sizes, which determine no exponent."""
    return fitted([3.1, 2.7, 2.72, 2.55])


def test_law_of_few_sizes_is_called_undetermined(few):
    """Its intervals span tens of decades: the text says what to add instead, and fit.json keeps
    them."""
    content, text = few
    law = content["laws"]["loss~params"]
    assert law["undetermined"] == {"alpha": "add sizes"}
    line = report_text.terminal_lines(content)[0]
    assert line.startswith("loss~params: undetermined: add sizes (most likely E ")
    assert line.split(": ", 1)[1] in text and line.count("[") == 1
    assert law["alpha"]["ci95"][0] < law["alpha"]["value"] < law["alpha"]["ci95"][1]


def test_missing_holdout_has_a_reason(few):
    """If too few sizes remain for a hold-out, there is no hold-out error, and the report says how
    many there are and how many are needed."""
    content, text = few
    assert content["laws"]["loss~params"]["holdout"] is None
    assert "3 different params remain; 4 are needed" in text


def test_loss_comes_first_and_error_rates_are_called_so():
    """The columns of a table may be in any order, and a prediction of an error rate is no loss."""
    x, y, _ = single(runs=8, noise=1e-3)
    records = [
        {"run": f"r{i}", "params": size, "err_last": loss / 5, "loss_last": loss, "loss": loss}
        for i, (size, loss) in enumerate(zip(x[:, 0], y, strict=True))
    ]
    result, pictures = report.fit_table(
        table.build(records), resamples=0, predict=[{"params": 1e9}]
    )
    assert list(result["laws"]) == ["loss~params", "loss_last~params", "err_last~params"]
    lines = report_text.prediction_lines(report_text.plain(result)["predictions"])
    assert [": loss " in line for line in lines] == [True, True, False]
    assert ": error rate " in lines[2]
    text = report_text.markdown(report_text.plain(result), list(pictures), "runs.csv")
    for name in pictures:
        assert f"![{name}]({name})\n\n{report_text.CAPTIONS[name]}" in text


def test_report_answers_the_checklist_and_says_what_it_does_not_know(few):
    """A reader finds form, runs, counting, objective and hold-out without fit.json; what the table
    does not record is called so."""
    content, text = few
    answers = content["checklist"]
    assert answers["form"] == "E + A * x**-alpha" and answers["rows out"] == "none"
    assert answers["runs in"].startswith("4 runs in 4 rows")
    assert answers["learning rates"].startswith("not recorded")
    for question, answer in answers.items():
        assert f"| {question} | {answer} |" in text
    assert "| without a floor, E = 0 | 0 |" in text


def answers_of(facts=(), **columns):
    sizes = np.repeat([1e6, 2e6, 4e6], 2)
    values = {"params": sizes, "tokens": 10 * sizes, **columns}
    records = [
        {"run": f"r{i}", "loss": 2.0, **{name: column[i] for name, column in values.items()}}
        for i in range(len(sizes))
    ]
    runs = dataclasses.replace(table.build(records), facts=dict(facts))
    return checklist.checklist(runs, {})


def test_checklist_reads_rates_and_flops_from_the_columns():
    """Rates that are in the table are named with how many a size has, and FLOPs are compared with
    6 N D, beside what is stated; without such columns they are called not recorded."""
    sizes = np.repeat([1e6, 2e6, 4e6], 2)
    flops = 6 * sizes * 10 * sizes
    one = answers_of(learning_rate=1e3 / sizes, compute=flops * 1.0001)
    assert one["learning rates"].startswith("peaks from 0.00025 to 0.001, one for each number")
    assert one["FLOPs counted"] == "6 N D of the table's parameters and tokens"
    two = answers_of(learning_rate=np.tile([1e-3, 2e-3], 3), compute=flops * np.tile([1, 1.5], 3))
    assert two["learning rates"] == "peaks from 0.001 to 0.002, up to 2 for a number of parameters"
    assert two["FLOPs counted"].startswith("1 to 1.5 times 6 N D")
    stated = answers_of(compute=flops, facts={"compute": "counted by hand"})
    assert stated["FLOPs counted"].startswith("counted by hand; by the table's columns: 6 N D")
    none = answers_of()
    assert none["FLOPs counted"].startswith("not recorded")
    assert none["learning rates"].startswith("not recorded")
