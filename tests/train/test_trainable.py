"""Parameters that `trainable` leaves as they are, in a run of the loop and in the optimizer."""

import dataclasses

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from helpers import small
from helpers.runs import assert_resumes_bit_for_bit, weights
from var_jax.config import key_patterns
from var_jax.config.tokenizer_training import CodebookConfig
from var_jax.config.train import MeshConfig
from var_jax.errors import UserError
from var_jax.objectives import registry
from var_jax.objectives.step_types import TRAINED
from var_jax.train import schedules, trainable
from var_jax.train.loop import train
from var_jax.train.optimizer import make_optimizer, make_optimizers

pytestmark = pytest.mark.usefixtures("compiled_once")

PARAMS = {"decoder": {"conv": {"kernel": 0, "bias": 0}}, "decoders": 0, "head": {"bias": 0}}


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ("decoder", {"decoder/conv/kernel", "decoder/conv/bias"}),
        ("*/bias", {"decoder/conv/bias", "head/bias"}),
        ("decoder/conv/kernel, head", {"decoder/conv/kernel", "head/bias"}),
        ("decoder*", {"decoder/conv/kernel", "decoder/conv/bias", "decoders"}),
        ("", {"decoder/conv/kernel", "decoder/conv/bias", "decoders", "head/bias"}),
    ],
)
def test_matches_chooses_parts_and_wildcards(patterns, expected):
    """A name stands for what is in it and not for longer names, `*` for anything, a comma for
    either, and nothing for all."""
    paths = flatten_dict(PARAMS, sep="/")
    assert {path for path in paths if key_patterns.matches(patterns, path)} == expected


def test_mask_refuses_a_pattern_that_chooses_nothing():
    """The line names the pattern, and the closest name of as many levels or all names."""
    with pytest.raises(UserError, match="trainable has 'decodr', .*did you mean 'decoder'"):
        trainable.mask_of("head,decodr", PARAMS)
    with pytest.raises(UserError, match="known: decoder, decoders, head$"):
        trainable.mask_of("xyz", PARAMS)
    with pytest.raises(UserError, match="did you mean 'head/bias'"):
        trainable.mask_of("head/biass", PARAMS)


def test_revival_is_refused_for_a_frozen_codebook():
    """It would move codes that are to stay; with the codebook among what is trained it may."""
    health = CodebookConfig(revive_threshold=0.2)
    with pytest.raises(UserError, match=r"revive_threshold is 0\.2; it must be 0 while trainable"):
        small.train_config("tokenizer", "", trainable="decoder", codebook=health)
    small.train_config("tokenizer", "", trainable="decoder,quantize", codebook=health)


def test_optimizer_has_no_moments_for_frozen_parameters(params):
    """Of a state with `trainable`, both moments have leaves for the decoder alone; without the key
    the state is that of the optimizer by itself."""
    config = small.train_config("tokenizer", "", trainable="decoder")
    state = make_optimizers(registry.with_frozen_shapes(config))[TRAINED].init(params)
    arrays = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim]
    decoder = jax.tree.leaves(params["decoder"])
    assert [leaf.shape for leaf in arrays] == 2 * [leaf.shape for leaf in decoder]
    default = small.train_config("tokenizer", "")
    optimizer = make_optimizers(registry.with_frozen_shapes(default))[TRAINED]
    numbers = schedules.numbers(default.optimizer, default.steps, default.batch_size)
    alone = make_optimizer(default.optimizer, numbers)
    assert jax.tree.structure(optimizer.init(params)) == jax.tree.structure(alone.init(params))


@pytest.mark.long
def test_frozen_parameters_stay_and_the_run_resumes(configs, tmp_path, monkeypatch, unevaluated):
    """After a run of `trainable=decoder` in microbatches, with weight decay and an average, all but
    the decoder equals the first weights to the last bit, and so do their averages, so that tokens
    do not change; every array of the decoder has moved. A stopped run goes on to the same bits."""
    config = dataclasses.replace(
        configs["tokenizer"], trainable="decoder", microbatches=2, mesh=MeshConfig(4, 2)
    )
    assert_resumes_bit_for_bit(config, tmp_path, monkeypatch)
    before: dict = flatten_dict(small.pipeline().params["tokenizer"], sep="/")
    for part in ("params", "ema"):
        after: dict = flatten_dict(weights(tmp_path / "whole", part), sep="/")
        assert after.keys() == before.keys()
        for path, leaf in after.items():
            is_decoder = path.startswith("decoder/")
            assert np.array_equal(leaf, before[path]) != is_decoder, path
    with pytest.raises(UserError, match="trainable: encoder here, decoder there"):
        train(dataclasses.replace(config, trainable="encoder"), tmp_path / "whole")


def test_pattern_without_parameters_leaves_no_workdir(configs, tmp_path):
    """The run ends before its workdir is made."""
    config = dataclasses.replace(configs["transformer"], trainable="decoder")
    with pytest.raises(UserError, match="'decoder', which is none of the model's parameters"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
