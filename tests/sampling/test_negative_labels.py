"""Guidance away from classes, in the samplers of all objectives, against teacher-forced logits."""

import re

import numpy as np
import pytest

from helpers import diffusion, masked, next_token, small
from var_jax.errors import UserError
from var_jax.sampling.labels import parse_weighted

LABELS = np.array([3, 1, 4, 5])
CFG = [0.5, 1.0, 2.0]  # of the three scales
PIPELINES = {
    "next_scale": (small.pipeline, {"cfg": 2.0, "top_k": 5, "top_p": 0.9}),
    "next_token": (lambda: next_token.pipeline("zcurve"), {"cfg": 2.0, "top_k": 9}),
    "masked": (masked.pipeline, {"cfg": 2.0, "steps": 3}),
    "diffusion": (lambda: diffusion.pipeline(), {"cfg": 1.0, "steps": 2}),
}


@pytest.fixture(scope="module")
def model():
    return small.pipeline()


def away_from(model, tokens, labels, negative: dict) -> np.ndarray:
    """Returns (1 + t) conditional - t times the weighted mean of the negative classes' logits."""
    t = np.repeat(np.float32(CFG), small.SCALES.lengths)[:, None]
    mean = sum(
        weight * model.logits(tokens, np.broadcast_to(label, len(labels)))
        for label, weight in negative.items()
    )
    return (1 + t) * model.logits(tokens, labels) - t * mean / sum(negative.values())


@pytest.mark.long
@pytest.mark.parametrize("negative", [{7: 1.0}, {7: 3.0, 2: 1.0, 10: 4.0}])
def test_sample_leads_away_from_the_weighted_mean_of_classes(model, negative):
    """Greedy tokens are the largest of those logits, and not of ones away from "no class"."""
    settings = {"cfg": CFG, "top_k": 1, "top_p": 0, "return_tokens": True}
    values = 7 if len(negative) == 1 else negative
    tokens = model.sample(LABELS, negative_labels=values, **settings)[1]
    expected = away_from(model, tokens, LABELS, negative).argmax(axis=-1)
    np.testing.assert_array_equal(tokens, expected)
    plain = away_from(model, tokens, LABELS, {10: 1.0}).argmax(axis=-1)
    assert not np.array_equal(tokens, plain)


@pytest.mark.long
def test_edit_leads_away_from_a_class_even_without_one_of_its_own(model):
    """With no label the conditional prediction is that of "no class"; kept tokens stay."""
    images = np.random.default_rng(0).uniform(-1, 1, (4, 6, 8, 1)).astype(np.float32)
    settings = {"cfg": CFG, "top_k": 1, "top_p": 0, "keep_scales": 1, "return_tokens": True}
    tokens = model.vary(images, negative_labels=7, **settings)[1]
    expected = away_from(model, tokens, np.full(4, 10), {7: 1.0}).argmax(axis=-1)
    np.testing.assert_array_equal(tokens[:, 1:], expected[:, 1:])
    np.testing.assert_array_equal(tokens[:, :1], model.encode(images)[:, :1])
    del settings["return_tokens"]
    nowhere = np.zeros((3, 4), bool)
    edited = model.edit(images, nowhere, negative_labels=7, **settings)
    np.testing.assert_allclose(edited, (model.decode(tokens) + 1) / 2, atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("objective", PIPELINES)
def test_negative_labels_are_each_image_s_own(objective):
    """ "No class" is the guidance there is without them, a class is another one, and an image does
    not depend on the negative labels of the others."""
    make, settings = PIPELINES[objective]
    model = make()
    plain = model.sample(LABELS, **settings)
    np.testing.assert_allclose(
        model.sample(LABELS, negative_labels=[10] * 4, **settings), plain, atol=1e-5
    )
    mixed = model.sample(LABELS, negative_labels=[10, 7, 10, 7], **settings)
    np.testing.assert_allclose(mixed[::2], plain[::2], atol=1e-5)
    assert all(np.abs(mixed[i] - plain[i]).max() > 1e-3 for i in (1, 3))
    np.testing.assert_allclose(
        model.sample(LABELS, negative_labels={10: 1, 7: 0.5}, batch_size=2, **settings),
        model.sample(LABELS, negative_labels={7: 2, 10: 4}, **settings),
        atol=1e-5,
    )


@pytest.mark.parametrize(
    ("values", "settings", "message"),
    [
        ([1, 2], {}, "the number of negative_labels is 2; it must be 1, or that of the images, 4"),
        (11, {}, "label is 11; it must be from 0 to 9"),
        ({}, {}, "negative_labels is empty"),
        ({3: 0}, {}, "the weight of negative label 3 is 0; it must be a number above 0"),
        ({3: float("nan")}, {}, "the weight of negative label 3 is nan"),
        (3, {"cfg": 0}, "negative_labels is 3; it must be left out with a cfg of 0"),
    ],
)
def test_sample_names_mistakes_in_negative_labels(model, values, settings, message):
    """The error has the value and the ones that would be right."""
    with pytest.raises(UserError, match=re.escape(message)):
        model.sample(LABELS, negative_labels=values, **settings)


def test_parse_weighted_reads_classes_with_and_without_weights():
    """Names may hold commas and equals signs; either all classes have weights or none has."""
    names = ("cat", "dog", "a=b", "x,y")
    assert parse_weighted("1") == {1: 1}
    assert parse_weighted("1, dog,a=b", names) == {1: 1, 2: 1}
    assert parse_weighted('cat=2, "x,y"=.5', names) == {0: 2, 3: 0.5}
    for text, message in (
        ("cat=2,dog", "'dog' has no weight; write all as CLASS=WEIGHT"),
        ("cat,dog=2", "is 2 classes; it must be one"),
        ("cta=1", "did you mean 'cat'"),
        ("cat=1.2.3", "'cat=1.2.3'"),
        ("cat=.", "'cat=.'"),
        ("cat=1,dog=2,cat=3", "has a class twice"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            parse_weighted(text, names)
