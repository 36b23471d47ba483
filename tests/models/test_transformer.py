"""The next-scale transformer: what logits depend on, dropout, precision, recomputation, and
attention by cache and by kernel."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from helpers import small
from helpers.cases import combinations
from var_jax.config.scales import Scales
from var_jax.io.torch_keys import abstract
from var_jax.models.tokenizer import Tokenizer
from var_jax.models.transformer import Cache, Transformer
from var_jax.ops import vq
from var_jax.ops.mixed_precision import product


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(0).integers(0, small.TOKENIZER.vocab_size, (2, small.SCALES.total))


@pytest.fixture(scope="module")
def inputs(tokens):
    tokenizer = {"params": small.pipeline().params["tokenizer"]}
    return Tokenizer(small.TOKENIZER).apply(tokenizer, tokens, method="teacher_input")


LABELS = np.array([3, 7])
MASKS = ("block_causal", "markov", "block_diagonal")
KINDS = ({}, {"shared_adaln": True}, {"class_conditioning": "start_token", "qk_norm": False})


def logits(inputs, rng=None, labels=LABELS, **changes):
    config = dataclasses.replace(small.TRANSFORMER, **changes)
    params = small.pipeline().params["transformer"]
    return jax.jit(Transformer(config).apply)({"params": params}, inputs, labels, rng)


def test_logits_depend_on_coarser_tokens_only():
    """The gradients of the logits of scale j with respect to the code vectors of scale i are
    nonzero only for i below j."""
    scales = Scales.parse("1,2,3,4")
    config = dataclasses.replace(small.TOKENIZER, scales=scales)
    sizes = dataclasses.replace(small.TRANSFORMER, scales=scales)
    random = np.random.default_rng(0)
    params = {
        part: {
            path: random.normal(size=leaf.shape).astype(np.float32) * 0.3
            for path, leaf in abstract(c).items()
        }
        for part, c in (("t", config), ("m", sizes))
    }
    tokenizer, model = (unflatten_dict(params[part], sep="/") for part in ("t", "m"))
    tokens = random.integers(0, config.vocab_size, (1, scales.total))

    def per_scale(codebooks):
        """The mean square of each scale's logits, from one codebook per scale, so that a gradient
        is of its scale alone."""
        quantizer = Tokenizer(config).apply({"params": tokenizer}, method="quantizer")
        codes = [
            jnp.take(codebooks[k], part, axis=0) for k, part in enumerate(scales.split(tokens))
        ]
        f_hats = []
        for k in range(len(scales) - 1):
            f_hats.append(vq.accumulate(quantizer, f_hats[-1] if f_hats else None, codes[k], k))
        inputs = vq.scale_inputs(quantizer, f_hats, 1)
        np.testing.assert_allclose(inputs.shape, vq.teacher_input(quantizer, tokens).shape)
        out = Transformer(sizes).apply({"params": model}, inputs, np.array([1]))
        return jnp.stack([jnp.mean(part**2) for part in scales.split(out)])

    codebooks = jnp.broadcast_to(
        tokenizer["quantize"]["codebook"], (len(scales), config.vocab_size, config.z_channels)
    )
    jacobian = jax.jit(jax.jacrev(per_scale))(codebooks)
    moved = np.asarray(jnp.abs(jacobian).max(axis=(2, 3)))  # (logits of scale j, token of scale i)
    j, i = np.indices(moved.shape)
    np.testing.assert_array_equal(moved > 0, j > i)


def test_logits_change_with_coarser_tokens_only(tokens, inputs):
    """Changing one token of a scale leaves the logits of that scale and of coarser ones as they
    were, bit for bit, and moves those of every finer scale."""
    before = np.asarray(logits(inputs))
    tokenizer = {"params": small.pipeline().params["tokenizer"]}
    for k in range(len(small.SCALES)):
        changed = tokens.copy()
        changed[:, small.SCALES.span(k).start] = (changed[:, small.SCALES.span(k).start] + 1) % 16
        after = np.asarray(
            logits(Tokenizer(small.TOKENIZER).apply(tokenizer, changed, method="teacher_input"))
        )
        end = small.SCALES.span(k).stop
        np.testing.assert_array_equal(after[:, :end], before[:, :end])
        for part in small.SCALES.split(np.abs(after - before))[k + 1 :]:
            assert part.max() > 1e-3


def test_logits_depend_on_inputs_of_their_scale_and_coarser_ones(inputs):
    """The Jacobian is nonzero for inputs of a scale's own and coarser scales, and 0 for others."""
    first, scales = small.SCALES.lengths[0], small.SCALES

    def per_scale(inputs):
        out = Transformer(small.TRANSFORMER).apply(
            {"params": small.pipeline().params["transformer"]}, inputs, LABELS
        )
        return jnp.stack([jnp.mean(part**2) for part in scales.split(out)])

    jacobian = jnp.abs(jax.jit(jax.jacrev(per_scale))(inputs)).max(axis=(1, 3))
    for j in range(len(scales)):
        for i in range(1, len(scales)):
            span = scales.span(i)
            here = jacobian[j, span.start - first : span.stop - first]
            assert bool((here > 0).all()) if j >= i else bool((here == 0).all())


