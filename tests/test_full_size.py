"""The published sizes: d16 and its tokenizer from seeded weights of the released shapes (about 4
GB), d36 by shapes."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from reference.seeded_weights import seeded_state_dict
from var_jax import Pipeline
from var_jax.config.model import (
    ModelConfig,
    TokenizerConfig,
    TransformerConfig,
)
from var_jax.config.refiner_config import RefinerConfig
from var_jax.config.scales import SCALES_256, SCALES_512, Scales
from var_jax.io.torch_keys import abstract
from var_jax.models import refiner
from var_jax.sampling import sampler
from var_jax.sampling.image_keys import image_keys

RELEASED = json.loads(
    (Path(__file__).parent / "reference" / "released_checkpoints.json").read_text()
)


@pytest.mark.slow
def test_d16_is_converted_encodes_decodes_and_samples():
    """At full size, sampled tokens decode to the sampled image, and greedy and filtered choices are
    checked against teacher-forced logits."""
    states = [seeded_state_dict(RELEASED[name], seed=1) for name in ("vae_d16", "d16")]
    model = Pipeline.from_torch(*states, scales=SCALES_256)
    del states
    counts = {
        name: sum(x.size for x in jax.tree.leaves(tree)) for name, tree in model.params.items()
    }
    assert counts == {"tokenizer": 108_948_355, "transformer": 310_283_520}

    image, tokens = model.sample([207], cfg=0, top_k=1, top_p=0, return_tokens=True)
    assert image.shape == (1, 256, 256, 3) and tokens.shape == (1, 680)
    assert 0 <= image.min() < image.max() <= 1
    np.testing.assert_allclose(model.decode(tokens), image * 2 - 1, atol=1e-3)
    assert model.encode(image * 2 - 1).shape == (1, 680)

    # Greedy generation chose, at every place, the largest of the teacher-forced logits (to rounding
    # between near-ties).
    logits = model.logits(tokens, [207])
    chosen = np.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    assert np.max(logits.max(axis=-1) - chosen) < 1e-3 * np.abs(logits).max()
    assert len(np.unique(tokens)) > 50

    # Guided and filtered: every token is among the 900 likeliest of its place, and within 0.96 of
    # their probability.
    image, tokens = model.sample([207], seed=1, cfg=1.5, top_k=900, top_p=0.96, return_tokens=True)
    assert image.shape == (1, 256, 256, 3) and 0 <= image.min() < image.max() <= 1
    assert len(np.unique(tokens)) > 50
    ranks, shares = likelier_when_guided(model, tokens, [207], cfg=1.5, top_k=900)
    assert 0 < ranks.max() < 900 and 0 < shares.max() < 0.961


@pytest.mark.slow
def test_d16_samples_with_a_refiner_of_its_width():
    """At full size, 255 tokens of the scales up to 10 x 10 are sampled one after the other: each
    greedy token is the largest of the refined logits of teacher forcing (to rounding between
    near-ties), and for some it is not the largest of the model's own."""
    states = [seeded_state_dict(RELEASED[name], seed=1) for name in ("vae_d16", "d16")]
    own = Pipeline.from_torch(*states, scales=SCALES_256)
    del states
    config = RefinerConfig(last_scale=7)
    shapes = refiner.param_shapes(config, own.config.transformer)
    random = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: 0.02 * random.standard_normal(leaf.shape, np.float32), shapes
    )
    refined = dataclasses.replace(own.config, refiner=config)
    model = Pipeline(refined, {**own.params, "refiner": params})
    image, tokens = model.sample([207], cfg=0, top_k=1, top_p=0, return_tokens=True)
    assert image.shape == (1, 256, 256, 3) and 0 <= image.min() < image.max() <= 1
    logits = model.logits(tokens, [207])
    chosen = np.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    assert np.max(logits.max(axis=-1) - chosen) < 1e-3 * np.abs(logits).max()
    refined_span = slice(0, own.config.tokenizer.scales.offsets[8])
    unrefined = np.argmax(own.logits(tokens, [207]), axis=-1)
    assert np.any(unrefined[:, refined_span] != tokens[:, refined_span])


def likelier_when_guided(
    model: Pipeline, tokens: np.ndarray, labels: list[int], cfg: float, top_k: int
):
    """Of every token: how many codes are (clearly) likelier, and what share of the `top_k`
    likeliest's probability they hold, under guidance that rises from 0 to `cfg`."""
    none = [model.config.transformer.num_classes] * len(labels)
    with_class, without = (model.logits(tokens, values) for values in (labels, none))
    scales = model.config.tokenizer.scales
    strength = (
        cfg * np.array([scales.progress(k) for k in range(len(scales))])[scales.level_ids][:, None]
    )
    guided = (1 + strength) * with_class - strength * without
    chosen = np.take_along_axis(guided, tokens[..., None], axis=-1)
    likelier = guided > chosen + 1e-3 * np.abs(guided).max()
    odds = np.exp(guided - guided.max(axis=-1, keepdims=True))
    odds *= odds >= np.partition(odds, -top_k, axis=-1)[..., -top_k, None]
    return likelier.sum(axis=-1), (odds * likelier).sum(axis=-1) / odds.sum(axis=-1)


@pytest.mark.long
def test_d36_at_512_pixels_generates_images_by_shape():
    """Shapes of the sampling program are traced, without weights."""
    scales = Scales.parse(SCALES_512)
    model = ModelConfig(
        TokenizerConfig(scales=scales),
        TransformerConfig(depth=36, shared_adaln=True, scales=scales),
    )
    params = {
        part: unflatten_dict(abstract(getattr(model, part)), sep="/")
        for part in ("tokenizer", "transformer")
    }
    keys = jax.eval_shape(lambda: image_keys(0, jnp.arange(2)))
    run = functools.partial(
        sampler.generate, model, sampler.SamplerConfig(top_k=900, use_top_p=True, guided=True)
    )
    image, tokens = jax.eval_shape(
        run,
        params,
        jax.ShapeDtypeStruct((2,), jnp.int32),
        keys,
        sampler.SamplingParams(1.5, 0.96, 1.0),
    )
    assert (image.shape, image.dtype) == ((2, 512, 512, 3), jnp.float32)
    assert (tokens.shape, tokens.dtype) == ((2, 2240), jnp.int32)
