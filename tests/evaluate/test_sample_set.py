"""Sample sets: contents, interruptions, several hosts, PNG files, rejection, and what is
refused."""

import dataclasses
import functools
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from helpers import small
from var_jax import Pipeline
from var_jax.config.model import ModelConfig
from var_jax.errors import UserError
from var_jax.evaluate import sample_files, sample_plan, sample_set
from var_jax.io import atomic

SETTINGS = {"seed": 3, "cfg": 1.5, "top_k": 0, "top_p": 0.9, "temperature": 1.0, "smooth": False}
NUM = 27  # seven files of four at most
CLASSES = small.CLASSES


def planned(num=NUM, labels=None, **changes):
    return sample_plan.make_plan(small.pipeline(), num, labels, **{**SETTINGS, **changes})


def generate(made, out, **options) -> bool:
    return sample_set.generate(
        small.pipeline(), made, out, **{"batch_size": 1, "shard_images": 4, **options}
    )


@functools.cache
def partner() -> Pipeline:
    """A shallower transformer with other weights behind the same tokenizer."""
    params = small.pipeline().params
    weights = jax.tree.map(lambda x: np.flip(np.asarray(x), -1), params["transformer"])
    weights = {**weights, "blocks": jax.tree.map(lambda x: x[:1], weights["blocks"])}
    config = ModelConfig(small.TOKENIZER, dataclasses.replace(small.TRANSFORMER, depth=1))
    return Pipeline(config, {**params, "transformer": weights})


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "samples.npz"
    assert generate(planned(), out)
    return out


def read(path) -> tuple[np.ndarray, np.ndarray]:
    with np.load(path, allow_pickle=False) as arrays:
        return arrays["arr_0"], arrays["arr_1"]


def direct(labels) -> np.ndarray:
    images = small.pipeline().sample(labels, **SETTINGS)
    return np.rint(images * 255).astype(int)


@pytest.mark.long
def test_generate_writes_the_pipelines_images_shuffled(full):
    """Images are those of `sample` in an order drawn by the seed, each with its label, and nothing
    else is left in the folder."""
    images, labels = read(full)
    assert images.dtype == np.uint8 and images.shape == (NUM, 6, 8, 1) and labels.dtype == np.int32
    expected = np.arange(NUM) % CLASSES
    sampled = direct(expected)
    order = np.random.default_rng(SETTINGS["seed"]).permutation(NUM)
    assert np.abs(images - sampled[order]).max() <= 1  # rounded to pixels
    np.testing.assert_array_equal(labels, expected[order])
    assert len(np.unique(images.reshape(NUM, -1), axis=0)) == NUM
    assert [p.name for p in full.parent.iterdir()] == ["samples.npz"]
    with zipfile.ZipFile(full) as archive:
        assert [info.filename for info in archive.infolist()] == [
            "arr_0.npy",
            "arr_1.npy",
            "settings.npy",
        ]
        assert archive.testzip() is None


class Killed(BaseException):
    pass


def test_generate_goes_on_after_every_kill(full, tmp_path, monkeypatch):
    """The hook leaves what a kill leaves: no file, part of a temporary one, or the whole one."""
    out, draw, deaths = tmp_path / "samples.npz", random.Random(0), []
    save, join = atomic.save, sample_files.join

    def fragile_save(path, parts, what):
        fate = draw.choice(("live", "live", "before", "half", "after"))
        if fate == "half":
            path.with_name(f"{path.name}.1-dead.tmp").write_bytes(bytes(parts[0])[:50])
        if fate in ("live", "after"):
            save(path, parts, what)
        if fate != "live":
            deaths.append(fate)
            raise Killed

    def fragile_join(out, beside, *rest):
        if deaths.count("join") < 2:
            deaths.append("join")
            beside.with_name("joined.1-dead.tmp").write_bytes(b"PK")
            raise Killed
        join(out, beside, *rest)

    monkeypatch.setattr(atomic, "save", fragile_save)
    monkeypatch.setattr(sample_files, "join", fragile_join)
    for _ in range(50):
        try:
            assert generate(planned(), out)
            break
        except Killed:
            assert not out.exists()
    assert set(deaths) == {"before", "half", "after", "join"} and len(deaths) > 5
    assert out.read_bytes() == full.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["samples.npz"]


@pytest.mark.slow
def test_generate_goes_on_after_its_process_is_killed(model_dir, full, tmp_path):
    """After three kills at different files, the set equals the uninterrupted one, byte for byte."""
    out = tmp_path / "samples.npz"
    script = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
sys.path.insert(0, {str(Path(__file__).parent)!r})
from helpers import small
from var_jax.io import atomic
from test_sample_set import generate, planned
save = atomic.save
def slowly(*args):
    save(*args)
    time.sleep(0.3)
