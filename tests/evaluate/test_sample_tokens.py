"""Token caches of sample sets: their tokens are those of the images, resumably and on several
hosts, and training reads them."""

import dataclasses
import json
import shlex

import numpy as np
import pytest
from etils import epath

from helpers import small
from helpers.files import contents
from var_jax.cli.main import main
from var_jax.config.train import DataConfig
from var_jax.data import token_cache
from var_jax.errors import UserError
from var_jax.evaluate import sample_plan, sample_set, sample_tokens
from var_jax.io import atomic
from var_jax.train import token_shards
from var_jax.train.tokenize import tokenize

SETTINGS = {"seed": 3, "cfg": 1.5, "top_k": 0, "top_p": 0.9, "temperature": 1.0, "smooth": False}
NUM = 19


def planned(num=NUM, labels=None, **changes):
    return sample_plan.make_plan(small.pipeline(), num, labels, **{**SETTINGS, **changes})


def generate(plan, directory, **options) -> bool:
    """Writes DIRECTORY/samples.npz and DIRECTORY/tokens."""
    out = directory / "samples.npz"
    tokens = sample_tokens.prepare(directory / "tokens", small.pipeline(), plan, out)
    settings = {"batch_size": 1, "shard_images": 4, "tokens": tokens, **options}
    return sample_set.generate(small.pipeline(), plan, out, **settings)


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole")
    assert generate(planned(), directory)
    return directory


def read(directory) -> tuple[np.ndarray, np.ndarray]:
    with np.load(directory / "samples.npz", allow_pickle=False) as arrays:
        return arrays["arr_0"], arrays["arr_1"]


def require_tokens_of_images(directory):
    """The cache's tokens decode to exactly the set's images, in its order, with its labels."""
    images, labels = read(directory)
    split = token_cache.open_cache(directory / "tokens").train
    assert len(split) == len(images) and split.views == 1
    examples = [split[i] for i in range(len(split))]
    decoded = small.pipeline().spread().decode(np.stack([e["tokens"] for e in examples]))
    pixels = np.rint((decoded + 1) / 2 * 255).astype(np.uint8)
    np.testing.assert_array_equal(pixels, images)
    np.testing.assert_array_equal([e["label"] for e in examples], labels)
    assert sorted(p.name for p in directory.iterdir()) == ["samples.npz", "tokens"]


def test_cache_has_the_tokens_of_the_images(full, tmp_path):
    """Decoding the cache gives the set's images bit for bit, and the set is the one that is
    written without a cache."""
    require_tokens_of_images(full)
    out = tmp_path / "samples.npz"
    assert sample_set.generate(small.pipeline(), planned(), out, batch_size=1, shard_images=4)
    assert out.read_bytes() == (full / "samples.npz").read_bytes()


def test_cache_has_the_tokens_of_the_images_that_rejection_keeps(tmp_path):
    """The tokens decode to the kept images, which are the brightest of each label."""
    made = planned(num=7, labels=[2, 5, 2], keep=0.4, scorer="brightness")
    assert generate(made, tmp_path, score=lambda images, _: images.mean((1, 2, 3)))
    require_tokens_of_images(tmp_path)
    assert len(read(tmp_path)[0]) == 7


class Killed(BaseException):
    pass


def test_cache_goes_on_after_every_kill(full, tmp_path, monkeypatch):
    """Kills before and after files of tokens and images, and between the cache and the set, leave
    no cache in part; in the end both are those of an uninterrupted run, byte for byte."""
    deaths = []
    save, join = atomic.save, sample_set.sample_files.join
    complete = token_shards.complete

    def fragile_save(path, parts, what):
        before, after = f"before {path.suffix}", f"after {path.suffix}"
        if before not in deaths:
            deaths.append(before)
            raise Killed
        save(path, parts, what)
        if after not in deaths:
            deaths.append(after)
            raise Killed

    def fragile(work, name, count):
        def run(*arguments):
            if deaths.count(name) < count:
                deaths.append(name)
                raise Killed
            return work(*arguments)

        return run

    monkeypatch.setattr(atomic, "save", fragile_save)
    monkeypatch.setattr(sample_set.sample_files, "join", fragile(join, "join", 2))
    monkeypatch.setattr(token_shards, "complete", fragile(complete, "cache", 2))
    for _ in range(9):
        try:
            assert generate(planned(), tmp_path)
            break
        except Killed:
            assert not (tmp_path / "samples.npz").exists()
            cache = tmp_path / "tokens"
            assert not cache.exists() or contents(cache) == contents(full / "tokens")
    assert len(deaths) == 8
    assert (tmp_path / "samples.npz").read_bytes() == (full / "samples.npz").read_bytes()
    assert contents(tmp_path / "tokens") == contents(full / "tokens")
    assert not list(tmp_path.glob("*.partial"))


