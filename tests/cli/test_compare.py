"""`var-jax compare`: files that it writes for tables and sweeps, and mistakes."""

import json
import re

import numpy as np
from PIL import Image

from var_jax.cli.main import main

HEAD = "objective,run,train_flops,images_seen,generation_flops,passes,seconds_per_image,seed"


def write_table(path):
    """Writes four computes of two objectives, two seeds each, the one three times as good."""
    lines = [f"{HEAD},frechet_distance,loss"]
    for objective, factor, passes in (("next_scale", 1, 6), ("next_token", 3, 64)):
        for i in range(4):
            for seed in range(2):
                distance = factor * (5 + 20 * 4**-i) * (1 + 0.002 * (seed - 0.5) * (-1) ** i)
                costs = f"{1e12 * 4**i},{1000 * 4**i},{1e9 * 2**i},{passes},{0.01 * passes}"
                lines.append(f"{objective},size{i},{costs},{seed},{distance},{distance / 9}")
    path.write_text("\n".join(lines) + "\n")


def test_compare_writes_points_laws_report_and_plots(tmp_path, capsys):
    """compare.json has the mean of the seeds with an interval around it at the row's FLOPs, the
    report says which objective is ahead in distance, and not in loss, and every plot has ink."""
    write_table(tmp_path / "t.csv")
    assert main(["compare", str(tmp_path / "t.csv"), "--out", str(tmp_path / "out")]) == 0
    points = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert set(points) == {"next_scale", "next_token"}
    point = points["next_token"]["frechet_distance"][1]
    assert (point["run"], point["x"], point["seeds"]) == ("size1", 4e12, 2)
    assert np.isclose(point["value"], 30) and point["ci95"][0] < 30 < point["ci95"][1]
    laws = json.loads((tmp_path / "out" / "laws.json").read_text())
    assert laws["frechet_distance"]["next_scale"]["prediction"]["train_flops"] == 6.4e14
    report = (tmp_path / "out" / "report.md").read_text()
    verdict = report.partition("## What the laws tell")[2].partition("##")[0]
    assert "next_scale is ahead" in verdict and "loss" not in verdict
    assert "loss: each objective predicts other tokens" in report
    assert "frechet_distance at 6.4e+13 training FLOPs: next_scale 5.31" in report
    assert verdict.strip().removeprefix("- ") in capsys.readouterr().out
    assert "| FLOPs per image, no decoder |" in report
    pictures = re.findall(r"\]\((\w+\.png)\)", report)
    assert len(pictures) == 5
    for name in pictures:
        assert np.asarray(Image.open(tmp_path / "out" / name).convert("L")).std() > 5


def test_compare_takes_some_qualities_alone(tmp_path, capsys):
    """Others are in no file, and a name that no run has is refused with those that they have."""
    write_table(tmp_path / "t.csv")
    command = ["compare", str(tmp_path / "t.csv"), "--out", str(tmp_path / "out"), "--qualities"]
    assert main([*command, "frechet_distance"]) == 0
    points = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert {name for one in points.values() for name in one} == {"frechet_distance"}
    assert "loss" not in (tmp_path / "out" / "report.md").read_text()
    capsys.readouterr()
    assert main([*command, "fid"]) == 2
    assert "--qualities is fid; it must be of frechet_distance, loss" in capsys.readouterr().err


def test_compare_removes_plots_of_costs_that_are_gone(tmp_path):
    """A second comparison without seconds in the same directory leaves no plot of the first one's,
    which its report would not mention; other pictures stay, and no partial file is left."""
    out = tmp_path / "out"
    write_table(tmp_path / "t.csv")
    assert main(["compare", str(tmp_path / "t.csv"), "--out", str(out)]) == 0
    (out / "mine.png").write_text("mine")
    (tmp_path / "u.csv").write_text("objective,run,train_flops,fid\nmasked,a,1e12,3\n")
    assert main(["compare", str(tmp_path / "u.csv"), "--out", str(out)]) == 0
    names = {path.name for path in out.iterdir()}
    texts = {"compare.json", "laws.json", "report.md"}
    assert names == texts | {"train_flops.png", "mine.png"}


def test_compare_refuses_outputs_that_cannot_be_written(tmp_path, capsys):
    """A file in place of the directory is named in one line with exit code 2, and stays as it
    was."""
    write_table(tmp_path / "t.csv")
    (tmp_path / "out").write_text("mine")
    assert main(["compare", str(tmp_path / "t.csv"), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "cannot write" in error
    assert (tmp_path / "out").read_text() == "mine"
