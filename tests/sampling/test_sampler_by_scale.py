"""Generation that differs from scale to scale, against teacher-forced logits mixed and chosen from
in numpy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import fft

from helpers import small
from var_jax import Pipeline
from var_jax.config.model import ModelConfig
from var_jax.config.scales import Scales
from var_jax.errors import UserError
from var_jax.io.pictures import to_uint8
from var_jax.models.tokenizer import Tokenizer
from var_jax.models.transformer import Cache, Transformer
from var_jax.ops import vq
from var_jax.ops.resize import resize
from var_jax.sampling import sampler
from var_jax.sampling.image_keys import image_keys
from var_jax.sampling.settings import Ramp

LABELS = np.array([3, 1, 4, 1, 5, 9, 2, 6])
LENGTHS = small.SCALES.lengths  # 1, 4, 12
GREEDY = {"preset": "greedy"}


@pytest.fixture(scope="module")
def model() -> Pipeline:
    return small.pipeline()


@pytest.fixture(scope="module")
def other(model) -> Pipeline:
    """A shallower transformer with other weights behind the same tokenizer."""
    weights = jax.tree.map(lambda x: np.flip(np.asarray(x), -1), model.params["transformer"])
    weights = {**weights, "blocks": jax.tree.map(lambda x: x[:1], weights["blocks"])}
    config = ModelConfig(small.TOKENIZER, dataclasses.replace(small.TRANSFORMER, depth=1))
    return Pipeline(config, {**model.params, "transformer": weights})


@pytest.fixture(scope="module")
def images(model) -> np.ndarray:
    return (
        np.random.default_rng(0)
        .uniform(-1, 1, (8, *model.config.tokenizer.image_shape))
        .astype(np.float32)
    )


def mixed(model, tokens, labels, strengths) -> np.ndarray:
    """(1 + t) conditional - t unconditional teacher-forced logits, with one t a scale."""
    conditional, unconditional = (
        model.logits(tokens, values) for values in (labels, np.full(len(labels), 10))
    )
    t = np.repeat(strengths, LENGTHS)[:, None]
    return (1 + t) * conditional - t * unconditional


@pytest.mark.long
@pytest.mark.parametrize("cfg", [[0.0, 2.0, 0.0], [0.0, 0.0, 3.0]])
def test_guidance_that_goes_off_and_on(model, cfg):
    """Greedy tokens are the largest of the mixed logits, whether the unconditional branch ends
    before the last scale or only counts there."""
    tokens = model.sample(LABELS, cfg=cfg, top_k=1, top_p=0, return_tokens=True)[1]
    expected = mixed(model, tokens, LABELS, cfg)
    np.testing.assert_array_equal(tokens, expected.argmax(axis=-1))
    plain = mixed(model, tokens, LABELS, [0, 0, 0])
    assert not np.array_equal(tokens, plain.argmax(axis=-1))  # guidance changes what is chosen


def test_spatial_guidance_is_of_logits_under_class_guidance(model):
    """Greedy tokens are the largest of the mixed logits moved away from the scale before: as known
    from 1x1, whose only frequency is its value, to 2x2; and by SciPy's transforms beyond."""
    ssg = [9.0, 1.0, 0.5]  # the first has no meaning
    tokens = model.sample(LABELS, cfg=[0, 1, 2], ssg=ssg, top_k=1, top_p=0, return_tokens=True)[1]
    logits = mixed(model, tokens, LABELS, np.float32([0, 1, 2]))
    first, second, third = np.split(logits, np.cumsum(LENGTHS)[:-1], axis=1)
    prior = np.asarray(resize(second.reshape(8, 2, 2, -1), (3, 4), "bicubic"))
    spectrum = fft.dctn(prior, axes=(1, 2), norm="ortho")
    pasted = fft.dctn(second.reshape(8, 2, 2, -1), axes=(1, 2), norm="ortho")
    spectrum[:, :2, :2] = np.sqrt(3) * pasted
    prior = fft.idctn(spectrum, axes=(1, 2), norm="ortho").reshape(third.shape)
    expected = np.concatenate([first, 2 * second - first, 1.5 * third - 0.5 * prior], axis=1)
    np.testing.assert_array_equal(tokens, expected.argmax(axis=-1))
    assert not np.array_equal(tokens, logits.argmax(axis=-1))


