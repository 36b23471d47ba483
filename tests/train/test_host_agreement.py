"""Hosts of one run that do not hold the same: they are refused before the first step, all alike."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from helpers import processes, small
from var_jax import Pipeline
from var_jax.train import host_agreement, workdir

TRAIN = """
import json
from var_jax.cli.main import main
flags = ["--coordinator", address, "--num-processes", str(count), "--process-id", str(index)]
# A host prepares its own copy: one that both write to is found by the names, sizes and times in
# whole seconds of the files, which these folders share.
flags.append(f"--config.data.data_dir={DATA_DIR}-{index}")
sys.exit(main([*json.loads(SHARED), *(json.loads(SECOND) if index else []), *flags]))
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Makes a folder of 16 images per class; of two that are made alike, the bytes are the same."""
    directory = tmp_path_factory.mktemp("images")

    def made(name: str, without: str = "", other: str = ""):
        random = np.random.default_rng(0)
        for kind in ("cat", "dog"):
            (directory / name / kind).mkdir(parents=True)
            for i in range(16):
                file = f"{kind}/{i:02d}.png"
                pixels = random.integers(0, 256, (6, 8), np.uint8)
                if file == other:
                    pixels = 255 - pixels
                if file != without:
                    Image.fromarray(pixels).save(directory / name / file)
        return str(directory / name)

    return made


@pytest.fixture(scope="module")
def ended(images, model_dir, tmp_path_factory):
    """(exit code, last line) of each of two processes, of which the second has other flags."""
    directory = tmp_path_factory.mktemp("runs")
    (directory / "config.py").write_text(small.CONFIG_FILE)
    first = images("first")

    def run(name: str, *second: str) -> list[tuple[int, str]]:
        shared = [
            "train",
            "--config",
            str(directory / "config.py"),
            "--workdir",
            str(directory / name),
            "--config.data.name=image_folder",
            f"--config.data.source_dir={first}",
            f"--config.tokenizer_dir={model_dir}",
        ]
        code = TRAIN.replace("SHARED", repr(json.dumps(shared)))
        code = code.replace("SECOND", repr(json.dumps(second)))
        code = code.replace("{DATA_DIR}", str(directory / f"{name}-tfds"))
        result = processes.scripts(
            code, directory / f"{name}-scripts", directory / "programs", join=False
        )
        assert not (directory / name).exists()
        return [(code, output.splitlines()[-1]) for code, output in result]

    return run


@pytest.mark.long
def test_hosts_name_an_image_that_one_lacks(images, ended):
    """Both processes end with code 2 and one line with both hosts and their numbers of images;
    otherwise steps would see some images twice and some never."""
    second = images("second", without="cat/03.png")
    result = ended("lacks", f"--config.data.source_dir={second}")
    assert [code for code, _ in result] == [2, 2], result
    for _, line in result:
        assert "process 1 (host " in line
        assert line.startswith("var-jax: the data of process 0 (host ")
        assert re.search(r"\d+ (training|held-out) images, not \d+", line)


@pytest.mark.slow
def test_hosts_name_another_image_of_the_same_name(images, ended):
    """Both processes end with code 2 and name the host whose image differs."""
    second = images("third", other="dog/05.png")
    result = ended("other", f"--config.data.source_dir={second}")
    assert [code for code, _ in result] == [2, 2], result
    for _, line in result:
        assert "process 1 (host " in line and "as many images, but other ones" in line


@pytest.mark.slow
def test_data_that_one_host_cannot_open_are_told_by_every_host(ended):
    """The first process would else wait for the second, and end without knowing why."""
    result = ended("missing", "--config.data.source_dir=/nowhere")
    assert [code for code, _ in result] == [2, 2], result
    assert all("data.source_dir '/nowhere' is no directory" in line for _, line in result)


@pytest.mark.slow
def test_hosts_name_another_setting(ended):
    """The setting that differs is named; otherwise processes of different programs would wait for
    one another's collectives."""
    result = ended("setting", "--config.optimizer.base_lr=0.5")
    assert [code for code, _ in result] == [2, 2], result
    for _, line in result:
        assert "process 1 (host " in line and "optimizer.base_lr: 0.5 here" in line


@pytest.mark.slow
def test_hosts_name_another_tokenizer(ended, tmp_path):
    """Both processes end with code 2 and name the host whose frozen network differs."""
    model = small.pipeline()
    tokenizer = dict(model.params["tokenizer"])
    tokenizer["quantize"] = {name: leaf + 1 for name, leaf in tokenizer["quantize"].items()}
    params = {**model.params, "tokenizer": tokenizer}
    Pipeline(model.config, params).save(tmp_path / "other")
    result = ended("tokenizer", f"--config.tokenizer_dir={tmp_path / 'other'}")
    assert [code for code, _ in result] == [2, 2], result
    assert all("the frozen networks" in line and "process 1 (host " in line for _, line in result)


def test_paths_that_a_resumed_run_may_change_may_differ_between_hosts():
    """Hosts may have the same files at other places, as a run may after a restart."""
    paths = {key for key in workdir.RESUMABLE if key.endswith(("_dir", ".base", "_weights"))}
    assert {"tokenizer_dir", "adapter.base"} <= paths <= set(host_agreement.OF_A_HOST)
