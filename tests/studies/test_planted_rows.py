"""The rows that a study of planted laws keeps."""

from var_jax.errors import Parser
from var_jax.studies import planted_rows


def test_rows_in_the_file_are_not_measured_again(tmp_path):
    """A second call measures only the laws that the file lacks, other seeds anew, and of the laws
    only those that are named."""
    parser = Parser(prog="study")
    planted_rows.add_arguments(parser, sweeps=3, seed=0)
    calls = []

    def rows(*options):
        args = parser.parse_args(["--rows", str(tmp_path / "rows.jsonl"), *options])
        cases = ((name, {"law": name}) for name in ("joint law", "bent law"))

        def measure(asked):
            calls.append((asked["law"], asked["seed"]))
            return {"share": 0.5}

        return list(planted_rows.measured(args, cases, measure))

    assert [row["law"] for row in rows("--only", "joint")] == ["joint law"]
    assert [row["share"] for row in rows()] == [0.5, 0.5]
    rows("--seed", "1", "--only", "bent")
    assert calls == [("joint law", 0), ("bent law", 0), ("bent law", 1)]
