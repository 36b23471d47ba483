"""Sampling with a logit refiner: at its start as without one, then as its own logits say."""

import dataclasses

import jax
import numpy as np
import pytest
from etils import epath

from helpers import adapters, masked, refiners, small
from var_jax import Pipeline
from var_jax.config.model import ModelConfig
from var_jax.config.refiner_config import RefinerConfig
from var_jax.config.transformer_config import TransformerConfig
from var_jax.data.model_fingerprint import model_fingerprint
from var_jax.errors import UserError
from var_jax.io import model_directory, refiner_file
from var_jax.io.model_merge import merge_directories
from var_jax.models import flops
from var_jax.sampling import sampler_registry

pytestmark = pytest.mark.usefixtures("compiled_fast")

LABELS = [3, 1, 4, 1]
FIRST_SCALES = dataclasses.replace(refiners.CONFIG, last_scale=1)


@pytest.fixture(scope="module")
def refined(tmp_path_factory):
    """The tiny model with a random refiner."""
    directory = tmp_path_factory.mktemp("refiner") / "run"
    refiners.write(directory, refiners.random_params())
    return small.pipeline().with_refiner(directory)


@pytest.mark.long
def test_refiner_at_its_start_samples_the_models_own_images(tmp_path):
    """Equal logits and equal noise give equal tokens, with guidance and filters: the images of a
    seed are those of the model without a refiner, to the last bit."""
    model = small.pipeline()
    fresh = model.with_refiner(refiners.write(tmp_path / "run", refiners.fresh_params()))
    settings = {"seed": 5, "cfg": 1.0, "top_k": 12, "top_p": 0.95, "return_tokens": True}
    for own, same in zip(
        model.sample(LABELS, **settings), fresh.sample(LABELS, **settings), strict=True
    ):
        np.testing.assert_array_equal(own, same)


@pytest.mark.long
@pytest.mark.parametrize("config", [refiners.CONFIG, FIRST_SCALES], ids=["all", "first"])
def test_greedy_tokens_are_the_largest_of_teacher_forcing(config, tmp_path):
    """Each token of a greedy image is the largest of the logits that teacher forcing computes from
    those before it, guided here from a class and no class by hand."""
    params = refiners.random_params(config)
    model = small.pipeline().with_refiner(refiners.write(tmp_path / "run", params, config))
    _, tokens = model.sample(LABELS, top_k=1, cfg=[0.5, 0.5, 0.5], top_p=0, return_tokens=True)
    conditional = model.logits(tokens, LABELS)
    unconditional = model.logits(tokens, [small.CLASSES] * len(LABELS))
    np.testing.assert_array_equal(tokens, np.argmax(1.5 * conditional - 0.5 * unconditional, -1))
    assert np.any(tokens != np.argmax(small.pipeline().logits(tokens, LABELS), axis=-1))


@pytest.mark.long
def test_edits_keep_tokens_and_refine_the_others(refined):
    """Kept tokens are the image's, and later ones of the scale see them: with all kept, the edit is
    the reconstruction; with none, images of other seeds differ."""
    shape = small.TOKENIZER.image_shape
    images = np.random.RandomState(0).uniform(-1, 1, (2, *shape)).astype(np.float32)
    keep = np.ones(small.SCALES.finest, bool)
    same = refined.edit(images, keep, [0, 1])
    np.testing.assert_allclose(same, (refined.reconstruct(images)[-1] + 1) / 2, atol=1e-5)
    sampled = [refined.edit(images, ~keep, [0, 1], seed=seed) for seed in (0, 1)]
    assert np.any(sampled[0] != sampled[1])


@pytest.mark.long
def test_eight_devices_sample_the_images_of_one(refined):
    """Every device has a copy of the refiner, and an image depends on its index alone."""
    labels = list(range(8))
    one = refined.sample(labels, seed=2, return_tokens=True)[1]
    spread = refined.spread()
    assert len(spread.params["refiner"]["head_norm"].devices()) == 8
    np.testing.assert_array_equal(spread.sample(labels, seed=2, return_tokens=True)[1], one)


@pytest.mark.long
def test_saved_model_has_its_refiner(refined, tmp_path):
    """The directory alone samples the same images elsewhere; a refiner's own directory is no
    model, and the model without one writes what earlier versions read."""
    refined.save(tmp_path / "whole")
    loaded = Pipeline.from_pretrained(tmp_path / "whole")
    assert loaded.config == refined.config
    np.testing.assert_array_equal(
        loaded.sample(LABELS, return_tokens=True)[1], refined.sample(LABELS, return_tokens=True)[1]
    )
    small.pipeline().save(tmp_path / "plain")
    assert "refiner" not in (tmp_path / "plain" / "model.json").read_text()
    run = refiners.write(tmp_path / "run", refiners.fresh_params())
    with pytest.raises(UserError, match=f"holds a refiner, and no model.*--refiner {run}"):
        Pipeline.from_pretrained(run)


