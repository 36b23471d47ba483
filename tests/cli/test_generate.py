"""`var-jax generate`: sets of samples, rejection, and mistakes."""

import json

import numpy as np
import pytest

from helpers import small, toy_network
from var_jax.cli.main import main
from var_jax.evaluate import feature_networks, sample_set


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    monkeypatch.setenv(
        "SLURM_NTASKS", "1"
    )  # this process has used JAX, and cannot join others any more
    monkeypatch.setattr(feature_networks, "load", lambda kind, path="": toy_network.network())


def command(model_dir, tmp_path, *rest) -> list[str]:
    return [
        "generate",
        "--model",
        str(model_dir),
        "--num",
        "12",
        "--out",
        str(tmp_path / "out" / "samples.npz"),
        "--top-k",
        "0",
        "--batch-size",
        "1",
        *map(str, rest),
    ]


def read(tmp_path):
    with np.load(tmp_path / "out" / "samples.npz", allow_pickle=False) as arrays:
        return arrays["arr_0"], arrays["arr_1"], json.loads(str(arrays["settings"]))


@pytest.mark.long
def test_generate_is_balanced_by_default(model_dir, tmp_path, capsys):
    """Twelve images have every class once and the first two twice; the same command again is done
    at once, and other settings are refused."""
    png = tmp_path / "png"
    assert main(command(model_dir, tmp_path, "--seed", 4, "--png", png)) == 0
    printed = capsys.readouterr()
    assert (
        printed.out == f"12 images in {tmp_path / 'out' / 'samples.npz'} and {png}\n"
        and "12/12" in printed.err
    )
    images, labels, settings = read(tmp_path)
    assert images.shape == (12, 6, 8, 1) and images.dtype == np.uint8
    assert sorted(labels) == sorted([*range(10), 0, 1])
    assert settings["sampling"] == {
        "seed": 4,
        "cfg": 1.5,
        "top_k": 0,
        "top_p": 0.96,
        "temperature": 1.0,
        "smooth": False,
    }
    assert len(list(png.glob("*.png"))) == 12
    assert main(command(model_dir, tmp_path, "--seed", 4, "--png", png)) == 0  # there already
    capsys.readouterr()
    assert main(command(model_dir, tmp_path, "--seed", 5)) == 2
    assert "is of other settings: sampling" in capsys.readouterr().err


def test_generate_takes_labels_and_rejects_samples(model_dir, digits_dir, tmp_path):
    """Each of three classes has a third of the images, all different, and the settings name the
    scorer."""
    arguments = command(
        model_dir,
        tmp_path,
        "--labels",
        "3,5-6",
        "--reject-keep",
        0.5,
        "--reject-reference",
        "digits:train[:200]",
        "--data-dir",
        digits_dir,
        "--resize",
        "stretch",
    )
    assert main(arguments) == 0
    images, labels, settings = read(tmp_path)
    assert sorted(labels) == [3] * 4 + [5] * 4 + [6] * 4 and settings["keep"] == 0.5
    assert settings["scorer"].startswith("toy weights0 fitted on ")
    assert len(np.unique(images.reshape(12, -1), axis=0)) == 12


def test_generate_with_another_model_and_dtype(model_dir, tmp_path, capsys, monkeypatch):
    """The options reach the set's settings; the tests of sample sets generate with them."""
    handed = []
    monkeypatch.setattr(sample_set, "_write_shards", lambda *values, **_: handed.append(values[:2]))
    rest = ("--then", model_dir, "--from-scale", 2)
    assert main(command(model_dir, tmp_path, *rest, "--dtype", "bfloat16")) == 0
    assert [one.config for one in handed[0]] == [small.pipeline().astype("bfloat16").config] * 2
    settings = json.loads((tmp_path / "out" / "samples.npz.partial" / "manifest.json").read_text())
    assert (
        settings["dtype"] == "bfloat16"
        and settings["from_scale"] == 2
        and settings["then"] == settings["model"]
    )
    capsys.readouterr()
    assert main(command(model_dir, tmp_path, *rest)) == 2
    assert (
        "is of other settings: dtype: float32 here, bfloat16 there; model: "
        in capsys.readouterr().err
    )


@pytest.mark.long
@pytest.mark.parametrize(
    ("rest", "message"),
    [
        (("--num", 0), "--num is 0"),
        (("--labels", "0,cat"), "'cat' is not a class id"),
        (("--labels", small.CLASSES + 1), "label is 11; it must be from 0 to 9"),
        (("--top-p", 3), "top_p is 3.0"),
        (("--batch-size", 0), "--batch-size is 0"),
        (("--then", "nowhere"), "--keep-scales is None; it must be given together with --then"),
        (("--from-scale", 2), "--keep-scales is 2; it must be given together with --then"),
        (
            ("--then", "{model}", "--from-scale", 3),
            "keep_scales is 3; it must be a whole number from 1 to 2",
        ),
        (("--then", "nowhere", "--from-scale", 2), "no model directory nowhere"),
        (("--process-id", 0), "--num-processes and --process-id go together"),
        (
            ("--num-processes", 2, "--process-id", 2),
            "--process-id is 2; it must be from 0 to 1, as there are 2",
        ),
        (("--out", "{dir}"), "name a file that ends in .npz"),
        (("--model", "nowhere"), "no model directory nowhere"),
        (("--reject-keep", 0.5), "--reject-keep and --reject-reference go together"),
        (("--tokens-out", "{dir}"), "is there already, and not of this sample set"),
        (("--tokens-out", "{dir}/new", "--smooth"), "--tokens-out is given with --smooth"),
        (("--tokens-out", "{dir}/new", "--labels", small.CLASSES), "--tokens-out is 10, no class"),
        (("--tokens-out", "{dir}/out/samples.npz"), "--tokens-out"),
        (("--reject-keep", 2, "--reject-reference", "{digits}"), "--reject-keep is 2.0"),
        (("--reject-keep", 0.5, "--reject-reference", "{plain}"), "without labels"),
    ],
)
def test_generate_names_mistakes_and_writes_nothing(
    model_dir, digits_dir, tmp_path, capsys, rest, message
):
    """One line has the option and what would be right, and no file is added."""
    plain = tmp_path / "plain.npz"
    np.savez(plain, np.zeros((5, 6, 8, 1), np.uint8))
    names = {
        "{dir}": tmp_path,
        "{model}": model_dir,
        "{digits}": "digits:test[:20]",
        "{plain}": plain,
    }
    arguments = command(
        model_dir,
        tmp_path,
        *(names.get(str(r), str(r).replace("{dir}", str(tmp_path))) for r in rest),
        "--data-dir",
        digits_dir,
    )
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.count("\n") == 1 and printed.out == ""
    assert [p.name for p in tmp_path.iterdir()] == ["plain.npz"]


def test_hosts_by_hand_share_files_alone(model_dir, tmp_path, capsys):
    """Two hosts that run one after the other make one set from shared files alone: neither waits
    for the other."""
    shared = [*command(model_dir, tmp_path, "--num", 70), "--num-processes", "2", "--process-id"]
    assert main([*shared, "1"]) == 0  # the second of two files
    printed = capsys.readouterr()
    assert printed.out == "" and "the last host to finish writes" in printed.err
    assert not (tmp_path / "out" / "samples.npz").exists()
    assert main([*shared, "0"]) == 0
    assert capsys.readouterr().out.startswith("70 images in ") and len(read(tmp_path)[0]) == 70
