"""Next-token training by the ordinary loop: it learns, resumes bit for bit, and its keys are
checked."""

import dataclasses
import json

import numpy as np
import pytest

from helpers import next_token, small
from helpers.runs import NoEvaluator, assert_resumes_bit_for_bit, records
from var_jax import Pipeline
from var_jax.config import idle_keys
from var_jax.config.model import ModelConfig
from var_jax.config.scales import Scales
from var_jax.config.train import default_config, from_config_dict
from var_jax.data.model_fingerprint import _without_training, model_fingerprint
from var_jax.errors import UserError
from var_jax.objectives import registry
from var_jax.objectives.next_token import NextToken
from var_jax.train import evaluation
from var_jax.train.loop import train


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory):
    """A tokenizer of one map, alone."""
    directory = tmp_path_factory.mktemp("tokenizer")
    params = {"tokenizer": next_token.params()["tokenizer"]}
    Pipeline(ModelConfig(next_token.TOKENIZER), params).save(directory)
    return directory


@pytest.fixture
def config(digits_dir, tokenizer_dir):
    return small.train_config(
        "transformer",
        digits_dir,
        steps=4,
        tokenizer=next_token.TOKENIZER,
        transformer=next_token.transformer(order="spiral"),
        tokenizer_dir=str(tokenizer_dir),
    )


@pytest.mark.long
def test_next_token_resumes_bit_for_bit(config, tmp_path, monkeypatch):
    """A run that SIGTERM stops goes on by the same command, as if nothing had happened."""
    monkeypatch.setattr(evaluation, "Evaluator", NoEvaluator)
    assert_resumes_bit_for_bit(config, tmp_path, monkeypatch)


@pytest.mark.long
def test_next_token_trains_to_a_model_that_samples(config, tmp_path):
    """The loss falls, the workdir has a picture and the metrics of the other objectives, and it is
    a model directory of its objective and order."""
    held_out = train(dataclasses.replace(config, steps=12, eval_every=12), str(tmp_path))
    by_step = [record["loss"] for record in records(tmp_path) if record["split"] == "train"]
    assert by_step[-1] < by_step[0]
    assert held_out["loss"] == held_out["loss_mean"] and len(held_out["loss_scale"]) == 1
    assert "loss_with_class_dropout" in held_out and list((tmp_path / "samples").glob("*.png"))
    model = Pipeline.from_pretrained(tmp_path)
    assert model.config.transformer.objective == "next_token"
    assert model.config.transformer.order == "spiral"
    images, tokens = model.sample([1, 2], return_tokens=True)
    assert images.shape == (2, 8, 8, 1) and tokens.shape == (2, 16)
    meta = json.loads((tmp_path / "meta.json").read_text())
    assert meta["flops_per_step"].keys() == {"exact", "6nd", "dense"}


def test_registry_finds_the_objective_by_its_key(config):
    """A config of the default objective is not taken for one of next-token prediction."""
    assert registry.find(config) is NextToken
    other = small.train_config("transformer", "")
    assert registry.find(other) is not NextToken


@pytest.mark.parametrize("objective", ["masked", "diffusion"])
def test_registry_refuses_an_objective_that_it_has_not(objective, config, monkeypatch):
    """A version whose table lacks an objective names it with those that the table has."""
    monkeypatch.delitem(registry.TRANSFORMER_OBJECTIVES, objective)
    other = dataclasses.replace(config.transformer, objective=objective, order="raster")
    with pytest.raises(UserError, match=rf"transformer\.objective is '{objective}'.*'next_token'"):
        registry.find(dataclasses.replace(config, transformer=other))


@pytest.mark.parametrize(
    ("objective", "key", "value"),
    [
        ("next_token", "mask", "markov"),
        ("next_token", "progressive", 0.5),
        ("next_token", "progressive_from", 0),
        ("next_scale", "order", "zcurve"),
    ],
)
def test_keys_of_another_objective_are_refused(objective, key, value, config, tmp_path):
    """Training ends with the key and its value in one line, before anything is written."""
    plain = next_token.transformer() if objective == "next_token" else small.TRANSFORMER
    transformer = dataclasses.replace(plain, scales=next_token.MAP, **{key: value})
    changed = dataclasses.replace(config, transformer=transformer)
    with pytest.raises(UserError, match=rf"transformer\.{key}={value}.*'{objective}'") as caught:
        train(changed, str(tmp_path / "run"))
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()
    idle_keys.refuse(config)


def test_train_refuses_an_order_of_another_map(config, tmp_path):
    """The line names the key, and nothing is written."""
    other = dataclasses.replace(config, transformer=next_token.transformer(order="2,0,1,3"))
    with pytest.raises(UserError, match=r"transformer\.order is a list of 4 numbers"):
        train(other, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_config_refuses_several_maps():
    """The line names the tokenizer's key, where the maps are set."""
    with pytest.raises(UserError, match=r"tokenizer\.scales is 1,2,3x4; it must be one token map"):
        dataclasses.replace(next_token.transformer(), scales=Scales.parse("1,2,3x4"))


def test_order_of_a_file_is_kept_in_the_config(tmp_path):
    """The run's config holds the permutation, so that a model needs no file."""

    def run(order):
        config = default_config()
        config.stage, config.tokenizer.scales = "transformer", "2"
        config.transformer.objective, config.transformer.order = "next_token", order
        return from_config_dict(config).transformer.order

    (tmp_path / "order.txt").write_text("3 1\n0, 2\n")
    assert run(str(tmp_path / "order.txt")) == "3,1,0,2"
    assert run("spiral") == "spiral" and run("2,0,1,3") == "2,0,1,3"
    (tmp_path / "words.txt").write_text("up, down")
    for wrong in (tmp_path / "words.txt", tmp_path / "missing.txt"):
        with pytest.raises(UserError, match=r"transformer\.order.*\.txt"):
            run(str(wrong))


def test_fingerprint_depends_on_the_order_alone_of_the_new_keys():
    """Two orders are two models, and the keys at their defaults leave a next-scale model's
    fingerprint as it was before they were there."""
    params = next_token.params()
    raster, zcurve = (
        model_fingerprint(
            ModelConfig(next_token.TOKENIZER, next_token.transformer(order=order)), params
        )
        for order in ("raster", "zcurve")
    )
    assert raster != zcurve
    settings = _without_training(small.TRANSFORMER)
    assert settings.startswith("TransformerConfig(depth=2, width=16, heads=2, num_classes=10,")
    assert settings.endswith("dtype='float32', param_dtype='float32', gradient_dtype='float32')")
    assert "objective" not in settings and "order" not in settings


def test_tokenizer_of_one_map_encodes_and_decodes():
    """The residual quantizer with one scale is a plain one: one token per place, and its image is
    of the tokenizer's size."""
    model = next_token.pipeline()
    images = np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 1)).astype(np.float32)
    tokens = model.encode(images)
    assert tokens.shape == (2, 16) and model.decode(tokens).shape == images.shape
    assert len(model.reconstruct(images)) == 1
