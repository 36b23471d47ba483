"""Sampling token by token: what an image depends on, and which settings there are."""

import numpy as np
import pytest

from helpers import next_token
from var_jax.errors import UserError

LABELS = np.array([3, 1, 4, 10])
SETTINGS = {"seed": 5, "cfg": 2.0, "top_k": 9, "top_p": 0.9, "temperature": 1.2}


@pytest.fixture(scope="module")
def model():
    return next_token.pipeline("zcurve")


@pytest.mark.long
def test_sample_does_not_depend_on_the_batch(model):
    """Image i is the same alone, with others, and in batches of another size."""
    images, tokens = model.sample(LABELS, return_tokens=True, **SETTINGS)
    assert images.shape == (4, 8, 8, 1) and tokens.shape == (4, 16)
    assert images.min() >= 0 and images.max() <= 1 and tokens.min() >= 0 and tokens.max() < 16
    _, one_by_one = model.sample(LABELS, return_tokens=True, batch_size=1, **SETTINGS)
    np.testing.assert_array_equal(one_by_one, tokens)
    _, last = model.sample(LABELS[3:], return_tokens=True, first_index=3, **SETTINGS)
    np.testing.assert_array_equal(last, tokens[3:])


@pytest.mark.long
def test_sample_without_randomness_is_the_teacher_forced_argmax(model):
    """Every token has the largest of the logits that all tokens before it give, and with guidance
    the largest of the guided ones."""
    for cfg in (0, 1.5):
        _, tokens = model.sample(LABELS, cfg=cfg, top_k=1, return_tokens=True)
        labeled = model.logits(tokens, LABELS)
        unlabeled = model.logits(tokens, np.full(4, 10))
        np.testing.assert_array_equal(((1 + cfg) * labeled - cfg * unlabeled).argmax(-1), tokens)


def test_sample_by_default_is_the_fid_preset(model):
    """None is the default, too, and the sampler has no other settings than these."""
    assert model.sampling_settings() == {"cfg": 1.0, "top_k": 0, "top_p": 0.0, "temperature": 1.0}
    assert model.sampling_settings(cfg=None, top_k=3)["top_k"] == 3
    assert model.sampling_settings("pretty") == model.sampling_settings("fid")
    assert model.sampling_settings("greedy")["top_k"] == 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"smooth": True}, "smooth is True; it must be left out"),
        ({"steps": 8}, "steps is 8; it must be left out"),
        ({"solver": "heun"}, "solver is heun; it must be left out"),
        ({"return_steps": True}, "return_steps is True; it must be left out"),
        ({"cfg": [1.0] * 16}, "cfg is .*; it must be one number"),
        ({"cfg": -1}, "cfg is -1"),
        ({"top_p": 2}, "top_p is 2"),
        ({"temprature": 2}, "did you mean 'temperature'"),
        ({"preset": "best"}, "unknown preset 'best'"),
    ],
)
def test_sample_names_a_setting_that_it_has_no_use_for(model, settings, words):
    """A setting of other samplers must be left out, and a wrong value or name is named, in one
    line."""
    with pytest.raises(UserError, match=words) as caught:
        model.sample([1], **settings)
    assert "\n" not in str(caught.value)


def test_pipeline_refuses_what_next_scale_prediction_alone_can_do(model):
    """Edits, variations, a second model and PyTorch weights name the objective."""
    images = np.zeros((1, 8, 8, 1), np.float32)
    for attempt in (
        lambda: model.edit(images, np.ones((4, 4), bool)),
        lambda: model.vary(images, keep_scales=0),
        lambda: model.sample([1], then=model, keep_scales=1),
        lambda: model.to_torch(),
    ):
        with pytest.raises(UserError, match="'next_scale'|'next_token'"):
            attempt()