atomic.save = slowly
generate(planned(), {str(out)!r})
"""
    partial, kills = tmp_path / "samples.npz.partial", 0
    for target in (1, 3, 5):
        process = subprocess.Popen([sys.executable, "-c", script], env=dict(os.environ))
        while len(list(partial.glob("*.npy"))) < target and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills == 3 and not out.exists()
    assert generate(planned(), out) and out.read_bytes() == full.read_bytes()


def test_generate_on_two_hosts_writes_the_set_of_one(full, tmp_path):
    """The second host writes its three files, the first one the rest and the set, byte for byte."""
    out = tmp_path / "samples.npz"
    assert not generate(planned(), out, shard_index=1, shard_count=2)
    partial = tmp_path / "samples.npz.partial"
    assert len(list(partial.glob("*.npy"))) == 3 and not out.exists()
    assert generate(planned(), out, shard_index=0, shard_count=2)
    assert out.read_bytes() == full.read_bytes() and not partial.exists()


def test_generate_samples_nothing_twice(full, monkeypatch):
    """A finished set is left as it is."""
    monkeypatch.setattr(sample_set, "_write_shards", lambda *_, **__: pytest.fail("drawn again"))
    before = full.stat().st_mtime_ns
    assert generate(planned(), full) and full.stat().st_mtime_ns == before


def test_generate_refuses_other_settings(full, tmp_path):
    """A finished and a half-finished set of another seed, number, class, guidance or model are
    refused, and so is a foreign file."""
    out = tmp_path / "samples.npz"
    generate(planned(), out, shard_index=0, shard_count=2)  # half of it
    for changes in (
        {"seed": 4},
        {"num": NUM + 1},
        {"labels": [1]},
        {"cfg": 1.0},
        {"then": partner(), "keep_scales": 2},
    ):
        for path in (full, out):
            with pytest.raises(
                UserError, match="is of other settings: .*; remove it, or give another --out"
            ):
                generate(planned(**changes), path)
    foreign = tmp_path / "foreign.npz"
    np.savez(foreign, np.zeros(3))
    with pytest.raises(UserError, match="no sample set of this program"):
        generate(planned(), foreign)


def test_generate_goes_on_with_the_same_batches_and_devices(full, tmp_path, monkeypatch):
    """Other batches, files or devices would round otherwise: they are refused by name, and without
    a word the recorded ones are taken."""
    out = tmp_path / "samples.npz"
    generate(planned(), out, shard_index=0, shard_count=2)
    with pytest.raises(
        UserError, match="begun otherwise, .*: batch_size: 2 here, 1 there; go on with"
    ):
        sample_set.generate(small.pipeline(), planned(), out, batch_size=2)
    with pytest.raises(
        UserError, match="begun otherwise, .*: shard_images: 5 here, 4 there; go on with"
    ):
        generate(planned(), out, shard_images=5)
    with monkeypatch.context() as fewer:
        devices = sample_set.jax.local_devices()
        fewer.setattr(sample_set.jax, "local_devices", lambda: devices[:4])
        with pytest.raises(UserError, match="begun otherwise, .*: devices: 4 here, 8 there"):
            generate(planned(), out)
    assert sample_set.generate(
        small.pipeline(), planned(), out
    )  # by default with what it was begun with
    assert out.read_bytes() == full.read_bytes()


@pytest.mark.parametrize(("batch_size", "images"), [(1, 64), (12, 96), (64, 512), (None, 512)])
def test_generate_has_files_of_whole_batches_of_all_devices(
    tmp_path, monkeypatch, batch_size, images
):
    """The number of images per file is a multiple of the batch over all eight devices, for each
    batch size and for the default, so that no batch is split between files. The manifest has that
    number."""
    monkeypatch.setattr(sample_set, "_write_shards", lambda *_, **__: None)
    out = tmp_path / "samples.npz"
    assert not generate(planned(), out, batch_size=batch_size, shard_images=None)
    manifest = json.loads((tmp_path / "samples.npz.partial" / "manifest.json").read_text())
    assert (
        manifest["drawn_with"]["shard_images"] == images and manifest["drawn_with"]["devices"] == 8
    )


def test_generate_joins_more_files_than_a_process_may_open(tmp_path):
    """The set equals the one from a single file."""
    one, many = tmp_path / "one.npz", tmp_path / "many.npz"
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = max(map(int, os.listdir("/dev/fd"))) + 16
    made = planned(num=few // 2 + 10, keep=0.5, scorer="brightness")
    assert made.num_drawn > few

    def brightness(images, _):
        return images.mean((1, 2, 3))

    assert generate(made, one, score=brightness, shard_images=made.num_drawn)
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, limits[1]))
    try:
        assert generate(made, many, score=brightness, shard_images=1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert many.read_bytes() == one.read_bytes()


@pytest.mark.long
def test_generate_samples_the_last_scales_by_another_model(tmp_path):
    """Images equal those of `sample` with the same partner, and another partner or scale is another
    setting."""
    out, then = tmp_path / "samples.npz", {"then": partner(), "keep_scales": 2}
    made = planned(**then)
    assert generate(made, out, then=partner())
    images, labels = read(out)
    model = (
        small.pipeline()
        .spread()
        .sample(
            np.arange(NUM) % CLASSES,
            as_uint8=True,
            batch_size=1,
            then=partner().spread(),
            keep_scales=2,
            **SETTINGS,
        )
    )
    order = np.random.default_rng(SETTINGS["seed"]).permutation(NUM)
    np.testing.assert_array_equal(images, model[order])
    np.testing.assert_array_equal(labels, order % CLASSES)
    for changes, output in (
        ({}, "from_scale: None here, 2 there; then: "),
        ({**then, "keep_scales": 1}, "from_scale: 1"),
        ({**then, "then": small.pipeline()}, "then: "),
    ):
        with pytest.raises(UserError, match=f"is of other settings: {output}"):
            generate(planned(**changes), out)


@pytest.mark.long
def test_generate_refuses_to_go_on_in_another_dtype(full, tmp_path):
    """bfloat16 gives other images, and neither a finished nor a half-finished float32 set is
    continued in it."""
    half, out = small.pipeline().astype("bfloat16"), tmp_path / "samples.npz"
    made = sample_plan.make_plan(half, NUM, **SETTINGS)
    assert sample_set.generate(half, made, out, batch_size=1, shard_images=4)
    images, labels = read(out)
    exact, same = read(full)
    np.testing.assert_array_equal(labels, same)
    assert not np.array_equal(images, exact)
    with pytest.raises(
        UserError, match="is of other settings: dtype: bfloat16 here, float32 there; model: "
    ):
        sample_set.generate(half, made, full)
    begun = tmp_path / "begun.npz"
    generate(planned(), begun, shard_index=0, shard_count=2)
    with pytest.raises(
        UserError, match="is of other settings: dtype: bfloat16 here, float32 there; model: "
    ):
        sample_set.generate(half, made, begun)


def test_generate_writes_pngs_named_by_index_and_label(full, tmp_path, monkeypatch):
    """Each file has its image; a folder of something else is refused before sampling, and one that
    another host finishes first is taken."""
    out, directory = tmp_path / "samples.npz", tmp_path / "png"
    generate(planned(), out, png=directory)
    images, labels = read(out)
    files = sorted(directory.glob("*.png"))
    assert sorted(f.name for f in directory.iterdir()) == [
        *(f.name for f in files),
        "manifest.json",
    ]
    assert [f.name for f in files] == [f"{i:06d}_{label}.png" for i, label in enumerate(labels)]
    for file, image in zip(files, images, strict=True):
        with Image.open(file) as opened:
            np.testing.assert_array_equal(np.asarray(opened), image[..., 0])
    assert generate(planned(), out, png=directory)
    monkeypatch.setattr(
        sample_set, "_write_shards", lambda *_, **__: pytest.fail("drawn before it was refused")
    )
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    for place, pictures in ((tmp_path / "other.npz", directory), (out, foreign)):
        with pytest.raises(
            UserError, match="is there already, and not of .*; remove it, or give another --png"
        ):
            generate(planned(), place, png=pictures)
    assert not list(foreign.iterdir())
    late = tmp_path / "late"  # another host writes all of it while this one does
    rename = type(late).rename
    monkeypatch.setattr(
        type(sample_files.epath.Path(late)),
        "rename",
        lambda self, to: (rename(Path(directory), late), rename(Path(self), Path(to))),
    )
    assert generate(planned(), out, png=late)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["foreign", "late", "samples.npz"]


def test_generate_keeps_the_best_of_each_class(tmp_path):
    """Scored by brightness, the kept images are the brightest of each label."""
    labels, out = [2, 5, 2], tmp_path / "samples.npz"
    made = planned(num=7, labels=labels, keep=0.4, scorer="brightness")
    assert made.num_drawn == 24  # eight turns, of which three are kept
    generate(made, out, score=lambda images, _: images.mean((1, 2, 3)))
    images, result = read(out)
    sampled, asked = (
        direct(np.asarray(labels)[np.arange(24) % 3]),
        np.asarray(labels)[np.arange(24) % 3],
    )
    assert len(images) == 7
    for label, count in ((2, 5), (5, 2)):  # of 2, 5, 2, 2, 5, 2, 2
        best = np.sort(sampled[asked == label].mean((1, 2, 3)))[-count:]
        np.testing.assert_allclose(np.sort(images[result == label].mean((1, 2, 3))), best, atol=0.1)


def test_generate_names_mistakes(tmp_path):
    """Each error has its option or setting, and no file is written."""
    for changes, message in (
        ({"num": 0}, "--num is 0"),
        ({"labels": [CLASSES + 1]}, "label is 11"),
        ({"keep": 0.0}, "--reject-keep is 0"),
        ({"keep": 0.5, "labels": [CLASSES]}, "no class"),
        ({"top_p": 2.0}, "top_p is 2"),
        ({"seed": -1}, "seed is -1"),
        ({"then": partner()}, "keep_scales is None; it must be given together with `then`"),
        ({"then": partner(), "keep_scales": 3}, "keep_scales is 3; .* number from 1 to 2"),
    ):
        with pytest.raises(UserError, match=message):
            planned(**changes)
    for name in ("samples.npy", "."):
        with pytest.raises(UserError, match="name a file that ends in .npz"):
            generate(planned(), tmp_path / name)
    assert not list(tmp_path.iterdir())
