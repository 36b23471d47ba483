"""A sweep finds out before it starts any run what every run would find out at its start."""

import dataclasses
import json
import shutil

import pytest
from etils import epath
from PIL import Image

from helpers import small
from var_jax.cli.main import main
from var_jax.config.model import ModelConfig
from var_jax.config.strict import plain
from var_jax.data import fingerprints, token_manifest
from var_jax.data.token_manifest import Shard, SplitInfo
from var_jax.io import model_directory

SWEEP = "\ndef get_sweep(arg=''):\n    return [{'seed': seed} for seed in (1, 2)]\n"


@pytest.fixture
def command(tmp_path):
    path = tmp_path / "small.py"
    path.write_text(small.CONFIG_FILE + SWEEP)
    return ["sweep", "--config", str(path), "--workdir", str(tmp_path / "d"), "--interval", "0.1"]


@pytest.fixture
def cache(tmp_path):
    """A token cache of the small tokenizer, complete by its manifest, and the way to write another
    one."""
    model = small.pipeline()
    directory = tmp_path / "tokens"
    model_directory.save(
        epath.Path(directory / "tokenizer"),
        ModelConfig(small.TOKENIZER),
        {"tokenizer": model.params["tokenizer"]},
    )
    splits = {}
    for role in ("train", "test"):
        (directory / role).mkdir()
        (directory / role / "0.array_record").write_bytes(b"1234")
        splits[role] = SplitInfo(role, 1, 1, (Shard("0.array_record", 1, 4),))
    manifest = token_manifest.Manifest(
        fingerprints.tokenizer_fingerprint(small.TOKENIZER, model.params["tokenizer"]),
        "digits",
        "stretch",
        small.TOKENIZER.image_shape,
        small.SCALES,
        16,
        tuple("0123456789"),
        0,
        **splits,
    )

    def write(**changes) -> str:
        text = json.dumps(plain(dataclasses.replace(manifest, **changes)))
        (directory / "manifest.json").write_text(text)
        return f"--config.data.tokens_dir={directory}"

    return write


@pytest.mark.parametrize("dry", [True, False])
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": "fashion_mnist_idx"}, "data.name: digits here, fashion_mnist_idx there"),
        ({"resize": "crop"}, "data.resize: stretch here, crop there"),
        ({"fingerprint": "0" * 16}, "tokenizer fingerprint"),
        (
            {"class_names": tuple("0123456789a")},
            "transformer.num_classes is 10; it must be at least the 11 classes",
        ),
    ],
)
def test_check_token_cache(command, cache, capsys, tmp_path, changes, words, dry):
    """Another data set's cache: nothing is printed as if it would run, and nothing is started or
    written."""
    assert main([*command, cache(**changes), *["--dry-run"] * dry]) == 2
    printed = capsys.readouterr()
    assert words in printed.err and printed.err.count("\n") == 1 and printed.out == ""
    assert not (tmp_path / "d").exists()


def test_check_token_cache_that_fits(command, cache, capsys, tmp_path):
    assert main([*command, cache(), "--dry-run"]) == 0
    assert capsys.readouterr().err == ""
    shutil.rmtree(tmp_path / "tokens" / "test")
    assert main([*command, cache(), "--dry-run"]) == 2  # as an interrupted copy of a cache
    assert "0.array_record is missing" in capsys.readouterr().err


def test_check_images(command, model_dir, capsys, tmp_path):
    """Where the runs are processes of this machine, their images are looked for here too."""
    images = [
        f"--config.tokenizer_dir={model_dir}",
        "--config.data.name=image_folder",
        f"--config.data.source_dir={tmp_path / 'none'}",
        "--dry-run",
    ]
    assert main([*command, *images]) == 2
    assert str(tmp_path / "none") in capsys.readouterr().err


@pytest.mark.parametrize("classes", [10, 14])
def test_check_classes_of_a_folder(command, model_dir, capsys, tmp_path, classes):
    """A folder with more classes than the model is refused in the line that `train` ends with; one
    that fits is planned, with a note that its files are not decoded before a run."""
    for i in range(classes):
        (tmp_path / "photos" / str(i)).mkdir(parents=True)
        for j in range(2):
            Image.new("L", (8, 6)).save(tmp_path / "photos" / str(i) / f"{j}.png")
    data = [
        f"--config.tokenizer_dir={model_dir}",
        "--config.data.name=image_folder",
        f"--config.data.source_dir={tmp_path / 'photos'}",
        f"--config.data.data_dir={tmp_path / 'tfds'}",
    ]
    code = main([*command, *data, "--dry-run"])
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and not (tmp_path / "d").exists()
    if classes == 10:
        assert code == 0 and "photos are listed, not decoded" in printed.err
        return
    assert code == 2 and printed.out == ""
    assert "transformer.num_classes is 10; it must be at least the 14 classes" in printed.err
    train = ["train", *command[1:3], "--workdir", str(tmp_path / "run"), *data]
    assert main(train) == 2
    assert capsys.readouterr().err.splitlines()[-1] == printed.err.strip()


def test_check_without_a_tokenizer(command, capsys, tmp_path):
    """A sweep's cost may be asked for before there is a tokenizer; its runs may not be started."""
    assert main([*command, "--dry-run"]) == 0
    printed = capsys.readouterr()
    assert "total" in printed.out and "tokenizer_dir" in printed.err
    assert main(command) == 2
    assert "tokenizer_dir is ''" in capsys.readouterr().err and not (tmp_path / "d").exists()
