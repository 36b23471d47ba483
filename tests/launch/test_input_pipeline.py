"""The script that measures the input pipeline, with few files, and what its rates are made of."""

import io
import json
import multiprocessing
import time

import numpy as np
import pytest
from PIL import Image

from helpers.scripts import ROOT, load_script


@pytest.fixture(scope="module")
def script():
    return load_script("input_pipeline")


def test_photo_is_a_file_of_the_size_and_bytes_of_a_photograph(script):
    """The time to decode a JPEG grows with its pixels and its bytes: the files have the asked size
    and about the 110 kB of ImageNet's, where white noise of this size would take over 200 kB."""
    content = script.photo(375, 500, np.random.default_rng(0))
    assert Image.open(io.BytesIO(content)).format == "JPEG"
    assert Image.open(io.BytesIO(content)).size == (500, 375)
    assert 80_000 < len(content) < 150_000


def _work(seconds: float, done):
    start = time.process_time()
    while time.process_time() - start < seconds:
        pass
    done.send(1)
    done.recv()


def test_processor_seconds_count_the_workers(script):
    """The time that a live child has worked counts, and this process does nothing meanwhile: a rate
    of worker processes would otherwise be that of the process that only receives."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    child = context.Process(target=_work, args=(0.3, there))
    before = script.processor_seconds()
    child.start()
    here.recv()
    spent = script.processor_seconds() - before
    here.send(0)
    child.join()
    assert 0.25 < spent < 1


def test_required_rates_are_images_per_step_over_its_time_for_eight_chips(script, tmp_path):
    """A step of 768 images in half a second on 256 chips is 1,536 images per second, of which a
    host of eight chips takes a 32nd."""
    report = json.dumps({"devices": 256, "images": 768, "step_seconds": 0.5})
    for depth in script.DEPTHS:
        (tmp_path / f"{depth}_v5e-16x16.json").write_text(report)
    assert script.required_rates(tmp_path) == dict.fromkeys(script.DEPTHS, 48.0)


@pytest.mark.long
def test_script_measures_every_row(script, tmp_path, capsys):
    """From a few files it writes a rate for threads, one and two processes of images and of tokens,
    and the cores that each depth needs, which are its need over the rate of two processes."""
    path = tmp_path / "rates.json"
    reports = str(ROOT / "docs" / "results" / "aot")
    options = ["--batches", "1", "--files", "64", "--cached", "64", "--reports", reports]
    assert script.main([*options, "--json", str(path)]) == 0
    result = json.loads(path.read_text())
    kinds = [f"{kind}_{n}_workers" for kind in ("jpeg", "tokens") for n in (0, 1, 2)]
    assert list(result["rows"]) == kinds
    assert all(row["images_per_cpu_second"] > 0 for row in result["rows"].values())
    assert result["rows"]["jpeg_1_workers"]["images"] == 64
    need = result["required"]["d16"]
    rate = result["rows"]["jpeg_2_workers"]["images_per_cpu_second"]
    assert need["cores_for_jpegs"] == pytest.approx(need["images_per_second"] / rate)
    assert "cores for JPEGs" in capsys.readouterr().out
