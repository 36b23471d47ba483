"""Token caches of image folders: a cache is used for the images of which it was made alone."""

import dataclasses
import json
import logging
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from PIL import Image

from helpers import small
from helpers.files import contents
from var_jax.config.train import DataConfig
from var_jax.errors import UserError
from var_jax.train import tokenize as module
from var_jax.train.batches import Inputs
from var_jax.train.tokenize import tokenize


@pytest.fixture
def folder(tmp_path) -> Path:
    """40 gray images of two classes."""
    random = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(20):
            draw_image(tmp_path / "images" / name / f"{i:02d}.png", random)
    return tmp_path / "images"


def draw_image(path: Path, random: np.random.Generator):
    Image.fromarray(random.integers(0, 256, (6, 8), np.uint8)).save(path)


def folder_config(folder: Path, tmp_path: Path, cache: Path | None = None):
    data = DataConfig(
        "image_folder",
        source_dir=str(folder),
        data_dir=str(tmp_path / "tfds"),
        resize="stretch",
        tokens_dir=str(cache or ""),
    )
    return small.train_config("transformer", "", data=data)


def opened(config) -> Inputs:
    """A run's inputs, their data compared as at its start."""
    rows = NamedSharding(Mesh(jax.devices()[:1], "data"), PartitionSpec("data"))
    objective = small.next_scale(config)
    inputs = Inputs(objective, objective.frozen, rows)
    inputs.require_same_on_hosts()
    return inputs


def test_images_that_changed_are_noticed(folder, model_dir, tmp_path):
    """Encoding again and training both refuse the images, whether or not the folder was prepared in
    its present state."""
    out = tmp_path / "cache"
    config = folder_config(folder, tmp_path, out)
    tokenize(config, str(model_dir), str(out), batch=1)
    before = contents(out)
    assert (
        opened(config).identity["fingerprint"]
        == json.loads(before["manifest.json"])["data_fingerprint"]
    )
    tokenize(config, str(model_dir), str(out), batch=1)  # nothing has changed
    random = np.random.default_rng(1)
    for i in range(20):
        draw_image(folder / "cat" / f"{i:02d}.png", random)
    with pytest.raises(
        UserError, match="data fingerprint: .* here, .* there.*images changed since"
    ) as caught:
        opened(config)
    assert "\n" not in str(caught.value)
    with pytest.raises(
        UserError, match="data_fingerprint: .*images changed since.*give another --out"
    ) as caught:
        tokenize(config, str(model_dir), str(out), batch=1)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="data fingerprint: .* here, .* there"):
        opened(config)  # now from the copy that `tokenize` has prepared
    assert contents(out) == before


def test_train_takes_a_copy_of_the_images_for_the_same_data(folder, model_dir, tmp_path):
    """Times of files change with every copy; without any images, there is nothing to compare."""
    out = tmp_path / "cache"
    tokenize(folder_config(folder, tmp_path), str(model_dir), str(out), batch=1)
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy, copy_function=shutil.copyfile)
    elsewhere = folder_config(copy, tmp_path / "elsewhere", out)
    opened(elsewhere)
    assert not (tmp_path / "elsewhere").exists()  # and training from tokens copies no images
    opened(folder_config(tmp_path / "none", tmp_path / "elsewhere", out))


def test_train_takes_a_cache_without_a_data_fingerprint(
    folder, model_dir, tmp_path, monkeypatch, caplog
):
    """The manifest and the stamps of an earlier version lack the fingerprint, and both encoding and
    training go on."""
    out = tmp_path / "cache"
    config, manifest_of = folder_config(folder, tmp_path, out), module._manifest
    with monkeypatch.context() as patch:
        patch.setattr(
            module,
            "_manifest",
            lambda *values: dataclasses.replace(manifest_of(*values), data_fingerprint=""),
        )
        tokenize(config, str(model_dir), str(out), batch=1, shard_images=16)
    manifest = json.loads((out / "manifest.json").read_text())
    del manifest["data_fingerprint"]
    (out / "manifest.json").write_text(json.dumps(manifest))
    shards = sorted(out.rglob("*.array_record"))
    shards[0].unlink()
    remaining = {path: path.stat().st_mtime_ns for path in shards[1:]}
    with caplog.at_level(logging.WARNING):
        tokenize(config, str(model_dir), str(out), batch=1, shard_images=16)
        assert shards[0].exists()
        assert all(path.stat().st_mtime_ns == mtime for path, mtime in remaining.items())
        identity = opened(config).identity
    assert "fingerprint" not in identity and identity["train"] + identity["held_out"] == 40
    output = [
        record.getMessage() for record in caplog.records if "cannot be told" in record.getMessage()
    ]
    assert len(output) == 2 and all(str(out) in line for line in output)