def test_refiner_of_another_model_is_refused(refined, tmp_path):
    """It was trained on the hidden states of one model; adapters change them."""
    run = refiners.write(tmp_path / "run", refiners.fresh_params())
    for other in (masked.pipeline(), small.pipeline().astype("bfloat16")):
        with pytest.raises(UserError, match=f"the refiner in {run} is of the base"):
            other.with_refiner(run)
    with pytest.raises(UserError, match="the refiner of the model is there"):
        refined.with_refiner(run)
    adapter = adapters.random_adapter(tmp_path / "adapter", small.pipeline(), 0)
    with pytest.raises(UserError, match="the model has a refiner.*without adapters"):
        refined.with_adapter(adapter)
    with pytest.raises(UserError, match=f"no refiner in {tmp_path}"):
        small.pipeline().with_refiner(tmp_path)


@pytest.mark.long
def test_refiner_serves_its_model_with_another_decoder(tmp_path):
    """The decoder decides no token: a merge with an aligned one takes the refiner and samples the
    same tokens. One with another encoder does not take it, nor does a file without the second
    fingerprint."""
    model, part = small.pipeline(), small.pipeline().params["tokenizer"]
    run = refiners.write(tmp_path / "run", refiners.random_params())
    model.save(tmp_path / "base")
    for name in ("decoder", "encoder"):
        tokenizer = {**part, name: jax.tree.map(lambda x: x + 1e-3, part[name])}
        directory = epath.Path(tmp_path / name)
        model_directory.save(directory, ModelConfig(small.TOKENIZER), {"tokenizer": tokenizer})
    merge_directories(f"{tmp_path}/base", f"{tmp_path}/decoder", 1, f"{tmp_path}/out")
    aligned = Pipeline.from_pretrained(tmp_path / "out")
    samples = [
        one.with_refiner(run).sample(LABELS, seed=2, cfg=0, return_tokens=True)
        for one in (model, aligned)
    ]
    np.testing.assert_array_equal(samples[0][1], samples[1][1])
    assert np.any(samples[0][0] != samples[1][0])

    encoder = Pipeline.from_pretrained(tmp_path / "encoder").params["tokenizer"]
    changed = Pipeline(model.config, {**model.params, "tokenizer": encoder})
    earlier = dataclasses.replace(refiner_file.load(run), sampling_fingerprint="")
    (tmp_path / "earlier").mkdir()
    refiner_file.save(epath.Path(tmp_path / "earlier"), earlier)
    assert model.with_refiner(tmp_path / "earlier").config.refiner == refiners.CONFIG
    for other, directory in ((changed, run), (aligned, tmp_path / "earlier")):
        with pytest.raises(UserError, match="is of the base"):
            other.with_refiner(directory)


def test_fingerprint_of_a_refined_model_stays():
    """It is that of the refiner's sizes and weights: the path of its base does not count, and its
    value is that of the sample sets that were started before there were later keys."""
    model = small.pipeline()
    shapes = refiners.random_params()
    params = {
        **model.params,
        "refiner": jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes),
    }
    for base in ("", "runs/base"):
        sizes = dataclasses.replace(refiners.CONFIG, base=base)
        config = dataclasses.replace(model.config, refiner=sizes)
        assert model_fingerprint(config, params) == "6071f6af32daa5ee"
    other = dataclasses.replace(model.config, refiner=FIRST_SCALES)
    assert model_fingerprint(other, params) != "6071f6af32daa5ee"


@pytest.mark.parametrize(("name", "value"), [("ssg", 1.0), ("smooth", True)])
def test_settings_of_a_whole_scale_are_refused(refined, name, value):
    """Both need all logits of a scale at once, which a refined scale never has."""
    with pytest.raises(UserError, match=f"{name} is {value}.*off for a model with a refiner"):
        refined.sample(LABELS, **{name: value})


def test_costs_count_the_refiners_passes():
    """Depth 16 refined up to 10 x 10 has 255 tokens one after the other besides ten passes, and the
    refiner's FLOPs for each row of guidance; without a refiner all is as before."""
    model = TransformerConfig(depth=16)
    own = ModelConfig(
        tokenizer=dataclasses.replace(small.TOKENIZER, **_sizes(model)), transformer=model
    )
    sampler = sampler_registry.find(own)
    prepared = sampler.benchmark_settings(own, 1.5)
    tall = dataclasses.replace(own, refiner=RefinerConfig(last_scale=7))
    assert sampler.sequential_passes(own, prepared) == 10
    assert sampler.sequential_passes(tall, prepared) == 10 + 255
    gained = sampler.generation_flops(tall, prepared) - sampler.generation_flops(own, prepared)
    assert gained == 2 * flops.refiner_flops(tall.refiner, model)
    assert sampler.generation_bytes(tall, prepared, 1) > sampler.generation_bytes(own, prepared, 1)


def _sizes(model: TransformerConfig) -> dict:
    return {name: getattr(model, name) for name in ("vocab_size", "z_channels", "scales")}


@pytest.mark.long
def test_network_alone_has_every_pass_of_the_refiner(refined):
    """The benchmark's network runs the refiner token by token: its results are the largest logit of
    each scale without a refiner, and with one a token of each, 0 or 1."""
    sampler = sampler_registry.find(refined.config)
    prepared = sampler.benchmark_settings(refined.config, 0.0)
    run = sampler.network_alone(refined.config, prepared, refined.params, np.array([1, 2]))
    results = jax.device_get(run())
    assert results.shape == (3,) and set(results.tolist()) <= {0.0, 1.0}
