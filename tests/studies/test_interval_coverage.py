"""The study of the laws' intervals: its commands run, and its files are merged by their sweeps."""

import json

from etils import epath

from var_jax.studies import interval_coverage, interval_coverage_reported
from var_jax.studies.planted_laws import STUDIES


def test_study_has_a_row_for_each_method():
    """Of two sweeps of one law, one is resampled: each method has a row, with shares and widths."""
    rows = interval_coverage.study(STUDIES[0], sweeps=2, resampled=1, seed=(0, 0))
    assert [row.split("|")[2].strip() for row in rows] == list(interval_coverage.METHODS)
    assert all("nan" not in row for row in rows)


def test_files_of_several_seeds_are_merged_by_their_sweeps(tmp_path, capsys):
    """Shares are means over all sweeps, and widths those of the file that computed intervals."""
    rows = [
        {"sweeps": 100, "computed": 10, "inside": {"E": 0.9}, "widths": {"E": 1.5}, "differing": 1},
        {"sweeps": 300, "computed": 0, "inside": {"E": 0.98}},
    ]
    files = []
    for seed, row in enumerate(rows):
        files.append(epath.Path(tmp_path / f"{seed}.jsonl"))
        common = {"law": "planted", "student": 0.2 * seed, "growth": 0.0, "shared": 0.0}
        files[-1].write_text(json.dumps({**common, **row}) + "\n")
    interval_coverage_reported.merge(files)
    line = capsys.readouterr().out.splitlines()[-1]
    assert line == "| planted | 400 | 15% | 0% | 0% | E 96.0% | E 1.50 | 1 of 10 |"


def test_study_goes_on_where_its_rows_end(tmp_path, capsys, monkeypatch):
    """A law whose row is in the file is not measured again."""
    rows = epath.Path(tmp_path / "rows.jsonl")
    measured = []

    def measure(planted, sweeps, computed, seed):
        measured.append(planted.name)
        return {"student": 0.0, "growth": 0.0, "shared": 0.0, "inside": {"E": 0.95}}

    monkeypatch.setattr(interval_coverage_reported, "measure", measure)
    cases = [(planted, (0, i)) for i, planted in enumerate(STUDIES[:2])]
    interval_coverage_reported.study(cases[:1], sweeps=10, computed=0, rows=rows)
    interval_coverage_reported.study(cases, sweeps=10, computed=0, rows=rows)
    assert measured == [planted.name for planted, _ in cases]
    assert capsys.readouterr().out.count("95.0%") == 3