def test_two_hosts_write_the_cache_of_one(full, tmp_path):
    """The first host leaves no cache, the second one writes it, byte for byte."""
    assert not generate(planned(), tmp_path, shard_index=0, shard_count=2)
    assert not (tmp_path / "tokens").exists()
    assert generate(planned(), tmp_path, shard_index=1, shard_count=2)
    assert contents(tmp_path / "tokens") == contents(full / "tokens")
    require_tokens_of_images(tmp_path)


def test_cache_is_refused_where_it_would_not_be_the_sets(full, tmp_path, monkeypatch):
    """A set that is complete without tokens, one that was begun without them, or with them and
    goes on without, and a directory of another set or of something else are refused."""
    monkeypatch.setattr(sample_set, "_write_shards", lambda *_, **__: None)
    with pytest.raises(UserError, match="is complete, and the tokens of its images were not kept"):
        sample_tokens.prepare(
            tmp_path / "tokens", small.pipeline(), planned(), full / "samples.npz"
        )
    for number, (first, then) in enumerate(((True, False), (False, True))):
        directory = tmp_path / str(number)
        for keeps in (first, then):
            options = {} if keeps else {"tokens": None}
            if keeps == first:
                assert not generate(planned(), directory, **options)
                continue
            with pytest.raises(UserError, match="was begun with.* --tokens-out; go on as it was"):
                generate(planned(), directory, **options)
    for plan, directory in ((planned(seed=4), full / "tokens"), (planned(), full)):
        with pytest.raises(UserError, match="and not of this sample set; remove it, or give"):
            sample_tokens.prepare(directory, small.pipeline(), plan, tmp_path / "samples.npz")


@pytest.mark.long
def test_held_out_images_join_the_cache_and_a_run_trains_on_it(
    full, model_dir, digits_dir, tmp_path, capsys
):
    """Training refuses the cache without held-out images before it begins, and real ones are added
    by `tokenize`, under the rules of any cache; then the command line tunes a copy of the model on
    it, and the run's data are named as generated, beside the command that trained."""
    assert generate(planned(), tmp_path)
    data = DataConfig("digits", data_dir=str(digits_dir), resize="stretch", eval_split="test[:8]")
    config = small.train_config("transformer", digits_dir, data=data)
    cache = tmp_path / "tokens"
    (tmp_path / "run.py").write_text(small.CONFIG_FILE)
    train = [
        *("train", "--config", str(tmp_path / "run.py"), "--workdir", str(tmp_path / "tuned")),
        *(f"--config.data.tokens_dir={cache}", f"--config.data.data_dir={digits_dir}"),
        *(f"--config.init_from={model_dir}", "--config.data.eval_split=test[:8]"),
    ]
    assert main(train) == 2
    assert "has no test split; add it by `var-jax tokenize`" in capsys.readouterr().err
    assert not (tmp_path / "tuned").exists()

    with pytest.raises(UserError, match="generated training images.*; give --splits test"):
        tokenize(config, str(model_dir), str(cache), batch=1)
    tokenize(config, str(model_dir), str(cache), batch=1, roles=("test",))
    opened = token_cache.open_cache(cache)
    assert opened.counts == {"train": NUM, "test": 8} and opened.manifest.data == "digits"
    before = contents(full / "tokens" / "train")
    assert contents(cache / "train") == before
    other = dataclasses.replace(config, data=dataclasses.replace(data, eval_split="test[:9]"))
    with pytest.raises(UserError, match=r"holds another cache: .*test.split: test\[:9\]"):
        tokenize(other, str(model_dir), str(cache), batch=1, roles=("test",))
    assert generate(planned(), tmp_path)  # it is still the set's cache

    assert main(train) == 0
    named = json.loads((tmp_path / "tuned" / "data.json").read_text())
    assert named["name"] == f"generated:{opened.manifest.generated}" and named["train"] == NUM
    assert epath.Path(tmp_path / "tuned" / "tokenizer" / "model.json").exists()
    meta = json.loads((tmp_path / "tuned" / "meta.json").read_text())
    assert shlex.split(meta["command"]) == ["var-jax", *train]
