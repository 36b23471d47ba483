"""A sweep finds out before it starts any run what every run would find out at its start."""

import concurrent.futures
import dataclasses
import importlib.util
import json
import logging
import shutil

import pytest
from etils import epath
from PIL import Image

from helpers import small
from var_jax.cli.main import main
from var_jax.config.model import ModelConfig
from var_jax.config.strict import plain
from var_jax.config.train import DataConfig
from var_jax.data import prepare, token_manifest
from var_jax.data.token_manifest import Shard, SplitInfo
from var_jax.errors import UserError
from var_jax.io import model_directory
from var_jax.io.tokenizer_fingerprint import tokenizer_fingerprint
from var_jax.train import start_check, wandb_board

SWEEP = "\ndef get_sweep(arg=''):\n    return [{'seed': seed} for seed in (1, 2)]\n"


class InThisProcess(concurrent.futures.ThreadPoolExecutor):
    """Runs the checks in a thread, where the programs of earlier tests are compiled already."""

    def __init__(self, max_workers: int, mp_context):
        super().__init__(max_workers)

    def __exit__(self, *error):
        logging.disable(logging.NOTSET)  # the checks' own process would have ended
        return super().__exit__(*error)


@pytest.fixture(autouse=True)
def checks_in_this_process(request, monkeypatch):
    """Most tests are about what is checked; `own_process` is for those of the process too."""
    if "own_process" not in request.fixturenames:
        monkeypatch.setattr(concurrent.futures, "ProcessPoolExecutor", InThisProcess)


@pytest.fixture
def own_process():
    """Asks for the checks' own process, as the command has it."""


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
        splits[role] = SplitInfo(role, 8, 1, (Shard("0.array_record", 8, 4),))
    manifest = token_manifest.Manifest(
        tokenizer_fingerprint(small.TOKENIZER, model.params["tokenizer"]),
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


@pytest.mark.long
@pytest.mark.parametrize("dry", [True, False])
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": "fashion_mnist_idx"}, "data.name: digits here, fashion_mnist_idx there"),
        ({"resize": "crop"}, "data.resize: stretch here, crop there"),
        ({"fingerprint": "0" * 16}, "and the token cache is of 0000000000000000"),
        (
            {"class_names": tuple("0123456789a")},
            "transformer.num_classes is 10; it must be at least the 11 classes",
        ),
    ],
)
def test_check_token_cache(command, cache, capsys, tmp_path, changes, words, dry):
    """A token cache of another data set is refused in one line: no table is printed as if it would
    run, and nothing is started or written."""
    assert main([*command, cache(**changes), *["--dry-run"] * dry]) == 2
    printed = capsys.readouterr()
    assert words in printed.err and printed.err.count("\n") == 1 and printed.out == ""
    assert not (tmp_path / "d").exists()


@pytest.mark.long
def test_check_token_cache_that_fits(own_process, command, cache, capsys, tmp_path):
    """A token cache of the same data, tokenizer and classes passes without a message."""
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
    that fits is planned."""
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
    assert not (tmp_path / "d").exists() and not (tmp_path / "tfds").exists()
    if classes == 10:
        assert code == 0 and printed.err == ""
        return
    assert code == 2 and printed.out == ""
    assert "transformer.num_classes is 10; it must be at least the 14 classes" in printed.err
    assert printed.err.splitlines() == [refusal_of_train(command, data, capsys, tmp_path)]


def refusal_of_train(command, flags, capsys, tmp_path) -> str:
    """Returns the line with which `train` refuses the config and flags of a sweep's command."""
    assert main(["train", *command[1:3], "--workdir", str(tmp_path / "run"), *flags]) == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_check_files_that_do_not_decode(command, model_dir, capsys, tmp_path, monkeypatch):
    """A folder with a file that is no image is refused as by `train`; one that is too large to be
    decoded for a dry run is left to the runs."""
    for i in range(10):
        (tmp_path / "photos" / str(i)).mkdir(parents=True)
        for j in range(2):
            Image.new("L", (8, 6)).save(tmp_path / "photos" / str(i) / f"{j}.png")
    (tmp_path / "photos" / "3" / "0.png").write_bytes(b"no image")
    data = [
        f"--config.tokenizer_dir={model_dir}",
        "--config.data.name=image_folder",
        f"--config.data.source_dir={tmp_path / 'photos'}",
        f"--config.data.data_dir={tmp_path / 'tfds'}",
    ]
    assert main([*command, *data, "--dry-run"]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and "3/0.png" in printed.err and not (tmp_path / "tfds").exists()
    assert printed.err.splitlines() == [refusal_of_train(command, data, capsys, tmp_path)]
    assert main([*command, *data, "--config.data.skip_bad_images=True", "--dry-run"]) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(prepare, "DECODED_BYTES", 100)  # not of the process that checks
    folder = DataConfig("image_folder", source_dir=str(tmp_path / "photos"))
    assert prepare.for_check(folder, str(tmp_path / "scratch")) is None


@pytest.mark.long
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["init_from=/nowhere"], "no model directory /nowhere"),
        (["init_from={tokenizer}"], "has no transformer"),
        (["branch_from=/nowhere", "branch_step=1"], "/nowhere"),
        (["mesh.data=7", "mesh.model=3"], "mesh"),
        (["batch_size=5000"], "too few for a batch of 5000"),
        (["data.train_split=fold"], "has no split 'fold'"),
        (["tokenizer.scales=1,2"], "tokenizer.scales is 1,2; the tokenizer in"),
        (["tokenizer.vocab_size=8"], "tokenizer.vocab_size is 8; the tokenizer in"),
    ],
)
def test_check_as_train(command, model_dir, capsys, tmp_path, flags, words):
    """A sweep's dry run refuses initial weights, meshes and flags in the line of `train`."""
    tokenizer = tmp_path / "tokenizer"
    params = {"tokenizer": small.pipeline().params["tokenizer"]}
    model_directory.save(epath.Path(tokenizer), ModelConfig(small.TOKENIZER), params)
    options = [
        f"--config.tokenizer_dir={model_dir}",
        *(f"--config.{flag.format(tokenizer=tokenizer)}" for flag in flags),
    ]
    assert main([*command, *options, "--dry-run"]) == 2
    printed = capsys.readouterr()
    assert words in printed.err and printed.out == "" and not (tmp_path / "d").exists()
    assert printed.err.splitlines() == [refusal_of_train(command, options, capsys, tmp_path)]