@pytest.mark.long
def test_dropout_acts_with_a_key_only(inputs):
    """Without a key, and with rates of 0, the logits are those of a plain pass; with a key they
    change, and the same key gives the same logits again."""
    plain = logits(inputs)
    np.testing.assert_array_equal(plain, logits(inputs, drop_path=0.5, class_dropout=0.9))
    nothing_drops = logits(inputs, jax.random.key(0), drop_path=0.0, class_dropout=0.0)
    np.testing.assert_allclose(nothing_drops, plain, atol=1e-5)
    assert not np.allclose(
        logits(inputs, jax.random.key(0), drop_path=0.9, class_dropout=0.0), plain
    )
    same = [logits(inputs, jax.random.key(n), drop_path=0.9, class_dropout=0.0) for n in (1, 1, 2)]
    np.testing.assert_array_equal(same[0], same[1])
    assert not np.array_equal(same[0], same[2])


def test_class_dropout_is_the_label_of_no_class(inputs):
    """Each of 200 equal images has either the logits of its label or those of no class, and about a
    rate of 0.3 have the latter."""
    many, labels = jnp.tile(inputs[:1], (200, 1, 1)), np.full(200, 3)
    with_label, none = (
        logits(inputs[:1], labels=np.array([label]))[0] for label in (3, small.CLASSES)
    )
    outputs = np.asarray(logits(many, jax.random.key(5), labels, drop_path=0.0, class_dropout=0.3))
    dropped = np.abs(outputs - none).max(axis=(1, 2)) < 1e-4
    labeled = np.abs(outputs - with_label).max(axis=(1, 2)) < 1e-4
    assert (dropped ^ labeled).all() and 0.2 < dropped.mean() < 0.4


def test_drop_path_drops_whole_branches_of_an_image(inputs):
    """Its rate rises from 0 at the first block: of two blocks, the second's two branches are there
    or not."""
    many, labels = jnp.tile(inputs[:1], (200, 1, 1)), np.full(200, 3)
    out = np.asarray(logits(many, jax.random.key(1), labels, drop_path=0.5, class_dropout=0.0))
    kinds: list[list[int]] = []
    for i, image in enumerate(out):
        same = next((kind for kind in kinds if np.abs(out[kind[0]] - image).max() < 1e-3), None)
        if same is None:
            kinds.append([i])
        else:
            same.append(i)
    assert len(kinds) == 4 and all(25 < len(kind) < 80 for kind in kinds)


def test_bfloat16_computes_logits_in_float32_near_the_exact_ones(inputs):
    """The last layer is not rounded to bfloat16: few of its logits would survive that rounding
    unchanged, though the blocks before it moved them by up to a tenth."""
    exact, coarse = logits(inputs), np.asarray(logits(inputs, dtype="bfloat16"))
    assert coarse.dtype == np.float32
    assert 1e-5 < np.abs(coarse - exact).max() / np.abs(exact).max() < 0.1
    assert np.mean(coarse == coarse.astype(jnp.bfloat16).astype(np.float32)) < 0.1
    config = dataclasses.replace(small.TRANSFORMER, param_dtype="bfloat16")
    assert {leaf.dtype for leaf in abstract(config).values()} == {jnp.dtype("bfloat16")}


