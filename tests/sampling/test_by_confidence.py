"""Decoding by confidence: what an image depends on, how many tokens a pass keeps, edits, and which
settings there are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import masked
from var_jax.errors import UserError
from var_jax.sampling import by_confidence
from var_jax.sampling.settings import Ramp

LABELS = np.array([3, 1, 4, 10])
SETTINGS = {"seed": 5, "cfg": 2.0, "top_k": 9, "top_p": 0.9, "temperature": 1.2, "steps": 4}
IMAGE_SHAPE = masked.TOKENIZER.image_shape
KEEP = np.array([[1, 0, 0, 0], [0, 0, 0, 1], [1, 0, 1, 0]], bool)


@pytest.fixture(scope="module")
def model():
    return masked.pipeline()


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (4, *IMAGE_SHAPE)).astype(np.float32)


@pytest.mark.long
def test_sample_does_not_depend_on_the_batch(model):
    """Image i is the same alone, with others, and in batches of another size."""
    images, tokens = model.sample(LABELS, return_tokens=True, **SETTINGS)
    assert images.shape == (4, *IMAGE_SHAPE) and tokens.shape == (4, masked.TOKENS)
    assert images.min() >= 0 and images.max() <= 1
    assert tokens.min() >= 0 and tokens.max() < masked.MASK
    _, one_by_one = model.sample(LABELS, return_tokens=True, batch_size=1, **SETTINGS)
    np.testing.assert_array_equal(one_by_one, tokens)
    _, last = model.sample(LABELS[3:], return_tokens=True, first_index=3, **SETTINGS)
    np.testing.assert_array_equal(last, tokens[3:])
    _, others = model.sample([3, 3], return_tokens=True, **SETTINGS)
    assert (others[0] != others[1]).any()


@pytest.mark.long
@pytest.mark.parametrize("cfg", [0, 1.5])
def test_one_pass_without_randomness_is_the_argmax(model, cfg):
    """All tokens are the likeliest of the logits of a map that is masked everywhere; with guidance,
    of the guided ones."""
    _, tokens = model.sample(LABELS, steps=1, cfg=cfg, top_k=1, return_tokens=True)
    all_masked = np.full((4, masked.TOKENS), masked.MASK)
    labeled, unlabeled = (model.logits(all_masked, classes) for classes in (LABELS, np.full(4, 10)))
    np.testing.assert_array_equal(((1 + cfg) * labeled - cfg * unlabeled).argmax(-1), tokens)


@pytest.mark.long
@pytest.mark.parametrize("steps", [2, 5, 20])
def test_passes_without_randomness_are_those_of_the_published_decoder(model, steps):
    """The released code's loop (google-research/maskgit, `parallel_decode.py`) in numpy, with the
    argmax in place of random tokens and noise: tokens below the m-th lowest confidence are masked
    again."""
    _, tokens = model.sample(LABELS, preset="greedy", steps=steps, return_tokens=True)
    expected = np.full((4, masked.TOKENS), masked.MASK)
    for step in range(steps):
        logits = model.logits(expected, LABELS)
        unknown = expected == masked.MASK
        filled = np.where(unknown, logits.argmax(-1), expected)
        confidence = np.where(unknown, np.asarray(jax.nn.log_softmax(logits)).max(-1), np.inf)
        share = np.cos(np.pi / 2 * (step + 1) / steps)
        count = np.maximum(1, np.minimum(unknown.sum(1) - 1, np.floor(share * masked.TOKENS)))
        cut_off = np.take_along_axis(np.sort(confidence), count[:, None].astype(int), axis=1)
        again = (confidence < cut_off) & (step < steps - 1)
        expected = np.where(again, masked.MASK, filled)
    np.testing.assert_array_equal(tokens, expected)


def test_fill_keeps_the_most_confident_and_every_visible_token():
    """The least confident of the masked tokens (here 9) are masked again, fewer than before where
    there are two; a visible token stays, however unlikely the model finds it."""
    tokens = jnp.array([[9, 9, 9, 1], [9, 2, 9, 1], [9, 2, 3, 1], [4, 2, 3, 1]])
    sampled = jnp.full((4, 4), 7)
    confidence = jnp.tile(jnp.array([-1.0, -3.0, -2.0, -9.0]), (4, 1))
    choice = by_confidence.Choice(sampled, confidence)
    after = by_confidence.fill(tokens, choice, jnp.array([1, 3, 1, 1]), mask_token=9)
    assert after.tolist() == [[7, 9, 7, 1], [7, 2, 9, 1], [9, 2, 3, 1], [4, 2, 3, 1]]
    last = by_confidence.fill(tokens, choice, jnp.zeros(4, int), mask_token=9)
    assert last.tolist() == [[7, 7, 7, 1], [7, 2, 7, 1], [7, 2, 3, 1], [4, 2, 3, 1]]


def test_noise_changes_which_tokens_are_kept(model):
    """Tokens are the likeliest, so that only the noise on the confidence is random; it is the same
    for the same seed, and one pass has none."""
    greedy = {"preset": "greedy", "return_tokens": True}
    _, without = model.sample(LABELS, **greedy)
    _, noisy = model.sample(LABELS, noise=4.5, **greedy)
    _, again = model.sample(LABELS, noise=4.5, **greedy)
    assert (noisy != without).any()
    np.testing.assert_array_equal(noisy, again)
    _, one = model.sample(LABELS, steps=1, noise=4.5, **greedy)
    np.testing.assert_array_equal(one, model.sample(LABELS, steps=1, **greedy)[1])


def test_guidance_as_a_ramp_goes_from_the_first_pass_to_the_last(model):
    """A number is the same in every pass; a ramp of equal ends is that number."""
    sampler = by_confidence.MaskedSampler()

    def by_pass(cfg):
        prepared = sampler.prepare(model.config, model.sampling_settings(cfg=cfg, steps=4))
        return prepared.traced.cfg.tolist()

    assert by_pass(2) == by_pass(Ramp(2, 2)) == [2, 2, 2, 2]
    assert by_pass(Ramp(0, 3)) == [0, 1, 2, 3]


@pytest.mark.long
def test_edit_keeps_kept_tokens(model, images):
    """Kept tokens are those of the image in the result; others are new. Where all are kept, the
    result is the reconstruction, and composited pixels are the image's own."""
    tokens = model.encode(images)
    edit = by_confidence.EditSource(jnp.asarray(tokens), jnp.broadcast_to(KEEP, (4, *KEEP.shape)))
    prepared = by_confidence.MaskedSampler().prepare(model.config, model.sampling_settings())
    keys = jax.random.split(jax.random.key(0), 4)
    _, edited = by_confidence.generate_masked(
        model.config,
        prepared.compiled,
        model.params,
        LABELS.astype(np.int32),
        keys,
        prepared.traced,
        edit=edit,
    )
    is_kept = np.broadcast_to(KEEP.reshape(-1), tokens.shape)
    np.testing.assert_array_equal(np.asarray(edited)[is_kept], tokens[is_kept])
    assert np.max(edited) < masked.MASK and (np.asarray(edited) != tokens)[~is_kept].mean() > 0.5

    reconstructed = (model.decode(tokens) + 1) / 2
    with_all_kept = model.edit(images, np.ones(KEEP.shape, bool), LABELS)
    np.testing.assert_allclose(with_all_kept, reconstructed, atol=1e-5)
    composite = model.edit(images, KEEP, LABELS, composite=True, cfg=1)
    pixels = KEEP.repeat(2, axis=0).repeat(2, axis=1)
    np.testing.assert_array_equal(composite[:, pixels], (images[:, pixels] + 1) / 2)
    assert np.abs(composite - (images + 1) / 2)[:, ~pixels].max() > 0.01


