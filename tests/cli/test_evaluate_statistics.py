"""`evaluate` with reference files of statistics: what the command writes, takes and refuses."""

import json

import numpy as np
import pytest

from helpers import inception_files, toy_network
from var_jax.cli.main import main
from var_jax.devices import batched
from var_jax.evaluate import feature_networks

DRAWN = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), dtype=np.uint8)
DIMENSIONS = toy_network.DIMENSIONS


@pytest.fixture
def toy(monkeypatch):
    network = toy_network.network(convention="ADM", spatial=True)
    monkeypatch.setattr(feature_networks, "load", lambda kind, path="": network)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with samples, and with a reference file as published ones are."""
    monkeypatch.chdir(tmp_path)
    np.savez("drawn.npz", DRAWN)
    arrays = {
        "mu": np.zeros(DIMENSIONS),
        "sigma": np.eye(DIMENSIONS),
        "mu_s": np.zeros(toy_network.SPATIAL),
        "sigma_s": np.eye(toy_network.SPATIAL),
    }
    np.savez("published.npz", arr_0=DRAWN[:20], **arrays)
    np.savez("bare.npz", mu=arrays["mu"], sigma=arrays["sigma"])
    np.savez("published2048.npz", arr_0=DRAWN[:20], mu=np.zeros(2048), sigma=np.eye(2048))
    return tmp_path


def evaluate(*arguments) -> int:
    return main(["evaluate", *map(str, arguments), "--json", "report.json"])


def report() -> dict:
    with open("report.json") as file:
        return json.load(file)


def test_report_names_the_protocol_and_what_is_left_out(toy, folder, capsys):
    """The file and the terminal have the protocol and the metrics that are left out."""
    assert evaluate("--samples", "drawn.npz", "--reference", "published.npz", "--cache", "") == 0
    result, printed = report(), capsys.readouterr().out
    assert result["protocol"] == "adm" and result["metrics"]["sfid"]["value"] > 0
    assert result["reference"]["statistics"] == ["mu", "sigma", "mu_s", "sigma_s"]
    assert "(ADM) of 40 images against the statistics of published.npz" in printed
    assert evaluate("--samples", "drawn.npz", "--reference", "bare.npz") == 0
    printed = capsys.readouterr().out
    assert "recall, kid, density, coverage: bare.npz has no arr_0" in printed
    assert report()["metrics"]["precision"] is None


def test_saved_statistics_are_a_reference(toy, folder, digits_dir, capsys):
    """The samples' distance from the saved statistics of a data set is that from the data set, at a
    given size and in three channels."""
    shared = ["--data-dir", digits_dir, "--resize", "pad"]
    reference = ["--reference", "digits:test[:60]", *shared]
    assert evaluate(*reference, "--size", "8", "--save-statistics", "digits.npz") == 0
    assert "digits.npz: mu, sigma, mu_s, sigma_s of 60 images by toy" in capsys.readouterr().out
    written = report()
    assert written["reference"]["image_shape"] == [8, 8, 3] and written["images"] == 60
    with np.load("digits.npz") as file:
        origin = json.loads(str(file["statistics_of"]))
        assert file["arr_0"].shape == (60, 8, 8, 3)
    assert origin["reference"] == "digits:test[:60]" and origin["count"] == 60
    assert origin["resize"].startswith("pad")
    sampled = ["--samples", "drawn.npz", "--cache", "", "--resamples", 0]
    assert evaluate(*sampled, "--reference", "digits.npz") == 0
    value = report()["metrics"]["frechet_distance"]["value"]
    assert evaluate(*sampled, *reference) == 0
    assert value == pytest.approx(report()["metrics"]["frechet_distance"]["value"], rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--samples drawn.npz --reference published2048.npz", ("mu", "2048", str(DIMENSIONS))),
        ("--model drawn.npz --reference published.npz --size 8", ("--size", "--save-statistics")),
        ("--reference drawn.npz --save-statistics out.npz --floor drawn.npz", ("--floor",)),
        ("--reference drawn.npz --save-statistics out.npz --cache c", ("--cache", "--samples")),
        ("--reference drawn.npz --save-statistics out.npy", ("--save-statistics", ".npz")),
        ("--reference drawn.npz --save-statistics drawn.npz", ("--save-statistics", "--reference")),
        ("--reference drawn.npz --save-statistics drawn.npz/a.npz", ("drawn.npz", "file")),
        ("--reference published.npz --save-statistics out.npz", ("published.npz", "mu, sigma")),
        ("--reference drawn.npz --save-statistics out.npz --size 9", ("(8, 8, 1)", "(9, 9, 3)")),
        ("--reference drawn.npz --save-statistics out.npz --size 8x", ("--size", "'8x'")),
        ("--reference drawn.npz --save-statistics out.npz --size 8x8x2", ("--size", "8x8x2")),
        ("--reference drawn.npz --save-statistics out.npz --num 3", ("3", "at least 4")),
        ("--samples published.npz --reference drawn.npz", ("published.npz", "mu, sigma")),
        ("--samples drawn.npz --reference drawn.npz --floor published.npz", ("published.npz",)),
        ("--reference drawn.npz", ("--samples", "--model", "--save-statistics")),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(toy, folder, capsys, arguments, words):
    """Each error names the option or the file, and what would be right."""
    before = sorted(path.name for path in folder.iterdir())
    assert evaluate(*arguments.split()) == 2
    printed = capsys.readouterr()
    assert all(word in printed.err for word in words), printed.err
    assert printed.err.count("\n") == 1 and printed.out == ""
    assert sorted(path.name for path in folder.iterdir()) == before


@pytest.mark.long
def test_statistics_by_the_frozen_graph(folder, monkeypatch):
    """FID (ADM) is computed with a file of weights, against statistics that the graph itself made:
    the distances of the same images are 0, and those of shifted ones are the shift."""
    monkeypatch.setitem(batched.ROWS_PER_DEVICE, "cpu", 1)
    inception_files.write_graph(folder / "graph.pb", inception_files.state_dict())
    np.savez("few.npz", DRAWN[:8])
    shared = ["--features", "inception", "--weights", "graph.pb"]
    assert evaluate("--reference", "few.npz", *shared, "--save-statistics", "few_s.npz") == 0
    with np.load("few_s.npz") as file:
        arrays = {name: file[name] for name in file.files}
    assert arrays["mu"].shape == (128,) and arrays["mu_s"].shape == (2023,)
    shifted = {name: arrays[name] + 0.1 for name in ("mu", "mu_s")}
    del arrays["arr_0"]
    np.savez("shifted.npz", **{**arrays, **shifted})
    sampled = ["--samples", "few.npz", *shared, "--resamples", 0]
    assert evaluate(*sampled, "--reference", "shifted.npz") == 0
    metrics = report()["metrics"]
    assert metrics["frechet_distance"]["name"] == "FID (ADM)"
    assert metrics["sfid"]["name"] == "sFID (ADM)"
    assert metrics["frechet_distance"]["value"] == pytest.approx(0.1**2 * 128, rel=1e-2)
    assert metrics["sfid"]["value"] == pytest.approx(0.1**2 * 2023, rel=1e-2)
    assert "ADM" in report()["features"]["weights_from"]