@pytest.mark.long
def test_spatial_guidance_of_zero_is_the_program_without_it(model):
    """Zeros give the same bits by the same compiled program, and a value on the first scale, which
    has no coarser one, changes nothing."""
    settings = {"cfg": 1.5, "top_k": 5, "top_p": 0.9, "return_tokens": True}
    images, tokens = model.sample(LABELS, **settings)
    compiled = sampler.generate._cache_size()
    for zero in (0, [0, 0, 0], Ramp(0, 0), [2.0, 0, 0]):
        again = model.sample(LABELS, ssg=zero, **settings)
        np.testing.assert_array_equal(again[0], images)
        np.testing.assert_array_equal(again[1], tokens)
    assert sampler.generate._cache_size() == compiled
    assert not np.array_equal(model.sample(LABELS, ssg=2, **settings)[1], tokens)


@pytest.mark.long
def test_spatial_guidance_of_an_edit_begins_at_its_second_scale(model, images):
    """Kept scales have no logits that the first sampled scale could be compared with."""
    settings = {"keep_scales": 1, "return_tokens": True, **GREEDY}
    plain = model.vary(images, **settings)[1]
    np.testing.assert_array_equal(model.vary(images, ssg=[0, 5, 0], **settings)[1], plain)
    later = model.vary(images, ssg=[0, 0, 5], **settings)[1]
    np.testing.assert_array_equal(later[:, :5], plain[:, :5])
    assert not np.array_equal(later, plain)


def test_sample_filters_and_tempers_by_scale(model):
    """The ranks of the tokens among their logits stay below each scale's top-k; near zero
    temperature takes the likeliest; other values compile nothing."""
    settings = {"cfg": 0, "top_p": 0, "top_k": [0, 3, 1], "return_tokens": True}
    tokens = model.sample(LABELS, **settings)[1]
    logits = model.logits(tokens, LABELS)
    chosen = np.take_along_axis(logits, tokens[..., None], axis=-1)
    ranks = [
        part.sum(axis=-1) for part in np.split(logits > chosen, np.cumsum(LENGTHS)[:-1], axis=1)
    ]
    assert ranks[0].max() > 2 and 0 < ranks[1].max() <= 2 and ranks[2].max() == 0
    compiled = sampler.generate._cache_size()
    cold = model.sample(LABELS, temperature=[9.0, 1e-4, 1.0], **settings)[1]
    np.testing.assert_array_equal(cold[:, 1:5], model.logits(cold, LABELS)[:, 1:5].argmax(axis=-1))
    assert not np.array_equal(cold[:, 0], tokens[:, 0])
    assert sampler.generate._cache_size() == compiled


def test_sample_of_a_constant_list_or_ramp_matches_the_number(model):
    """The images are the same bit for bit, and nothing is compiled again."""
    number = model.sample([1, 2], cfg=1.5, top_k=5, top_p=0.9)
    compiled = sampler.generate._cache_size()
    lists = model.sample(
        [1, 2], cfg=[0, 0.75, 1.5], top_k=[5] * 3, top_p=[0.9] * 3, temperature=[1] * 3
    )
    ramps = model.sample(
        [1, 2], cfg=Ramp(0, 1.5), top_k=Ramp(5, 5), top_p=Ramp(0.9, 0.9), temperature=Ramp(1, 1)
    )
    np.testing.assert_array_equal(lists, number)
    np.testing.assert_array_equal(ramps, number)
    assert sampler.generate._cache_size() == compiled


def test_sample_by_one_number_of_guidance_is_the_published_ramp(model):
    """Code that calls `generate` itself gives one number of guidance, and has the ramp's images."""
    keys = image_keys(3, np.arange(2, dtype=np.uint32))
    labels = np.array([1, 2], np.int32)
    config = sampler.SamplerConfig(top_k=5, use_top_p=True, guided=True)
    params = sampler.SamplingParams(*map(jnp.float32, (1.5, 0.9, 1.0)))
    tokens = sampler.generate(model.config, config, model.params, labels, keys, params)[1]
    np.testing.assert_array_equal(
        tokens, model.sample([1, 2], seed=3, cfg=1.5, top_k=5, top_p=0.9, return_tokens=True)[1]
    )