def test_float32_product_has_the_gradients_of_a_bfloat16_one():
    """A float32 product of bfloat16 arrays has the bfloat16 product's gradients.

    They are equal to the last bit, and the product itself is that of float64 within 1e-5.
    """
    random = np.random.default_rng(0)
    x, kernel = (
        jnp.asarray(random.normal(size=shape), jnp.bfloat16) for shape in ((2, 3, 8), (8, 5))
    )
    cotangent = jnp.asarray(random.normal(size=(2, 3, 5)), jnp.bfloat16).astype(jnp.float32)

    def wide_product(x, kernel):
        return product("bli,io->blo", x, kernel, x.dtype, kernel.dtype, wide=True)

    def gradients(multiply):
        return jax.grad(lambda x, kernel: jnp.sum(multiply(x, kernel) * cotangent), (0, 1))(
            x, kernel
        )

    narrow = gradients(lambda x, kernel: jnp.tensordot(x, kernel, 1).astype(jnp.float32))
    for wide_gradient, narrow_gradient in zip(gradients(wide_product), narrow, strict=True):
        assert wide_gradient.dtype == jnp.bfloat16
        np.testing.assert_array_equal(wide_gradient, narrow_gradient)
    exact = np.asarray(x, np.float64) @ np.asarray(kernel, np.float64)
    np.testing.assert_allclose(wide_product(x, kernel), exact, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_recomputing_changes_no_gradient(inputs):
    """Recomputation of any kind, in all blocks or some, gives the gradients of the plain pass, to
    rounding, with dropout."""
    params, rng = small.pipeline().params["transformer"], jax.random.key(0)

    def gradients(remat: str):
        model = Transformer(dataclasses.replace(small.TRANSFORMER, remat=remat))
        return jax.jit(
            jax.grad(lambda p: jnp.mean(model.apply({"params": p}, inputs, LABELS, rng) ** 2))
        )(params)

    plain = gradients("none")
    for remat in ("full", "dots", "offload", "dots:1", "offload:1", "none:1"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(
                a, b, rtol=0, atol=1e-5 * np.abs(b).max() + 1e-12
            ),
            gradients(remat),
            plain,
        )


@pytest.mark.long
@pytest.mark.parametrize(("mask", "changes"), combinations(MASKS, KINDS), ids=str)
def test_cached_logits_are_the_teacher_forced_ones_under_every_mask(mask, changes):
    """The logits agree scale by scale, and the cache holds no more than the next scale attends
    to."""
    scales = Scales.parse("1,2,3,4")
    config = dataclasses.replace(small.TRANSFORMER, scales=scales, mask=mask, **changes)
    random = np.random.default_rng(0)
    params = {
        path: random.normal(size=leaf.shape).astype(np.float32) * 0.3
        for path, leaf in abstract(config).items()
    }
    model, params = Transformer(config), {"params": unflatten_dict(params, sep="/")}
    inputs = random.normal(size=(2, scales.total - 1, config.z_channels)).astype(np.float32)

    @jax.jit
    def one_by_one(params):
        cache, parts, held = Cache(), [], []
        for k in range(len(scales)):
            held.append([entry.shape[2] for entry in cache.k])
            scale_inputs = (
                None if k == 0 else inputs[:, scales.offsets[k] - 1 : scales.offsets[k + 1] - 1]
            )
            logits, cache = model.apply(params, k, scale_inputs, LABELS, cache, method="next_scale")
            parts.append(logits)
        return jnp.concatenate(parts, axis=1), held

    cached, held = one_by_one(params)
    np.testing.assert_allclose(cached, jax.jit(model.apply)(params, inputs, LABELS), atol=2e-5)
    expected = {
        "block_causal": [[], [1], [1, 4], [1, 4, 9]],
        "markov": [[], [1], [4], [9]],
        "block_diagonal": [[], [], [], []],
    }
    assert held == expected[mask]


@pytest.mark.long
@pytest.mark.parametrize("mask", MASKS)
def test_mask_decides_which_scales_move_the_logits(mask):
    """Gradients in a model of one block are nonzero for exactly the scales that the mask names, as
    nothing reaches a scale by way of another."""
    scales = Scales.parse("1,2,3,4")
    config = dataclasses.replace(small.TRANSFORMER, depth=1, scales=scales, mask=mask)
    random = np.random.default_rng(0)
    params = {
        path: random.normal(size=leaf.shape).astype(np.float32) * 0.3
        for path, leaf in abstract(config).items()
    }
    params = {"params": unflatten_dict(params, sep="/")}
    inputs = random.normal(size=(2, scales.total - 1, config.z_channels)).astype(np.float32)

    def per_scale(inputs):
        return jnp.stack(
            [
                jnp.mean(p**2)
                for p in scales.split(Transformer(config).apply(params, inputs, LABELS))
            ]
        )

    moved = np.abs(jax.jit(jax.jacrev(per_scale))(inputs)).max(axis=(1, 3))
    moved = np.stack(
        [
            moved[:, scales.offsets[k] - 1 : scales.offsets[k + 1] - 1].max(axis=1) > 0
            for k in (1, 2, 3)
        ]
    )
    expected = {
        "block_causal": [[0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1]],
        "markov": [[0, 1, 1, 0], [0, 0, 1, 1], [0, 0, 0, 1]],
        "block_diagonal": [[0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]],
    }
    np.testing.assert_array_equal(moved, np.array(expected[mask], bool))


@pytest.mark.long
def test_splash_kernel_gives_the_same_logits_and_gradients(inputs):
    """The splash kernel, interpreted on the CPU, agrees with plain attention within a whole
    model."""
    params = small.pipeline().params["transformer"]

    def both(attention):
        model = Transformer(dataclasses.replace(small.TRANSFORMER, attention=attention))
        return jax.jit(
            jax.value_and_grad(lambda p: jnp.mean(model.apply({"params": p}, inputs, LABELS) ** 2))
        )(params)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max() + 1e-12),
        both("splash"),
        both("xla"),
    )
