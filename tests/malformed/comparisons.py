"""Malformed tables and directories of a comparison of objectives."""

from malformed.inputs import Case, folder, text, write

COMPARE = "compare a.csv --out out"
HEAD = "objective,run,train_flops"


def finished_run(name: str, content: str):
    """A writer of a finished run with one file of a report."""

    def make():
        write("w/a/status.json", '{"state": "done"}')
        write("w/a/config.json", '{"stage": "transformer"}')
        write(f"w/a/{name}", content)

    return make


CASES = {
    "compare_columns": Case(
        "a table of objectives without a column of compute",
        COMPARE,
        "a.csv has no column 'train_flops'; known: fid, objective, run",
        text("a.csv", "objective,run,fid\nmasked,a,3\n"),
    ),
    "compare_no_quality": Case(
        "a quality that is nowhere finite",
        COMPARE,
        "a.csv has no column of a quality with a finite number",
        text("a.csv", f"{HEAD},fid\nmasked,a,1e12,nan\n"),
    ),
    "compare_no_compute": Case(
        "no row with a positive number of FLOPs",
        COMPARE,
        "a.csv has no run that can be compared",
        text("a.csv", f"{HEAD},fid\nmasked,a,-1,3\n"),
    ),
    "compare_interval": Case(
        "an interval that does not contain its value",
        COMPARE,
        "3 is not within its interval, 4 to 5",
        text("a.csv", f"{HEAD},fid,fid_low,fid_high\nmasked,a,1e12,3,4,5\n"),
    ),
    "compare_half_interval": Case(
        "an interval with one end",
        COMPARE,
        "the column fid_low without fid_high",
        text("a.csv", f"{HEAD},fid,fid_low\nmasked,a,1e12,3,2\n"),
    ),
    "compare_twice": Case(
        "one run twice",
        COMPARE,
        "the run 'a' of 'masked' is there 2 times without a seed",
        text("a.csv", f"{HEAD},fid\nmasked,a,1e12,3\nmasked,a,1e12,4\n"),
    ),
    "compare_json": Case(
        "a JSON object in place of a list",
        COMPARE.replace("csv", "json"),
        "a.json is not a list of objects",
        text("a.json", '{"objective": "masked"}'),
    ),
    "compare_picture": Case(
        "a picture in place of a table",
        COMPARE.replace("a.csv", "i.png"),
        "i.png is no table",
        text("i.png", b"\x89PNG"),
    ),
    "compare_empty": Case(
        "a directory without runs",
        COMPARE.replace("a.csv", "w"),
        "w has no runs; a comparison takes",
        lambda: folder("w"),
    ),
    "compare_evaluation": Case(
        "an evaluation that is cut short",
        COMPARE.replace("a.csv", "w"),
        "w/a/evaluation.json does not read as JSON",
        finished_run("evaluation.json", "{"),
    ),
    "compare_one_end": Case(
        "an evaluation with one end of an interval",
        COMPARE.replace("a.csv", "w"),
        "the evaluation in w/a: fid has the ci95 [11.0], not two numbers",
        finished_run("evaluation.json", '{"metrics": {"fid": {"value": 12, "ci95": [11.0]}}}'),
    ),
    "compare_rate": Case(
        "a rate of images that is no number",
        COMPARE.replace("a.csv", "w"),
        "w/a/bench.json has the images_per_s 'fast', not a positive number",
        finished_run("bench.json", '{"images_per_s": "fast"}'),
    ),
}