@pytest.mark.parametrize("seed", [0, 2**31 - 1, 2**32 - 1])
def test_keys_made_inside_a_program_are_those_made_before_it(seed):
    """The largest seeds and indices of 32 bits are not cut."""
    indices = np.array([0, 7, 2**32 - 1], np.uint32)
    inside = jax.jit(image_keys)(np.uint32(seed), indices)
    np.testing.assert_array_equal(
        jax.random.key_data(inside), jax.random.key_data(image_keys(seed, indices))
    )


@pytest.mark.long
def test_sample_goes_on_by_another_model_from_a_scale(model, other):
    """The first two scales are the first model's tokens, and the last scale's are the likeliest by
    the second model's teacher-forced logits."""
    first = model.sample(LABELS, return_tokens=True, **GREEDY)[1]
    images, tokens = model.sample(LABELS, then=other, keep_scales=2, return_tokens=True, **GREEDY)
    np.testing.assert_array_equal(tokens[:, :5], first[:, :5])
    later = mixed(other, tokens, LABELS, [0, 0.75, 1.5])[:, 5:]
    np.testing.assert_array_equal(tokens[:, 5:], later.argmax(axis=-1))
    assert (tokens[:, 5:] != first[:, 5:]).mean() > 0.3
    np.testing.assert_allclose(images, (model.decode(tokens) + 1) / 2, atol=1e-5)


@pytest.mark.slow
def test_sample_then_the_same_model_matches_sample_alone(model):
    """Drawn tokens too, as prefilled keys and values are those that it would have cached."""
    settings = {"cfg": 1.5, "top_k": 5, "top_p": 0.9, "return_tokens": True}
    alone = model.sample(LABELS, **settings)[1]
    np.testing.assert_array_equal(
        model.sample(LABELS, then=model, keep_scales=1, **settings)[1], alone
    )


@pytest.mark.parametrize("mask", ["block_causal", "markov", "block_diagonal"])
def test_prefilled_caches_are_those_of_scale_by_scale(model, mask):
    """Computing two scales at once fills the cache with the keys and values of two passes, and
    keeps only the scales that the mask still needs."""
    transformer = Transformer(dataclasses.replace(small.TRANSFORMER, mask=mask))
    labels, values = (
        jnp.array([1, 2]),
        np.random.default_rng(0).normal(size=(2, 4, 4)).astype(np.float32),
    )

    @jax.jit
    def both(params, values):
        cache = Cache()
        for k, part in enumerate((None, values)):
            cache = transformer.apply(
                {"params": params}, k, part, labels, cache, method="next_scale"
            )[1]
        return cache, transformer.apply({"params": params}, 2, values, labels, method="prefill")

    expected, result = both(model.params["transformer"], values)
    assert (
        len(result.k)
        == len(result.v)
        == {"block_causal": 2, "markov": 1, "block_diagonal": 0}[mask]
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), result, expected)


def test_variations_share_the_first_scales(model, images):
    """The kept scales hold the image's own tokens, the later ones the likeliest by teacher-forced
    logits of no class; an edit with an empty mask gives the same."""
    reference = model.encode(images)
    varied, tokens = model.vary(images, keep_scales=2, return_tokens=True, **GREEDY)
    np.testing.assert_array_equal(tokens[:, :5], reference[:, :5])
    expected = model.logits(tokens, np.full(8, small.CLASSES))[:, 5:].argmax(axis=-1)
    np.testing.assert_array_equal(tokens[:, 5:], expected)
    np.testing.assert_allclose(varied, (model.decode(tokens) + 1) / 2, atol=1e-5)
    nowhere = np.zeros(small.SCALES.finest, bool)
    np.testing.assert_array_equal(model.edit(images, nowhere, keep_scales=2, **GREEDY), varied)


