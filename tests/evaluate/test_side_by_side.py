"""Distances of further networks beside the metrics of one, in reports and from the command line."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from evaluate.test_features import Images
from helpers import numpy_vit, toy_network
from var_jax.cli.main import main
from var_jax.errors import UserError
from var_jax.evaluate import feature_networks, features, samples, scores
from var_jax.evaluate.fid import frechet_distance
from var_jax.ops.resize import matrix

RANDOM = np.random.default_rng(0)
REAL = RANDOM.integers(0, 200, (40, 8, 8, 1), dtype=np.uint8)
DRAWN = RANDOM.integers(50, 256, (30, 8, 8, 1), dtype=np.uint8)


def test_further_networks_add_their_distances_and_change_no_other_metric():
    """A Fréchet distance and CMMD of the further networks' own features stand under their keys with
    floors and readings; all metrics of the first network are those of a report without them."""
    first = toy_network.network()
    frechet = dataclasses.replace(toy_network.network(1), key="fd_toy")
    kernel = dataclasses.replace(toy_network.network(2), key=feature_networks.CMMD)
    real, sampled = Images(REAL, "real").set, Images(DRAWN, "drawn").set
    alone = samples.evaluate(sampled, real, first, cache="")
    report = samples.evaluate(sampled, real, first, cache="", further=[frechet, kernel])
    assert list(report["metrics"]) == [*alone["metrics"], "fd_toy", "cmmd"]
    assert {name: report["metrics"][name] for name in alone["metrics"]} == alone["metrics"]
    assert [each["weights"] for each in report["further_features"]] == ["weights1", "weights2"]

    pairs = [(features.extract(n, sampled), features.extract(n, real)) for n in (frechet, kernel)]
    fd, cmmd = report["metrics"]["fd_toy"], report["metrics"]["cmmd"]
    assert fd["value"] == pytest.approx(frechet_distance(*(s.moments for s in pairs[0])))
    assert cmmd["value"] == pytest.approx(scores.cmmd(*(s.rows for s in pairs[1])))
    assert fd["ci95"] and cmmd["ci95"] is None and cmmd["counts"] == [30, 40]
    for metric in (fd, cmmd):
        assert metric["floor"]["value"] < metric["value"] and "lower is better" in metric["reading"]
    same = samples.evaluate(real, real, first, cache="", further=[kernel])
    assert same["metrics"]["cmmd"]["value"] == 0


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """Files of a small DINOv2 and a small CLIP, with a toy network in EfficientNet's place."""
    monkeypatch.setitem(feature_networks.LOADERS, "efficientnet", lambda _: toy_network.network())
    dino = numpy_vit.dinov2_shapes(grid=3, patch=56)
    for name, shapes in (("dino", dino), ("clip", numpy_vit.clip_shapes())):
        state: dict = numpy_vit.state(shapes)
        np.savez(tmp_path / f"{name}.npz", **state)
    np.savez(tmp_path / "drawn.npz", DRAWN)
    np.savez(tmp_path / "real.npz", REAL)
    return tmp_path


COLOR = RANDOM.integers(0, 256, (2, 32, 40, 3), dtype=np.uint8)