@pytest.mark.long
def test_edit_that_keeps_nothing_is_a_sample(model, images):
    """With an empty mask the image that is given has no influence: seed and label decide."""
    everywhere = model.edit(images, np.zeros(KEEP.shape, bool), LABELS, seed=7)
    np.testing.assert_allclose(everywhere, model.sample(LABELS, seed=7), atol=1e-6)


def test_sample_by_default_is_the_fid_preset(model):
    """The published decoder's settings at 256 pixels, and those without chance."""
    fid = {"cfg": 0.0, "top_k": 0, "top_p": 0.0, "temperature": 1.0, "steps": 8, "noise": 4.5}
    assert model.sampling_settings() == fid
    assert model.sampling_settings(steps=None, noise=1)["noise"] == 1
    assert model.sampling_settings("greedy") == {**fid, "top_k": 1, "noise": 0.0}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"smooth": True}, "smooth is True; it must be left out"),
        ({"solver": "heun"}, "solver is heun; it must be left out"),
        ({"return_steps": True}, "return_steps is True; it must be left out"),
        ({"cfg": [1.0] * 8}, "cfg is .*; it must be one number"),
        ({"cfg": Ramp(0, -1)}, "cfg.last is -1"),
        ({"steps": 0}, "steps is 0; it must be one number, a whole number of at least 1"),
        ({"steps": 2.5}, "steps is 2.5"),
        ({"noise": -1}, "noise is -1; it must be one number, 0"),
        ({"noise": "much"}, "noise is much"),
        ({"top_k": Ramp(1, 2)}, "top_k is .*; it must be one number"),
    ],
)
def test_sample_names_a_setting_that_it_has_no_use_for(model, settings, words):
    """A setting of other samplers must be left out, and a wrong value is named with its range, in
    one line."""
    with pytest.raises(UserError, match=words) as caught:
        model.sample([1], **settings)
    assert "\n" not in str(caught.value)


def test_pipeline_refuses_what_next_scale_prediction_alone_can_do(model, images):
    """Variations, kept scales, a second model and PyTorch weights name the argument or the
    objective."""
    for attempt, words in (
        (lambda: model.vary(images, keep_scales=0), "`vary` needs .*'next_scale'; .*'masked'"),
        (lambda: model.edit(images, KEEP, keep_scales=1), "keep_scales is 1; .*'masked'"),
        (lambda: model.sample([1], then=model, keep_scales=1), "then is .*'masked'"),
        (lambda: model.to_torch(), "'masked'"),
    ):
        with pytest.raises(UserError, match=words):
            attempt()
