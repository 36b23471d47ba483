"""Runs that start from a model of other token maps: they resize its embeddings, or refuse."""

import dataclasses
import logging

import jax
import numpy as np
import pytest

from helpers import masked, next_token, small
from helpers.runs import records
from var_jax import Pipeline
from var_jax.config.model import ModelConfig
from var_jax.config.scales import Scales
from var_jax.devices import multihost
from var_jax.devices.mesh import make_mesh
from var_jax.errors import RunFailed, UserError
from var_jax.models import init, position_tables
from var_jax.objectives.frozen_tokenizer import FrozenTokenizer
from var_jax.objectives.next_token import NextToken
from var_jax.ops import orders
from var_jax.train import resume
from var_jax.train.loop import train
from var_jax.train.program import Program

pytestmark = pytest.mark.usefixtures("compiled_once")

WIDE = "1,2x3,3x6"  # of the small model's 1,2,3x4: another image size and another aspect ratio


@pytest.fixture(scope="module")
def wide_tokenizer(tmp_path_factory):
    """The directory of the small tokenizer with other token maps."""
    directory = tmp_path_factory.mktemp("wide") / "tokenizer"
    small.pipeline().with_scales(WIDE).save(directory)
    return directory


def initial_weights(config, objective=small.next_scale):
    return resume.initial_weights(
        objective(config), Program(objective(config), make_mesh(config.mesh))
    )


def test_transformer_starts_with_resized_embeddings(configs, wide_tokenizer, tmp_path, caplog):
    """A run on 6x12 images from a model of 6x8 ones starts from its weights with the embeddings of
    `position_tables`, says so in one line, trains, and leaves a model of 6x12 images."""
    config = dataclasses.replace(
        configs["transformer"], tokenizer_dir=str(wide_tokenizer), steps=1, sample_classes=1
    )
    with caplog.at_level(logging.INFO):
        held_out = train(config, tmp_path / "run")
    lines = [line for line in caplog.messages if line.startswith("init_from")]
    assert len(lines) == 1
    assert "has scales 1,2,3x4, and this run 1,2x3,3x6: pos_embed resized" in lines[0]
    assert np.isfinite(held_out["loss"]) and records(tmp_path / "run")[0]["step"] == 1
    model = Pipeline.from_pretrained(tmp_path / "run")
    assert model.sample([3, 10], seed=0).shape == (2, 6, 12, 1)
    assert model.config.transformer is not None
    assert model.config.transformer.scales == Scales.parse(WIDE)


def test_initial_weights_are_those_of_position_tables(configs):
    """With the run's scales in place of the model's, the tables are the resized ones, and all other
    weights the model's, bit for bit."""
    config = configs["transformer"].with_tokenizer(
        dataclasses.replace(small.TOKENIZER, scales=Scales.parse(WIDE))
    )
    actual = initial_weights(config)
    own = small.pipeline().params["transformer"]
    expected = position_tables.resized(own, small.TRANSFORMER, config.transformer)
    assert actual.keys() == own.keys()
    for name in position_tables.TABLES:
        np.testing.assert_array_equal(actual[name], expected[name])
    np.testing.assert_array_equal(actual["class_embed"], own["class_embed"])
    assert actual["pos_embed"].shape == (1 + 6 + 18, 16)


def test_initial_weights_of_the_same_scales_are_equal(configs, caplog):
    """Without another size nothing is resized, and nothing is said."""
    with caplog.at_level(logging.INFO):
        actual = initial_weights(configs["transformer"])
    assert not [line for line in caplog.messages if line.startswith("init_from")]
    own = small.pipeline().params["transformer"]
    for name in position_tables.TABLES:
        np.testing.assert_array_equal(actual[name], own[name])


@pytest.mark.long
@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("transformer", {"width": 32}, "transformer.width: 32 here, 16 there"),
        ("transformer", {"depth": 3}, "transformer.depth: 3 here, 2 there"),
        ("tokenizer", {"vocab_size": 32}, "transformer.vocab_size: 32 here, 16 there"),
    ],
)
def test_initial_weights_refuse_what_cannot_be_resized(configs, section, changes, message):
    """Another width, depth or codebook is named with both values in one line, whether or not the
    scales differ too."""
    config = configs["transformer"]
    for scales in ("1,2,3x4", WIDE):
        other = config.with_tokenizer(
            dataclasses.replace(small.TOKENIZER, scales=Scales.parse(scales))
        )
        changed = dataclasses.replace(getattr(other, section), **changes)
        other = (
            other.with_tokenizer(changed)
            if section == "tokenizer"
            else dataclasses.replace(other, transformer=changed)
        )
        with pytest.raises(UserError, match=f"does not fit this run: {message}") as refused:
            initial_weights(other)
        assert "\n" not in str(refused.value)