def test_from_scale_is_an_alias_of_keep_scales(model, other, images):
    """Scripts that were written for the older name get the same images, and both at once are
    refused."""
    keep = np.zeros(small.SCALES.finest, bool)
    np.testing.assert_array_equal(
        model.edit(images, keep, from_scale=2, **GREEDY),
        model.edit(images, keep, keep_scales=2, **GREEDY),
    )
    np.testing.assert_array_equal(
        model.sample(LABELS, then=other, from_scale=2, **GREEDY),
        model.sample(LABELS, then=other, keep_scales=2, **GREEDY),
    )
    with pytest.raises(UserError, match="from_scale is 1; it must be left out"):
        model.edit(images, keep, keep_scales=2, from_scale=1, **GREEDY)


def test_guidance_of_a_single_scale_is_the_number():
    """A ramp from 0 has no end of its own in a single scale: the number itself is the strength, for
    the pipeline and for the program alike, and tokens are the largest of the mixed logits."""
    scales = Scales.parse("3x4")
    transformer = small.pipeline().params["transformer"]
    transformer = {
        **transformer,
        "level_embed": transformer["level_embed"][:1],
        "pos_embed": transformer["pos_embed"][:12],
        "pos_start": transformer["pos_embed"][:12],
    }
    model = Pipeline(
        ModelConfig(
            dataclasses.replace(small.TOKENIZER, scales=scales, quantizer_dropout=0.0),
            dataclasses.replace(small.TRANSFORMER, scales=scales),
        ),
        {**small.pipeline().params, "transformer": transformer},
    )
    labels = np.arange(8, dtype=np.int32)
    tokens = model.sample(labels, cfg=3.0, top_k=1, top_p=0, return_tokens=True)[1]
    conditional = model.logits(tokens, labels)
    unconditional = model.logits(tokens, np.full(8, small.CLASSES))
    np.testing.assert_array_equal(tokens, (4 * conditional - 3 * unconditional).argmax(axis=-1))
    assert not np.array_equal(tokens, conditional.argmax(axis=-1))

    config = sampler.SamplerConfig(top_k=1, use_top_p=False, guided=True)
    params = sampler.SamplingParams(*map(jnp.float32, (3.0, 0.0, 1.0)))
    keys = image_keys(0, np.arange(8, dtype=np.uint32))
    by_program = sampler.generate(model.config, config, model.params, labels, keys, params)[1]
    np.testing.assert_array_equal(by_program, tokens)


@pytest.mark.long
def test_edit_that_keeps_nothing_matches_sample(model, images):
    """An edit that keeps no region and no scale gives the images that `sample` gives with the same
    seed and settings."""
    settings = {"seed": 4, "cfg": 1.5, "top_k": 5, "top_p": 0.9}
    edited = model.edit(images, np.zeros((6, 8), bool), LABELS, keep_scales=0, **settings)
    np.testing.assert_allclose(edited, model.sample(LABELS, **settings), atol=1e-5)


def test_edit_puts_kept_pixels_back_exactly(model):
    """Compositing restores the kept pixels to the last of 256 levels and changes no other; without
    it they differ."""
    random = np.random.default_rng(1)
    pixels = random.integers(0, 256, (8, 6, 8, 1), np.uint8)
    images = pixels.astype(np.float32) / 127.5 - 1
    settings = {"labels": LABELS, "cfg": 1.5, "top_k": 5, "top_p": 0.9}
    for keep in (random.random((8, 6, 8)) < 0.5, random.random((3, 4)) < 0.5):
        plain = model.edit(images, keep, **settings)
        back = model.edit(images, keep, composite=True, **settings)
        wide = np.broadcast_to(
            keep if keep.ndim == 3 else np.kron(keep, np.ones((2, 2))), (8, 6, 8)
        ).astype(bool)
        np.testing.assert_array_equal(to_uint8(back)[wide], pixels[wide])
        np.testing.assert_array_equal(back[~wide], plain[~wide])
        assert not np.array_equal(to_uint8(plain)[wide], pixels[wide])
    gray = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)  # every gray level, there and back
    np.testing.assert_array_equal(to_uint8((gray.astype(np.float32) / 127.5 - 1 + 1) / 2), gray)


