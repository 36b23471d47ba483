"""Shards of token caches as hosts write and claim them."""

import json

import pytest
from etils import epath

from var_jax.data import token_manifest
from var_jax.train import token_shards


@pytest.mark.parametrize("resize", ["whole", "stretch"])
def test_finished_shards_of_an_earlier_version_count(resize, tmp_path):
    """A cache that the version began which called "stretch" by another name goes on: the manifest
    reads as today's, fits a run of today, and the stamp of a shard is the one that it wrote."""
    values = {
        "fingerprint": "0123456789abcdef",
        "data": "digits",
        "resize": resize,
        "image_shape": [8, 8, 1],
        "scales": "1,2",
        "vocab_size": 16,
        "class_names": ["a", "b"],
        "seed": 3,
        "train": {"split": "train", "images": 5, "views": 1},
        "format": token_manifest.MANIFEST_FORMAT,
    }
    (tmp_path / "manifest.json").write_text(json.dumps(values))
    manifest = token_manifest.read_manifest(epath.Path(tmp_path))
    assert manifest.resize == "stretch"
    (part,) = token_shards.parts_of_split("train", manifest.train, 8)
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / part.name).write_bytes(b"tokens")
    digest = "7a30a26020eb7b6280d083d1f4b06a6c73d575c7768be66cab4949e6ff3cf601"
    stamp = {"settings": digest, "bytes": 6}
    (tmp_path / "train" / f"{part.name}.json").write_text(json.dumps(stamp))
    assert token_shards.finished_shard(epath.Path(tmp_path), manifest, part) is not None