def test_initial_weights_name_a_remedy_that_can_be_followed(configs):
    """A width is the run's to set; the number of codes follows the tokenizer, which the line names
    instead. Heads are refused although they change no shape."""
    config = configs["transformer"]
    narrow = dataclasses.replace(small.TRANSFORMER, width=32)
    with pytest.raises(UserError, match="sizes, or set these keys to the model's$"):
        initial_weights(dataclasses.replace(config, transformer=narrow))
    codes = config.with_tokenizer(dataclasses.replace(small.TOKENIZER, vocab_size=32))
    with pytest.raises(UserError, match="or a tokenizer_dir .* the model's vocab_size$"):
        initial_weights(codes)
    more = dataclasses.replace(small.TRANSFORMER, heads=small.TRANSFORMER.heads * 2)
    with pytest.raises(
        UserError, match="does not fit this run: transformer.heads: 4 here, 2 there"
    ):
        initial_weights(dataclasses.replace(config, transformer=more))


@pytest.mark.long
def test_initial_weights_fit_where_no_shape_depends_on_a_key(tmp_path):
    """A masked model embeds its tokens by their number, so that one over codes of width 32 starts a
    run over as many codes of width 16, with all weights bit for bit."""
    wide, narrow = (dataclasses.replace(masked.TOKENIZER, z_channels=z) for z in (32, 16))
    trained = masked.transformer(z_channels=32)
    weights = masked.params()["transformer"]
    params = {"tokenizer": init.fresh_params(wide, jax.random.key(0)), "transformer": weights}
    Pipeline(ModelConfig(wide, trained), params).save(tmp_path)
    config = masked.train_config("", init_from=str(tmp_path)).with_tokenizer(narrow)
    actual = initial_weights(config, masked.objective)
    assert jax.tree.all(jax.tree.map(np.array_equal, actual, weights))


def test_initial_weights_follow_another_order(tmp_path, caplog):
    """A next-token run along another order says in one line that the positions' rows moved."""
    next_token.pipeline().save(tmp_path)
    config = small.train_config(
        "transformer",
        "",
        init_from=str(tmp_path),
        tokenizer=next_token.TOKENIZER,
        transformer=next_token.transformer(order="zcurve"),
    )
    frozen = FrozenTokenizer(next_token.params()["tokenizer"])
    with caplog.at_level(logging.INFO):
        actual = initial_weights(config, lambda config: NextToken(config, frozen))
    own = np.asarray(next_token.params()["transformer"]["pos_embed"])
    np.testing.assert_array_equal(actual["pos_embed"], own[orders.forward("zcurve", (4, 4))])
    lines = [line for line in caplog.messages if line.startswith("init_from")]
    assert len(lines) == 1
    expected = "has scales 4 in order raster, and this run 4 in order zcurve: pos_embed reordered"
    assert expected in lines[0]


def test_unreadable_weights_end_the_other_processes(configs, monkeypatch):
    """The hub's failure on one process is exchanged: this one gets the error of the other, though
    its own file can be read."""
    replies = iter([["", "the hub cannot be reached"], ["", "RunFailed"]])
    monkeypatch.setattr(multihost, "gather_texts", lambda text: next(replies))
    with pytest.raises(RunFailed, match="process 1 has ended: the hub cannot be reached"):
        initial_weights(configs["transformer"])


@pytest.mark.long
def test_tokenizer_of_other_scales_starts_with_all_weights(configs, tmp_path, caplog, unevaluated):
    """A tokenizer has no table of positions: a run at another size and aspect ratio takes every
    weight as it is, and says that none had to be resized."""
    config = dataclasses.replace(
        configs["tokenizer"],
        steps=1,
        tokenizer=dataclasses.replace(small.TOKENIZER, scales=Scales.parse(WIDE)),
        optimizer=dataclasses.replace(configs["tokenizer"].optimizer, base_lr=1e-12),
    )
    with caplog.at_level(logging.INFO):
        train(config, tmp_path)
    assert (
        sum("this run 1,2x3,3x6: no parameter depends on" in line for line in caplog.messages) == 1
    )
    model = Pipeline.from_pretrained(tmp_path)
    assert model.config.tokenizer.image_shape == (6, 12, 1)
    images = np.random.default_rng(0).uniform(-1, 1, (2, 6, 12, 1)).astype(np.float32)
    np.testing.assert_array_equal(
        model.encode(images), small.pipeline().with_scales(WIDE).encode(images)
    )