def test_dinov2_looks_at_normalized_pixels_of_pillow(weights):
    """Features of 8-bit images are those of numpy's network, for pixels that Pillow has resized,
    divided by 255 and normalized with ImageNet's mean and deviation."""
    network = feature_networks.load("dinov2", f"{weights}/dino.npz")
    actual, _ = network.apply(network.params, jnp.asarray(COLOR))
    state = dict(np.load(weights / "dino.npz"))
    for pixels, row in zip(COLOR, actual, strict=True):
        resized = Image.fromarray(pixels).resize((224, 224), Image.Resampling.BICUBIC)
        image = np.asarray(resized, np.float64) / 255
        normalized = (image - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        np.testing.assert_allclose(row, numpy_vit.dinov2(state, normalized), atol=2e-3)


def test_clip_looks_at_normalized_pixels_and_gives_unit_vectors(weights):
    """Embeddings of 8-bit images are those of numpy's network divided by their length, for pixels
    divided by 255, resized to the network's side and normalized with CLIP's mean and deviation."""
    network = feature_networks.load("clip", f"{weights}/clip.npz")
    actual, _ = network.apply(network.params, jnp.asarray(COLOR))
    np.testing.assert_allclose(np.linalg.norm(actual, axis=-1), 1, rtol=1e-5)
    state = dict(np.load(weights / "clip.npz"))
    rows, columns = (matrix(side, 20, "bicubic") for side in COLOR.shape[1:3])
    for pixels, embedding in zip(COLOR, actual, strict=True):
        image = np.einsum("ih,hwc,jw->ijc", rows, pixels / 255, columns)
        mean, deviation = (
            [0.48145466, 0.4578275, 0.40821073],
            [0.26862954, 0.26130258, 0.27577711],
        )
        expected = numpy_vit.clip(state, (image - mean) / deviation)
        np.testing.assert_allclose(embedding, expected / np.linalg.norm(expected), atol=2e-4)


@pytest.mark.long
def test_evaluate_shows_several_networks(weights, capsys):
    """The command reads both files, names the sizes that they have, and prints and writes both
    distances beside the first network's metrics."""
    arguments = ["evaluate", "--samples", f"{weights}/drawn.npz", "--cache", ""]
    arguments += ["--reference", f"{weights}/real.npz", "--json", f"{weights}/report.json"]
    arguments += ["--features", f"dinov2:{weights}/dino.npz", f"clip:{weights}/clip.npz"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "Fréchet distance, DINOv2 of width 128 and depth 2, 56 px of 168" in out
    assert "1000 times the squared MMD, CLIP of width 128 and depth 2, 4 px of 20" in out
    report = json.loads((weights / "report.json").read_text())
    assert report["features"]["network"] == "toy"
    assert report["metrics"]["fd_dinov2"]["value"] > 0 < report["metrics"]["cmmd"]["value"]
    assert [each["dimensions"] for each in report["further_features"]] == [128, 24]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("dinov2",), "features 'dinov2' need a file of weights, such as dinov2_vitl14"),
        (("clip:{dir}/dino.npz",), "weights of another network"),
        (("dinov2:{dir}/clip.npz",), "weights of another network"),
        (("clip:{dir}/clip.npz", "clip:{dir}/clip.npz"), "it must be each network once"),
        (("inception:f.pb", "--weights", "g.pb"), "--weights is g.pb; it must be left out"),
        (("vgg:f",), "invalid choice: 'vgg'"),
    ],
)
def test_evaluate_refuses_wrong_networks_in_one_line(weights, capsys, arguments, message):
    """Missing files, files of the other network, repetitions and two files for one network."""
    named = [argument.format(dir=weights) for argument in arguments]
    command = ["evaluate", "--samples", f"{weights}/drawn.npz", "--json", f"{weights}/none.json"]
    assert main([*command, "--reference", f"{weights}/real.npz", "--features", *named]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error
    assert not (weights / "none.json").exists()


def test_save_statistics_takes_one_network(weights, capsys):
    """Statistics are of one network's features."""
    command = ["evaluate", "--save-statistics", f"{weights}/s.npz"]
    command += ["--reference", f"{weights}/real.npz", "--features", f"clip:{weights}/clip.npz"]
    assert main(command) == 2
    assert "it must be one network with --save-statistics" in capsys.readouterr().err


def test_load_needs_a_file():
    """Every network but EfficientNet-Lite0 asks for its file by the option that names it."""
    for kind in ("inception", "dinov2", "clip"):
        with pytest.raises(UserError, match=f"name it .*as --features {kind}:FILE"):
            feature_networks.load(kind)