@pytest.mark.long
def test_check_of_runs_that_have_begun(command, model_dir, capsys, tmp_path):
    """A run that was interrupted and is to go on with a mesh that does not fit is refused, too."""
    tokenizer = f"--config.tokenizer_dir={model_dir}"
    (tmp_path / "small.py").write_text(small.CONFIG_FILE + SWEEP.replace("(1, 2)", "(1,)"))
    assert main([*command, tokenizer, "--dry-run"]) == 0
    id = capsys.readouterr().out.splitlines()[1].split()[0]
    train = ["train", *command[1:3], "--workdir", str(tmp_path / "d" / id), tokenizer]
    assert main([*train, "--config.seed=1"]) == 0
    (tmp_path / "d" / id / "status.json").unlink()
    capsys.readouterr()
    assert main([*command, tokenizer, "--dry-run"]) == 0
    assert main([*command, tokenizer, "--config.mesh.data=3", "--dry-run"]) == 2
    assert "mesh" in capsys.readouterr().err.splitlines()[-1]


def test_check_package_of_wandb(command, model_dir, capsys, monkeypatch, tmp_path):
    """A sweep that is to log to W&B is refused as its runs would be where the package is missing,
    unless they are processes of other machines."""
    require = wandb_board.require_package

    def missing(project: str):
        with monkeypatch.context() as patch:
            patch.setattr(importlib.util, "find_spec", lambda name: None)
            require(project)

    monkeypatch.setattr(wandb_board, "require_package", missing)
    flags = [f"--config.tokenizer_dir={model_dir}", "--config.wandb_project=photos"]
    assert main([*command, *flags, "--dry-run"]) == 2
    printed = capsys.readouterr()
    assert "the package wandb is not installed" in printed.err and printed.out == ""
    assert printed.err.splitlines() == [refusal_of_train(command, flags, capsys, tmp_path)]

    def opened(start, **_):
        raise LookupError("the next check")

    monkeypatch.setattr(start_check, "_opened", opened)
    start = start_check.Start(small.train_config("tokenizer", "", wandb_project="photos"), "")
    for here, error in ((True, UserError), (False, LookupError)):
        with pytest.raises(error):
            start_check.check_all([start], on_this_machine=here, on_these_devices=True)
        logging.disable(logging.NOTSET)


@pytest.mark.parametrize("place", ["file", "file/inside"])
def test_dry_run_names_a_place_that_is_a_file(command, tmp_path, capsys, place):
    """`--dry-run` refuses a sweep's directory that is a file or lies below one."""
    (tmp_path / "file").write_text("")
    command[command.index("--workdir") + 1] = str(tmp_path / place)
    assert main([*command, "--dry-run"]) == 2
    assert "is a file" in capsys.readouterr().err


def test_check_names_a_platform_that_is_not_there(
    own_process, command, model_dir, capsys, monkeypatch
):
    """The runs' processes would find no such device: the line is that of any command."""
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    assert main([*command, f"--config.tokenizer_dir={model_dir}", "--dry-run"]) == 2
    printed = capsys.readouterr()
    assert "JAX_PLATFORMS is 'cuda', and JAX finds no CUDA device here" in printed.err
    assert printed.err.count("\n") == 1 and printed.out == ""


def test_costs_are_of_the_tokenizer_that_is_read(command, model_dir, capsys, tmp_path):
    """A config that describes another tokenizer than the one it reads has the costs of the latter,
    as its runs do, and keeps its run ids."""
    other = tmp_path / "other.py"
    text = (tmp_path / "small.py").read_text()
    changed = "config.tokenizer.vocab_size = 8\n    return config"
    other.write_text(text.replace("return config", changed))
    assert other.read_text() != text
    tokenizer = f"--config.tokenizer_dir={model_dir}"
    assert main([*command, tokenizer, "--dry-run"]) == 0
    expected = [line.split()[1:] for line in capsys.readouterr().out.splitlines()]
    command[2] = str(other)
    assert main([*command, tokenizer, "--dry-run"]) == 0
    assert [line.split()[1:] for line in capsys.readouterr().out.splitlines()] == expected


def test_check_without_a_tokenizer(command, capsys, tmp_path):
    """A sweep's cost may be asked for before there is a tokenizer; its runs may not be started."""
    assert main([*command, "--dry-run"]) == 0
    printed = capsys.readouterr()
    assert "total" in printed.out and "tokenizer_dir" in printed.err
    assert main(command) == 2
    assert "tokenizer_dir is ''" in capsys.readouterr().err and not (tmp_path / "d").exists()
