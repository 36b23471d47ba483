"""Generation and editing: the published implementation's numbers, the cache, and what an image
depends on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import small
from var_jax import Pipeline
from var_jax.cli.images import box_mask
from var_jax.config.model import ModelConfig
from var_jax.errors import UserError
from var_jax.models.transformer import Cache, Transformer
from var_jax.sampling import kept_scales, sampler
from var_jax.sampling.image_keys import image_keys
from var_jax.sampling.logits import filter_logits

TOLERANCE = 1e-4  # of an array's largest magnitude
BOX = (0.25, 0.25, 0.75, 0.75)
SETTINGS = {"top_k": 5, "top_p": 0.9, "cfg": 1.5}


@pytest.fixture(scope="module", params=small.CASES)
def case(request):
    with jax.default_matmul_precision("highest"):
        yield small.reference(request.param)


@pytest.fixture(scope="module")
def model() -> Pipeline:
    return small.pipeline()


@pytest.fixture(scope="module")
def values(model):
    """Eight images in [-1, 1], a label each, and a mask on the token grid."""
    random = np.random.default_rng(0)
    shape = model.config.tokenizer.image_shape
    return (
        random.uniform(-1, 1, (8, *shape)).astype(np.float32),
        np.array([3, 1, 4, 1, 5, 9, 2, 6]),
        random.random(model.config.tokenizer.scales.finest) < 0.5,
    )


def assert_close(actual, reference_nchw):
    actual = np.moveaxis(np.asarray(actual), -1, 1)
    assert actual.shape == reference_nchw.shape
    assert np.abs(actual - reference_nchw).max() <= TOLERANCE * np.abs(reference_nchw).max()


@pytest.mark.long
def test_greedy_generation_is_the_published_one(case):
    """With the likeliest code everywhere, tokens equal those of the published implementation, and
    images agree with its images to rounding."""
    model, settings, arrays = case
    images, tokens = model.sample(
        arrays["label"], cfg=settings["cfg"], top_k=1, top_p=0, return_tokens=True
    )
    np.testing.assert_array_equal(tokens, arrays["greedy_tokens"])
    assert_close(images, arrays["greedy_image_nchw"])


@pytest.mark.long
@pytest.mark.parametrize("edit", ["inpaint", "outpaint", "uncond"])
def test_greedy_edits_are_the_published_ones(case, edit):
    """In-painting, out-painting and editing without a class give the published implementation's
    images."""
    model, settings, arrays = case
    box = box_mask(BOX, model.config.tokenizer.scales.finest)
    edited = model.edit(
        np.moveaxis(arrays["image_nchw"], 1, -1),
        ~box if edit == "inpaint" else box,
        None if edit == "uncond" else arrays["label"],
        cfg=settings["cfg"],
        top_k=1,
        top_p=0,
    )
    assert_close(edited, arrays[f"edit_{edit}_image_nchw"])


@pytest.mark.long
def test_filters_keep_exactly_what_the_published_ones_keep(case):
    """The codes that remain after top-k and top-p are those that the published implementation
    recorded."""
    _, _, arrays = case
    expected = {
        name: remaining for name, remaining in arrays.items() if name.startswith("filter_keep_")
    }
    assert len(expected) == 3
    for name, remaining in expected.items():
        top_k, top_p = name.removeprefix("filter_keep_k").split("_p")
        filtered = filter_logits(
            jnp.asarray(arrays["filter_logits"]), int(top_k), float(top_p) or None
        )
        np.testing.assert_array_equal(np.isfinite(filtered), remaining.astype(bool), err_msg=name)


def test_cached_logits_are_the_teacher_forced_ones_scale_by_scale(case):
    """Logits computed scale by scale with a cache equal those of one pass over all scales.

    Both get the same teacher-forced inputs, so that only the cache can differ.
    """
    model, _, arrays = case
    transformer, scales = Transformer(model.config.transformer), model.config.transformer.scales
    labels = arrays["label"].astype(np.int32)
    full = model.logits(arrays["tokens"], labels)

    @jax.jit
    def cached(params, inputs):
        result, cache = [], Cache()
        first = scales.lengths[0]
        for k in range(len(scales)):
            span = scales.span(k)
            part = inputs[:, span.start - first : span.stop - first] if k else None
            logits, cache = transformer.apply(
                {"params": params}, k, part, labels, cache, method="next_scale"
            )
            result.append(logits)
        return result

    parts = cached(model.params["transformer"], jnp.asarray(arrays["teacher_input"]))
    for k, actual in enumerate(parts):
        np.testing.assert_allclose(
            actual, full[:, scales.span(k)], rtol=0, atol=1e-5 * np.abs(full).max()
        )


def test_settings_that_change_often_compile_nothing(model):
    """A new seed, label, guidance, top-p or temperature compiles no program.

    Every one changes the images, so that none is ignored.
    """
    model.sample([1, 2], seed=0, temperature=1.0, **SETTINGS)
    compiled = sampler.generate._cache_size()
    images = [
        model.sample([1, 2], **changed)
        for changed in (
            SETTINGS,
            SETTINGS | {"seed": 7},
            SETTINGS | {"cfg": 4.0},
            SETTINGS | {"top_p": 0.5},
            SETTINGS | {"temperature": 3.0},
        )
    ]
    images.append(model.sample([8, 9], **SETTINGS))
    assert sampler.generate._cache_size() == compiled
    for other in images[1:]:
        assert not np.array_equal(images[0], other)
    np.testing.assert_array_equal(
        images[0], model.sample([1, 2], seed=0, temperature=1.0, **SETTINGS)
    )


@pytest.mark.long
def test_sample_depends_on_the_seed_the_index_and_the_label_alone(model):
    """An image depends neither on the batch size nor on the labels of other images.

    An image of the same label at another index differs.
    """
    labels = [3, 1, 4, 1, 5]
    images, tokens = model.sample(labels, return_tokens=True, **SETTINGS)
    assert images.shape == (5, *model.config.tokenizer.image_shape) and images.dtype == np.float32
    assert tokens.shape == (5, small.SCALES.total) and tokens.dtype == np.int32
    assert images.min() >= 0 and images.max() <= 1
    np.testing.assert_allclose((model.decode(tokens) + 1) / 2, images, atol=1e-5)
    one_by_one, same_tokens = model.sample(labels, batch_size=1, return_tokens=True, **SETTINGS)
    np.testing.assert_array_equal(same_tokens, tokens)
    np.testing.assert_allclose(one_by_one, images, atol=1e-5)
    alone, first = model.sample(labels[:1], return_tokens=True, **SETTINGS)
    np.testing.assert_array_equal(first, tokens[:1])
    np.testing.assert_allclose(alone, images[:1], atol=1e-5)
    np.testing.assert_array_equal(
        model.sample([3, 9, 9, 1, 9], return_tokens=True, **SETTINGS)[1][[0, 3]], tokens[[0, 3]]
    )  # the neighbors' labels have no say
    assert not np.array_equal(tokens[1], tokens[3])  # one label, another index


def test_smooth_codes_make_other_images_of_the_same_tokens_at_first(model):
    """Mixed codes change the image; the first scale's tokens, which depend on no earlier code, are
    the same, and so is a repetition."""
    plain, tokens = model.sample([1, 2], return_tokens=True, **SETTINGS)
    smooth, expected = model.sample([1, 2], smooth=True, return_tokens=True, **SETTINGS)
    assert smooth.shape == plain.shape and np.isfinite(smooth).all()
    assert np.abs(smooth - plain).max() > 0.01
    np.testing.assert_array_equal(expected[:, 0], tokens[:, 0])
    np.testing.assert_array_equal(smooth, model.sample([1, 2], smooth=True, **SETTINGS))


def test_sample_without_filters_and_guidance_has_them_off(model):
    """top-k from V on and 0, and top-p 0 and 1, are the same program and the same images."""
    off = model.sample([1, 2], cfg=0, top_k=0, top_p=0)
    compiled = sampler.generate._cache_size()
    np.testing.assert_array_equal(model.sample([1, 2], cfg=0, top_k=16, top_p=1), off)
    np.testing.assert_array_equal(model.sample([1, 2], cfg=0, top_k=900, top_p=0), off)
    assert sampler.generate._cache_size() == compiled


@pytest.mark.long
def test_edit_keeps_masked_tokens(model, values):
    """Keeping all tokens gives the reconstruction; keeping some gives another image that depends on
    the label."""
    images, labels, mask = values
    reconstructed = (model.decode(model.encode(images)) + 1) / 2
    keep_all = np.ones(mask.shape, bool)
    np.testing.assert_allclose(
        model.edit(images, keep_all, labels, **SETTINGS), reconstructed, atol=1e-5
    )
    edited = model.edit(images, mask, labels, **SETTINGS)
    assert edited.shape == images.shape and np.abs(edited - reconstructed).max() > 0.05
    assert not np.array_equal(edited, model.edit(images, mask, (labels + 1) % 10, **SETTINGS))


def test_edit_smooth_mixes_codes_where_nothing_is_kept(model, values):
    """Keeping all tokens gives the reconstruction, as without mixing; where tokens are sampled,
    mixing changes the image."""
    images, labels, mask = values
    smooth = {**SETTINGS, "smooth": True}
    reconstructed = (model.decode(model.encode(images)) + 1) / 2
    keep_all = np.ones(mask.shape, bool)
    np.testing.assert_allclose(
        model.edit(images, keep_all, labels, **smooth), reconstructed, atol=1e-5
    )
    edited = model.edit(images, mask, labels, **smooth)
    assert np.abs(edited - model.edit(images, mask, labels, **SETTINGS)).max() > 0.01
    np.testing.assert_array_equal(edited, model.edit(images, mask, labels, **smooth))


def test_kept_tokens_are_the_images_own(model, values):
    """An edit returns the image's tokens wherever they are kept, at every scale.

    Most other tokens differ from them, so that the check is not passed by returning the image.
    """
    images, labels, mask = values
    tokens, keep = model.encode(images), np.broadcast_to(mask, (8, *mask.shape))
    config = sampler.SamplerConfig(top_k=5, use_top_p=True, guided=True)
    params = sampler.SamplingParams(*map(jnp.float32, (1.5, 0.9, 1.0)))
    keys = image_keys(0, np.arange(8, dtype=np.uint32))
    _, chosen = sampler.generate(
        model.config,
        config,
        model.params,
        labels.astype(np.int32),
        keys,
        params,
        edit=sampler.EditSource(tokens, keep),
    )
    parts = [
        np.asarray(part) for part in kept_scales.keep_by_scale(jnp.asarray(keep), small.SCALES)
    ]
    assert parts[0].all() and not parts[1].all()  # scales of at most three tokens are given
    np.testing.assert_array_equal(parts[-1], keep.reshape(8, -1))
    remaining = np.concatenate(parts, axis=1)
    np.testing.assert_array_equal(np.asarray(chosen)[remaining], tokens[remaining])
    assert (np.asarray(chosen)[~remaining] != tokens[~remaining]).mean() > 0.3


def test_edit_takes_a_mask_of_pixels_as_one_of_tokens(model, values):
    """Masks of tokens, of pixels and per image give the same image; a token whose pixels are kept
    only in part is sampled."""
    images, labels, mask = values
    pixels = mask.repeat(2, axis=0).repeat(2, axis=1)
    assert pixels.shape == model.config.tokenizer.image_shape[:2]
    expected = model.edit(images, mask, labels, **SETTINGS)
    np.testing.assert_array_equal(model.edit(images, pixels, labels, **SETTINGS), expected)
    np.testing.assert_array_equal(
        model.edit(images, np.stack([mask] * 8), labels, **SETTINGS), expected
    )
    half = pixels.copy()  # just half of a token's pixels is not enough to keep it
    y, x = np.argwhere(mask)[0]
    half[2 * y, 2 * x : 2 * x + 2] = False
    dropped = mask.copy()
    dropped[y, x] = False
    np.testing.assert_array_equal(
        model.edit(images, half, labels, **SETTINGS),
        model.edit(images, dropped, labels, **SETTINGS),
    )


def test_edit_without_labels_is_of_no_class(model, values):
    """Leaving the labels out equals giving the id of no class."""
    images, _, mask = values
    none = np.full(8, small.CLASSES)
    np.testing.assert_allclose(
        model.edit(images, mask, **SETTINGS), model.edit(images, mask, none, **SETTINGS), atol=1e-4
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cfg": -1}, "cfg is -1; it must be 0"),
        ({"cfg": float("inf")}, "cfg is inf"),
        ({"top_p": 1.5}, "top_p is 1.5; it must be from 0 to 1"),
        ({"top_p": float("nan")}, "top_p is nan"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_k": 0.5}, "top_k is 0.5"),
        ({"temperature": 0}, "temperature is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"batch_size": -2}, "batch_size is -2; it must be a whole number of at least 1"),
        ({"labels": [3, 11]}, r"label is 11; it must be from 0 to 9 \(10: no class\)"),
        ({"labels": []}, "labels is"),
        ({"labels": [0.5]}, "labels is .* whole numbers"),
        ({"labels": [-1]}, "label is -1"),
    ],
)
def test_sample_names_mistakes_in_its_settings(model, settings, message):
    """Each value outside its range is named with its setting."""
    with pytest.raises(UserError, match=message):
        model.sample(settings.pop("labels", [1]), **settings)


def test_pipeline_names_arrays_that_do_not_fit(model, values):
    """Each call with an array of a wrong shape, range or number says which array it is."""
    images, labels, mask = values
    for call, message in (
        (lambda: model.edit(images[:, :3], mask), "the images' shape"),
        (lambda: model.edit(images * 2, mask), "the images' range"),
        (lambda: model.edit(images, mask.T), "the mask's shape"),
        (lambda: model.edit(images, mask * 255), "the mask is of int64 values other than 0 and 1"),
        (lambda: model.edit(images, mask * 0.7), "the mask is of float64 values"),
        (lambda: model.edit(images, mask, labels[:2]), "the number of labels"),
        (lambda: model.edit(images, mask[None]), "the number of masks"),
        (lambda: model.encode(images[:0]), "the batch is empty"),
        (lambda: model.decode([[0] * 3]), "the tokens' shape"),
        (lambda: model.decode(np.full((1, small.SCALES.total), 16)), "a token is out of range"),
        (lambda: model.logits(np.zeros((2, small.SCALES.total), int), [1]), "the number of labels"),
        (
            lambda: Pipeline(ModelConfig(small.TOKENIZER), model.params).sample([1]),
            "a tokenizer alone",
        ),
        (
            lambda: Pipeline(ModelConfig(small.TOKENIZER), model.params).edit(images, mask),
            "a tokenizer alone",
        ),
    ):
        with pytest.raises(UserError, match=message):
            call()


def test_reconstructions_go_from_coarse_to_all_scales(model, values):
    """There is one image per scale; the last is the decoded one, and the first differs from it."""
    images, _, _ = values
    steps = model.reconstruct(images)
    assert len(steps) == len(small.SCALES)
    np.testing.assert_allclose(steps[-1], model.decode(model.encode(images)), atol=1e-5)
    assert not np.allclose(steps[0], steps[-1])
