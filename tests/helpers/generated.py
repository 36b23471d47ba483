"""A token cache of generated images that no model has sampled: its tokens are random."""

import numpy as np
from etils import epath

from helpers import small
from var_jax.config.model import ModelConfig
from var_jax.data import token_manifest
from var_jax.io import model_directory
from var_jax.io.tokenizer_fingerprint import tokenizer_fingerprint
from var_jax.train import token_shards
from var_jax.train.tokenize import SHARD_IMAGES

IMAGES = 24


def write_cache(directory, params=None, generated: str = "5a" * 8):
    """Writes a cache of the small tokenizer, or of one with other parameters."""
    params = small.pipeline().params["tokenizer"] if params is None else params
    directory = epath.Path(directory)
    manifest = token_manifest.Manifest(
        tokenizer_fingerprint(small.TOKENIZER, params),
        data=token_manifest.GENERATED,
        resize="",
        image_shape=small.TOKENIZER.image_shape,
        scales=small.SCALES,
        vocab_size=small.TOKENIZER.vocab_size,
        class_names=tuple(map(str, range(small.CLASSES))),
        seed=0,
        train=token_manifest.SplitInfo(token_manifest.GENERATED, IMAGES, 1),
        generated=generated,
    )
    random = np.random.default_rng(1)
    tokens = random.integers(manifest.vocab_size, size=(IMAGES, small.SCALES.total))
    records = [token_manifest.record(0, row, manifest.vocab_size) for row in tokens]
    model_directory.save(
        directory / "tokenizer", ModelConfig(small.TOKENIZER), {"tokenizer": params}
    )
    (part,) = token_shards.parts_of_split("train", manifest.train, SHARD_IMAGES)
    token_shards.write(directory, manifest, part, records)
    token_shards.complete(directory, manifest, {"train": [part]})