def test_steps_are_the_images_of_the_map_after_each_scale(model):
    """The last step is the image, and the one before it is decoded here from the sum of the first
    scales' code vectors."""
    images, tokens, steps = model.sample(
        LABELS, cfg=0, top_k=5, top_p=0, return_tokens=True, return_steps=True, as_uint8=True
    )
    assert steps.shape == (8, 3, *images.shape[1:]) and steps.dtype == images.dtype == np.uint8
    np.testing.assert_array_equal(steps[:, -1], images)

    @jax.jit
    def after_two(params, tokens):
        def apply(method, *args):
            return Tokenizer(small.TOKENIZER).apply({"params": params}, *args, method=method)

        quantizer = apply("quantizer")
        codes = jnp.take(quantizer.codebook, tokens, axis=0)
        f_hat = vq.upsample_and_phi(quantizer, codes[:, :1], 0)
        f_hat += vq.upsample_and_phi(quantizer, codes[:, 1:5], 1)
        return apply("decode_feature", f_hat)

    # Another program may round the other way.
    expected = after_two(model.params["tokenizer"], tokens)
    np.testing.assert_allclose(steps[:, 1], (np.asarray(expected) + 1) / 2 * 255, atol=0.51)
    np.testing.assert_allclose(images, (model.decode(tokens) + 1) / 2 * 255, atol=0.51)


def test_astype_computes_in_bfloat16_and_decodes_to_float32(model):
    """Weights and configs say bfloat16, and decoded images stay float32 near those of full
    precision."""
    half = model.astype("bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(half.params)} == {jnp.dtype("bfloat16")}
    assert half.config.transformer.dtype == half.config.tokenizer.param_dtype == "bfloat16"
    tokens = np.random.default_rng(0).integers(0, 16, (8, 17))
    result, exact = half.decode(tokens), model.decode(tokens)
    assert result.dtype == np.float32 and 0 < np.abs(result - exact).mean() < 0.03
    with pytest.raises(UserError, match="dtype is float64; it must be float32 or bfloat16"):
        model.astype("float64")


def test_sample_names_mistakes_in_scales_and_models(model, other, images):
    """Each error names the argument, its value and the ones that would be right."""
    quantize = {**model.params["tokenizer"]["quantize"], "codebook": np.ones((16, 4), np.float32)}
    tokenizer = {**model.params["tokenizer"], "quantize": quantize}
    stranger = Pipeline(model.config, {**model.params, "tokenizer": tokenizer})
    fewer = Pipeline(
        ModelConfig(small.TOKENIZER, dataclasses.replace(small.TRANSFORMER, num_classes=9)),
        model.params,
    )
    for call, message in (
        (
            lambda: model.sample([1], then=other),
            "keep_scales is None; it must be given together with `then`",
        ),
        (lambda: model.sample([1], keep_scales=2), "keep_scales is 2; it must be given together"),
        (
            lambda: model.sample([1], then=other, keep_scales=3),
            "keep_scales is 3; it must be a whole number from 1",
        ),
        (
            lambda: model.sample([1], then=stranger, keep_scales=2),
            "the tokenizer of `then` is another one",
        ),
        (
            lambda: model.sample([1], then=fewer, keep_scales=2),
            "the number of classes of `then` is 9",
        ),
        (lambda: model.sample([1], then=other.spread(), keep_scales=2), "spread both, or neither"),
        (lambda: model.sample([1], cfg=[1, 2]), "cfg is a list of 2; it must be of 3 numbers"),
        (lambda: model.sample([1], preset="best"), "unknown preset 'best'"),
        (
            lambda: model.sample([1], topk=3),
            "unknown sampling setting 'topk'; did you mean 'top_k'",
        ),
        (
            lambda: model.vary(images, keep_scales=0),
            "keep_scales is 0; it must be a whole number from 1 to 2",
        ),
        (
            lambda: model.edit(images, np.ones((3, 4)), keep_scales=3),
            "keep_scales is 3; .* number from 0 to 2",
        ),
    ):
        with pytest.raises(UserError, match=message):
            call()
