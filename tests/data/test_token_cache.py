"""Token caches: contents, batches, and damaged or foreign directories."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
from array_record.python import array_record_module
from etils import epath

from helpers.batches import same, take
from var_jax.config.model import ModelConfig, TokenizerConfig, TransformerConfig
from var_jax.config.scales import Scales
from var_jax.config.strict import plain
from var_jax.config.train import DataConfig
from var_jax.data import loader, token_cache, token_manifest
from var_jax.data.model_fingerprint import model_fingerprint
from var_jax.errors import UserError
from var_jax.io.tokenizer_fingerprint import tokenizer_fingerprint

IMAGES, VIEWS, SCALES = 20, 3, Scales.parse("1,2")
DATA = DataConfig("digits", train_split="train[:20]", eval_split="test[:5]")
TOKENIZER = TokenizerConfig(scales=SCALES, multipliers=(1, 2), vocab_size=70000)


def token(view: int, image: int) -> int:
    return 65530 + 20 * view + image  # many of which 16 bits do not hold


def write_cache(directory, vocab_size: int = 70000):
    """A cache whose tokens tell their view and image, in shards of 7 images."""
    infos = {}
    for role, split, images, views in (
        ("train", DATA.train_split, IMAGES, VIEWS),
        ("test", DATA.eval_split, 5, 1),
    ):
        (directory / role).mkdir(parents=True)
        shards = []
        for view, start in itertools.product(range(views), range(0, images, 7)):
            file = directory / role / f"{view}-{start}.array_record"
            writer = array_record_module.ArrayRecordWriter(str(file), "group_size:1")
            for image in range(start, min(start + 7, images)):
                result = np.full(SCALES.total, token(view, image))
                writer.write(token_manifest.record(image % 10, result, vocab_size))
            writer.close()
            shards.append(
                token_manifest.Shard(file.name, min(7, images - start), file.stat().st_size)
            )
        infos[role] = token_manifest.SplitInfo(split, images, views, tuple(shards))
    manifest = token_manifest.Manifest(
        "abc",
        "digits",
        "crop",
        TOKENIZER.image_shape,
        SCALES,
        vocab_size,
        tuple("0123456789"),
        0,
        **infos,
    )
    (directory / "manifest.json").write_text(json.dumps(plain(manifest)))
    return directory


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return token_cache.open_cache(write_cache(tmp_path_factory.mktemp("cache") / "c"))


def test_token_cache_has_every_image_in_every_view(cache):
    """Every read gives the token that encodes its view and its image, with the image's label."""
    assert cache.counts == {"train": 20, "test": 5} and cache.class_names == tuple("0123456789")
    for view, image in itertools.product(range(VIEWS), range(IMAGES)):
        result = cache.train.read(image, view)
        assert (
            result["tokens"].dtype == np.int32
            and result["tokens"].tolist() == [token(view, image)] * 5
        )
        assert result["label"] == image % 10 and result["label"].dtype == np.int32
    assert len(list(cache.test)) == 5


def test_record_has_two_bytes_per_token_up_to_65536_codes():
    """A record is the label in four bytes and the tokens in two bytes each, or in four bytes each
    if there are more codes than 16 bits can number. The bytes are little-endian."""
    row = np.array([0, 65535], np.int32)
    assert token_manifest.record(3, row, 65536) == b"\x03\0\0\0" + b"\0\0\xff\xff"
    assert token_manifest.record(3, row, 65537) == b"\x03\0\0\0" + b"\0\0\0\0\xff\xff\0\0"


