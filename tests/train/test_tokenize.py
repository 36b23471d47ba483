"""Token caches: their contents, interruptions, several hosts, and what is refused."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from helpers import small
from helpers.files import contents
from var_jax import Pipeline
from var_jax.config.train import DataConfig
from var_jax.data import sources, token_cache, transforms
from var_jax.errors import UserError
from var_jax.io import atomic
from var_jax.io.tokenizer_fingerprint import tokenizer_fingerprint
from var_jax.train import token_shards
from var_jax.train.tokenize import tokenize

SHAPE = small.TOKENIZER.image_shape


@pytest.fixture(scope="module")
def config(digits_dir):
    data = DataConfig(
        "digits", data_dir=str(digits_dir), train_split="train[:50]", eval_split="test[:7]"
    )
    return small.train_config("transformer", digits_dir, data=data)


@pytest.fixture(scope="module")
def full(config, model_dir, tmp_path_factory):
    """A cache of two views, 50 + 7 images, in files of 16."""
    out = tmp_path_factory.mktemp("whole") / "cache"
    tokenize(config, str(model_dir), str(out), views=2, batch=1, shard_images=16)
    return out


def pixels(config, split: str, view: int | None) -> np.ndarray:
    """The images that a view should have: a view crops image i by a generator of (seed, view,
    i)."""
    opened, images = sources.open_split(config.data, split), []
    for i in range(len(opened)):
        fitted = transforms.fit(opened[i]["image"], SHAPE, config.data.resize)
        rng = None if view is None else np.random.default_rng([config.seed, view, i])
        images.append(transforms.crop(fitted, SHAPE, rng))
    return np.stack(images).astype(np.float32) / np.float32(127.5) - 1


@pytest.mark.long
def test_tokenize_writes_the_pipelines_tokens(config, full, model_dir):
    """Every view's tokens are those of encoding the same crops, labels are the data set's, and two
    views differ."""
    cache, model = token_cache.open_cache(full), Pipeline.from_pretrained(model_dir)
    views = []
    for view in range(2):
        result = [cache.train.read(i, view) for i in range(50)]
        views.append(np.stack([f["tokens"] for f in result]))
        assert np.array_equal(views[-1], model.encode(pixels(config, "train[:50]", view)))
        labels = [e["label"] for e in sources.open_split(config.data, "train[:50]")]
        assert [f["label"] for f in result] == labels
    assert (views[0] != views[1]).any(axis=1).sum() > 10  # other crops, other tokens
    held_out = np.stack([e["tokens"] for e in cache.test])
    assert np.array_equal(held_out, model.encode(pixels(config, "test[:7]", None)))


def test_manifest_says_what_the_cache_holds(config, full, model_dir):
    """Counts, shards and the tokenizer in the cache agree with its files and with the tokenizer
    that was given."""
    cache = token_cache.open_cache(full)
    assert cache.manifest.train.views == 2 and cache.manifest.test.views == 1
    assert cache.counts == {"train": 50, "test": 7}
    assert [s.images for s in cache.manifest.train.shards] == [16, 16, 16, 2] * 2
    assert {s.name for s in cache.manifest.train.shards} == {
        p.name for p in (full / "train").glob("*.array_record")
    }
    loaded, original = (
        Pipeline.from_pretrained(cache.tokenizer_directory),
        Pipeline.from_pretrained(model_dir),
    )
    assert (
        loaded.config.transformer is None and loaded.config.tokenizer == original.config.tokenizer
    )
    for pipeline in (loaded, original):
        cache.check(
            config.data,
            pipeline.config.tokenizer,
            tokenizer_fingerprint(pipeline.config.tokenizer, pipeline.params["tokenizer"]),
        )


def test_hosts_write_disjoint_files_whose_union_is_the_cache(config, full, model_dir, tmp_path):
    """Two hosts write different files, which together are the cache of one host."""
    out, settings = (
        tmp_path / "cache",
        {"views": 2, "batch": 1, "shard_images": 16, "shard_count": 2},
    )
    tokenize(config, str(model_dir), str(out), **settings, shard_index=0)
    first = contents(out, "*.array_record")
    with pytest.raises(UserError, match="is not finished"):
        token_cache.open_cache(out)
    stamps = {p.name: p.stat().st_mtime_ns for p in out.rglob("*.array_record")}
    tokenize(config, str(model_dir), str(out), **settings, shard_index=1)
    assert all(
        p.stat().st_mtime_ns == stamps[p.name]
        for p in out.rglob("*.array_record")
        if p.name in stamps
    )
    assert len(first) == 5 and contents(out) == contents(full)


def test_tokenize_writes_again_what_is_not_whole(config, full, model_dir, tmp_path):
    """A shard that is cut, missing or without its note is written again with the same bytes, and
    the other six are not touched."""
    out = tmp_path / "cache"
    settings = {"views": 2, "batch": 1, "shard_images": 16}
    tokenize(config, str(model_dir), str(out), **settings)
    train = sorted((out / "train").glob("*.array_record"))
    train[0].write_bytes(train[0].read_bytes()[:100])  # half-written
    train[1].unlink()
    (out / "train" / f"{train[2].name}.json").write_text("{")
    remaining = {p: p.stat().st_mtime_ns for p in out.rglob("*.array_record") if p not in train[:3]}
    tokenize(config, str(model_dir), str(out), **settings)
    assert contents(out) == contents(full)
    assert len(remaining) == 6 and all(
        p.stat().st_mtime_ns == mtime for p, mtime in remaining.items()
    )


def test_tokenize_adds_a_split_later(config, full, model_dir, tmp_path):
    """Writing the test split first and then the training split gives the files of writing both."""
    out = tmp_path / "cache"
    for roles in (("test",), ("train",)):
        tokenize(config, str(model_dir), str(out), views=2, batch=1, shard_images=16, roles=roles)
    assert contents(out) == contents(full)


@pytest.mark.long
def test_tokenize_goes_on_after_a_kill(config, full, model_dir, tmp_path):
    """After a SIGKILL, the same command keeps the finished shards and completes the cache.

    Its files equal those of an uninterrupted run, and the times of finished shards show that they
    were not written again.
    """
    out = tmp_path / "cache"
    data = {k: getattr(config.data, k) for k in ("data_dir", "train_split", "eval_split")}
    script = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
sys.path.insert(0, {str(Path(__file__).parent)!r})
import time
from helpers import small
from helpers.files import contents
from var_jax.train import token_shards
from var_jax.train import tokenize as module
from var_jax.config.train import DataConfig
write = token_shards.write
def slowly(*args):  # so that there is a middle to kill it in
    write(*args)
    time.sleep(0.5)
token_shards.write = slowly
config = small.train_config("transformer", "", data=DataConfig("digits", **{data!r}))
module.tokenize(config, {str(model_dir)!r}, {str(out)!r}, views=2, batch=1, shard_images=16)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], env=os.environ, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 240
    while (
        len(list(out.glob("train/*.json"))) < 2
        and process.poll() is None
        and time.monotonic() < deadline
    ):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = {
        p: p.stat().st_mtime_ns
        for p in out.glob("train/*.array_record")
        if Path(f"{p}.json").exists()
    }
    assert 2 <= len(done) < 8
    tokenize(config, str(model_dir), str(out), views=2, batch=1, shard_images=16)
    assert contents(out) == contents(full)
    assert (
        sum(p.stat().st_mtime_ns == mtime for p, mtime in done.items()) >= len(done) - 1
    )  # the last stamp may be cut


def test_tokenize_refuses_views_without_crops(config, model_dir, tmp_path):
    """Without random crops two views would be equal; one view is written, with the pipeline's
    tokens."""
    still = dataclasses.replace(config, data=dataclasses.replace(config.data, resize="stretch"))
    with pytest.raises(UserError, match="--views is 2; it must be 1 with data.resize 'stretch'"):
        tokenize(still, str(model_dir), str(tmp_path / "cache"), views=2)
    assert not (tmp_path / "cache").exists()
    tokenize(still, str(model_dir), str(tmp_path / "cache"), batch=1)
    result = np.stack([e["tokens"] for e in token_cache.open_cache(tmp_path / "cache").train])
    assert np.array_equal(
        result, Pipeline.from_pretrained(model_dir).encode(pixels(still, "train[:50]", None))
    )


def test_flips_are_drawn_by_the_seed_the_view_and_the_image(config, model_dir, tmp_path):
    """Flips are drawn as crops are; with flips, a set that is not cropped has views, and its
    held-out images are not flipped."""
    flipped = dataclasses.replace(
        config, data=dataclasses.replace(config.data, resize="stretch", flip=True)
    )
    tokenize(flipped, str(model_dir), str(tmp_path / "cache"), views=2, batch=1)
    cache, model = token_cache.open_cache(tmp_path / "cache"), Pipeline.from_pretrained(model_dir)
    cache.check(flipped.data)
    still, mirrored = pixels(flipped, "train[:50]", None), 0
    for view in range(2):
        images = still.copy()
        for i in range(50):
            if np.random.default_rng([flipped.seed, view, i]).random() < 0.5:
                images[i], mirrored = images[i, :, ::-1], mirrored + 1
        result = np.stack([cache.train.read(i, view)["tokens"] for i in range(50)])
        assert np.array_equal(result, model.encode(images))
    assert 30 < mirrored < 70
    held_out = np.stack([e["tokens"] for e in cache.test])
    assert np.array_equal(held_out, model.encode(pixels(flipped, "test[:7]", None)))


def test_tokenize_leaves_a_directory_of_something_else_alone(config, full, model_dir, tmp_path):
    """A cache of other settings and a model directory are refused, the settings that differ are
    named, and no file changes."""
    before = contents(full)
    with pytest.raises(
        UserError, match=r"another cache: seed: 4 here, 3 there; train.views: 1 here, 2 there"
    ):
        tokenize(dataclasses.replace(config, seed=4), str(model_dir), str(full), shard_images=16)
    with pytest.raises(UserError, match="holds a model; give another --out"):
        tokenize(config, str(model_dir), str(model_dir))
    assert contents(full) == before


class Killed(BaseException):
    pass


def test_tokenize_names_a_shard_when_it_is_whole(config, full, model_dir, tmp_path, monkeypatch):
    """Killed before a file is renamed into place, a run leaves no shard: another process that reads
    the directory finds a whole one or none. What it left besides is cleared up at the end."""
    out, settings = tmp_path / "cache", {"views": 2, "batch": 1, "shard_images": 16}
    path = type(epath.Path(tmp_path))
    replace = path.replace

    def killed(self, target):
        if str(target).endswith(".array_record"):
            raise Killed
        return replace(self, target)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(path, "replace", killed)
        tokenize(config, str(model_dir), str(out), **settings)
    assert not list(out.rglob("*.array_record"))
    atomic.temporary_name(out / "train" / "view00-00000-of-00004.array_record").write_bytes(b"half")
    tokenize(config, str(model_dir), str(out), **settings)
    assert contents(out) == contents(full)


@pytest.mark.long
def test_hosts_that_finish_at_once_leave_a_whole_manifest(
    config, full, model_dir, tmp_path, monkeypatch
):
    """One host looks for the other's last shard right before it is there, and writes the manifest
    after the other has; the manifest that stays has all shards nevertheless."""
    out, settings = tmp_path / "cache", {"views": 2, "batch": 1, "shard_images": 16}
    tokenize(config, str(model_dir), str(out), **settings)
    done, missed = token_shards.finished_shard, []

    def late(directory, manifest, part):
        if (
            part.role == "test" and len(missed) < 2
        ):  # when work is dealt out, and in the first look at the end
            missed.append(part)
            return None
        return done(directory, manifest, part)

    monkeypatch.setattr(token_shards, "finished_shard", late)
    monkeypatch.setattr(token_shards, "write", lambda *_: None)
    tokenize(config, str(model_dir), str(out), **settings)
    assert len(missed) == 2 and contents(out) == contents(full)