def test_train_batches_show_every_image_once_per_epoch(cache):
    """Tokens name their view and image: an epoch has each image once, and three epochs have each of
    the three views."""
    result = (
        np.concatenate(
            [b["tokens"][:, 0] for b in take(token_cache.train_batches(cache, 4, 0), 15)]
        )
        - 65530
    )
    views, images = (result // 20).reshape(3, 20), (result % 20).reshape(3, 20)
    assert all(sorted(epoch) == list(range(20)) for epoch in images.tolist())
    assert len(set(result.tolist())) == 60  # each of the 3 x 20 once
    assert all(set(epoch) == {0, 1, 2} for epoch in views.tolist())


def test_train_batches_of_tokens_have_the_order_of_images(cache):
    """A run from tokens sees the images that a run from pixels with the same seed sees, step by
    step."""

    class Images:  # whose one pixel tells the image
        class_names = ("0",)

        def __len__(self):
            return IMAGES

        def __getitem__(self, index):
            return {"image": np.full((1, 1, 1), index, np.uint8), "label": index % 10}

    full = dataclasses.replace(DATA, resize="stretch")
    actual = take(token_cache.train_batches(cache, 4, 7, 3), 9)
    expected = take(loader.train_batches(full, (1, 1, 1), 4, 7, 3, split=Images()), 9)
    for a, b in zip(actual, expected, strict=True):
        assert np.array_equal((a["tokens"][:, 0] - 65530) % 20, b["image"].ravel())


def test_train_batches_are_the_same_on_any_hosts_and_workers(cache):
    """A later start, a worker process and two hosts read the rows of one host from the first step
    on."""
    full = take(token_cache.train_batches(cache, 4, 3), 12)
    assert same(take(token_cache.train_batches(cache, 4, 3, 5), 7), full[5:])
    assert same(take(token_cache.train_batches(cache, 4, 3, workers=1), 3), full[:3])
    assert not same(take(token_cache.train_batches(cache, 4, 4), 1), full[:1])
    parts = [
        take(token_cache.train_batches(cache, 4, 3, 2, rows=range(h, 4, 2)), 10) for h in range(2)
    ]
    for step, batch in enumerate(full[2:]):
        for key in batch:
            assert np.array_equal(
                np.stack([p[step][key] for p in parts], 1).reshape(batch[key].shape), batch[key]
            )


def test_eval_batches_are_one_pass_with_a_padded_end(cache):
    """Five images in batches of four: the padded rows are masked and zero."""
    batches = list(token_cache.eval_batches(cache, 4))
    assert [b["mask"].sum() for b in batches] == [4, 1]
    assert [b["tokens"].shape for b in batches] == [(4, 5)] * 2 and not batches[1]["tokens"][
        1:
    ].any()
    assert np.concatenate([b["tokens"][b["mask"], 0] for b in batches]).tolist() == [
        token(0, i) for i in range(5)
    ]
    assert [b["mask"].sum() for b in token_cache.eval_batches(cache, 4, limit=2)] == [2]


def refused(function, *args, **kwargs) -> str:
    with pytest.raises(UserError) as error:
        function(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_token_cache_names_what_differs_from_the_run(cache):
    """Each setting that a cache depends on is named with both values, several at once."""
    cache.check(DATA, TOKENIZER, "abc")
    cache.check(DATA)
    differ = dataclasses.replace
    assert "data.name: cifar10 here, digits there" in refused(
        cache.check, differ(DATA, name="cifar10")
    )
    assert "data.resize: pad here, crop there" in refused(cache.check, differ(DATA, resize="pad"))
    assert "data.flip: True here, False there" in refused(cache.check, differ(DATA, flip=True))
    assert "data.train_split: train here, train[:20] there" in refused(
        cache.check, differ(DATA, train_split="train")
    )
    assert "data.eval_split: test here" in refused(cache.check, differ(DATA, eval_split="test"))
    assert "tokenizer fingerprint: def here, abc there" in refused(
        cache.check, DATA, TOKENIZER, "def"
    )
    several = refused(
        cache.check, DATA, differ(TOKENIZER, scales=Scales.parse("1,3"), vocab_size=16)
    )
    for part in (
        "scales: 1,3 here, 1,2 there",
        "vocab_size: 16 here, 70000 there",
        "image shape: (6, 6, 3) here, (4, 4, 3) there",
    ):
        assert part in several


def test_batches_name_a_cache_that_is_too_small(cache):
    """Too few images and a missing split are named, the latter with the command that adds it."""
    assert "has 20 images, too few for a batch of 21" in refused(
        token_cache.train_batches, cache, 21, 0
    )
    alone = token_cache.Cache(cache.directory, dataclasses.replace(cache.manifest, test=None))
    assert "has no test split; add it by `var-jax tokenize` with --splits test" in refused(
        token_cache.eval_batches, alone, 4
    )


def test_open_cache_refuses_a_directory_that_is_no_whole_cache(tmp_path):
    """A manifest that is missing, damaged, of another format or unfinished is named as such."""
    assert "has no manifest.json" in refused(token_cache.open_cache, tmp_path / "none")
    directory = write_cache(tmp_path / "c")
    manifest = json.loads((directory / "manifest.json").read_text())

    def with_manifest(text: str) -> str:
        (directory / "manifest.json").write_text(text)
        return refused(token_cache.open_cache, directory)

    assert "does not read as JSON" in with_manifest("{")
    assert "does not hold a JSON object" in with_manifest("[]")
    assert "of no format" in with_manifest('{"format": 2}')
    assert "is incomplete" in with_manifest('{"format": 1}')
    unfinished = {**manifest, "train": {**manifest["train"], "shards": []}}
    assert "is not finished; run the same" in with_manifest(json.dumps(unfinished))


def test_open_cache_refuses_truncated_missing_and_damaged_shards(tmp_path):
    """Sizes are checked at the start, contents when they are read."""
    directory = write_cache(tmp_path / "c")
    shard = directory / "train" / "1-7.array_record"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    assert f"{shard} has {len(content) - 1} bytes instead of {len(content)}" in refused(
        token_cache.open_cache, directory
    )
    shard.unlink()
    assert f"{shard} is missing" in refused(token_cache.open_cache, directory)
    shard.write_bytes(bytes(len(content)))  # of the right size
    opened = token_cache.open_cache(directory)
    assert "damaged shard" in refused(opened.train.read, 7, 1)
    assert opened.train.read(7, 0)["label"] == 7


def test_fingerprint_is_of_weights_and_settings_that_matter():
    """Settings of training alone and the order of entries change nothing; a weight, its shape and
    the kind of codes do."""
    params = {"a": {"kernel": np.ones((2, 3), np.float32)}, "codebook": np.zeros(3, np.float32)}
    actual = tokenizer_fingerprint(TOKENIZER, params)
    trained = dataclasses.replace(TOKENIZER, vq_beta=0.5, dropout=0.1, init_gain=0.5)
    assert actual == tokenizer_fingerprint(trained, dict(reversed(params.items())))
    others = [
        (dataclasses.replace(TOKENIZER, codes="cosine"), params),
        (TOKENIZER, {**params, "codebook": np.array([0, 0, 1e-7], np.float32)}),
        (TOKENIZER, {**params, "a": {"kernel": np.ones((3, 2), np.float32)}}),
    ]
    assert len({actual, *(tokenizer_fingerprint(*other) for other in others)}) == 4


def test_model_fingerprint_ignores_keys_of_training_alone():
    """A sample set that an earlier version began goes on: keys that later versions added are not in
    it at their defaults, and those of progressive training never are."""
    transformer = TransformerConfig(
        depth=2, width=16, vocab_size=70000, z_channels=4, scales=TOKENIZER.scales
    )
    params = {
        "tokenizer": {"a": np.ones(2, np.float32)},
        "transformer": {"b": np.zeros(3, np.float32)},
    }
    config = ModelConfig(dataclasses.replace(TOKENIZER, z_channels=4), transformer)
    # What the version before progressive training, and the one before rivals, gave.
    assert model_fingerprint(config, params) == "cea359bcbaa00298"
    longer = dataclasses.replace(
        config,
        transformer=dataclasses.replace(
            transformer,
            progressive=0.5,
            progressive_from=0,
            scale_weights=(1.0,) * len(transformer.scales),
            flip_share=0.1,
        ),
    )
    assert model_fingerprint(longer, params) == "cea359bcbaa00298"
    one_map = dataclasses.replace(transformer, scales=Scales.parse("2"))
    rival = dataclasses.replace(one_map, objective="next_token")
    one_map, rival = (
        ModelConfig(dataclasses.replace(config.tokenizer, scales=one_map.scales), own)
        for own in (one_map, rival)
    )
    assert model_fingerprint(one_map, params) != model_fingerprint(rival, params)


def test_open_cache_takes_a_path_as_text(cache):
    """A token cache opens from a path that is a string as well, and has the same manifest and a
    path to its tokenizer."""
    assert token_cache.open_cache(str(cache.directory)).manifest == cache.manifest
    assert isinstance(cache.tokenizer_directory, epath.Path)
