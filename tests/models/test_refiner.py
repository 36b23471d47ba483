"""The logit refiner: where it starts, what a token sees, and its sizes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import refiners, small
from var_jax.config.model import ModelConfig, TransformerConfig
from var_jax.config.refiner_config import RefinerConfig
from var_jax.errors import UserError
from var_jax.models import flops, init, refiner

pytestmark = pytest.mark.usefixtures("compiled_fast")

ROWS = 2
LABELS = np.array([1, small.CLASSES], np.int32)
FIRST_SCALES = dataclasses.replace(refiners.CONFIG, last_scale=1)


@pytest.fixture(scope="module")
def base() -> refiner.Predictions:
    """The tiny model's own logits and hidden states of random tokens."""
    inputs = np.random.RandomState(1).standard_normal((ROWS, small.SCALES.total - 1, 4))
    params = small.pipeline().params["transformer"]
    return refiner.predictions(small.TRANSFORMER, params, jnp.float32(inputs), LABELS)


def tokens() -> np.ndarray:
    return np.random.RandomState(0).randint(0, 16, (ROWS, small.SCALES.total)).astype(np.int32)


def refined(base, params, tokens, config=refiners.CONFIG):
    module = refiner.Refiner(config, small.TRANSFORMER)
    return np.asarray(jax.jit(module.apply)({"params": params}, *base, tokens))


@pytest.mark.long
def test_refiner_starts_at_the_models_own_logits(base):
    """At initialization the refined logits are the model's to the last bit, and with other weights
    they are not at any token."""
    np.testing.assert_array_equal(refined(base, refiners.fresh_params(), tokens()), base.logits)
    moved = np.abs(refined(base, refiners.random_params(), tokens()) - base.logits)
    assert np.all(moved.max(axis=-1) > 1e-3)


def test_token_sees_those_before_it_in_its_scale_alone(base):
    """Changing one token changes the refined logits of the later tokens of its scale, and no other
    number to the last bit; the last scale's 12 tokens begin at 5."""
    params, before = refiners.random_params(), tokens()
    after = before.copy()
    after[:, 8] = (after[:, 8] + 1) % 16
    changed = refined(base, params, after) != refined(base, params, before)
    assert np.all(changed.any(axis=(0, 2)) == (np.arange(small.SCALES.total) > 8))


def test_scales_after_the_last_one_are_not_refined(base):
    """Up to `last_scale` every token's logits are refined, and after it none is; those of the first
    scales are as if there were no others."""
    params = refiners.random_params(FIRST_SCALES)
    result = refined(base, params, tokens(), FIRST_SCALES)
    stop = small.SCALES.offsets[2]
    np.testing.assert_array_equal(result[:, stop:], base.logits[:, stop:])
    assert np.all((result[:, :stop] != base.logits[:, :stop]).any(axis=(0, 2)))
    alone = refiner.Predictions(base.logits[:, :stop], base.hidden[:, :stop])
    first = refined(alone, params, tokens()[:, :stop], FIRST_SCALES)
    np.testing.assert_allclose(first, result[:, :stop], rtol=1e-5, atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("k", range(len(small.SCALES)))
def test_cached_steps_are_teacher_forcing(base, k):
    """Token by token, with keys and values cached, a scale's changes of the logits are those of all
    of its tokens at once."""
    params, span = refiners.random_params(), small.SCALES.span(k)
    module = refiner.Refiner(refiners.CONFIG, small.TRANSFORMER)
    expected = refined(base, params, tokens()) - base.logits
    hidden, own = base.hidden[:, span], tokens()[:, span]

    @jax.jit
    def by_token(params):
        change, state = module.apply({"params": params}, k, hidden, method="first_token")
        changes = [change]
        for token in own.T[:-1]:
            change, state = module.apply({"params": params}, token, state, method="next_token")
            changes.append(change)
        return jnp.stack(changes, axis=1)

    np.testing.assert_allclose(by_token(params), expected[:, span], rtol=1e-4, atol=1e-5)


def test_flops_are_counted_by_the_definition():
    """The count is that of a refiner's matrices written out: per token and block 12 w^2 and one
    product from the hidden states and to the codes; n (n + 1) / 2 pairs in a scale of n tokens."""
    width, own = 16, 8
    matrices = 2 * 12 * own**2 + (width + 16) * own
    pairs = 1 + 4 * 5 / 2 + 12 * 13 / 2
    expected = 2 * 17 * matrices + 4 * 2 * own * pairs
    assert flops.refiner_flops(refiners.CONFIG, small.TRANSFORMER) == expected
    assert flops.refiner_flops(FIRST_SCALES, small.TRANSFORMER) == (
        2 * 5 * matrices + 4 * 2 * own * 11
    )


def test_refiner_of_a_released_size_is_a_ninth_of_the_model():
    """Depth 16 has 310 million parameters, and two blocks of its width with their ends 35 million,
    11.4 % of them; all shapes are those of the sizes, without an array."""
    model = TransformerConfig(depth=16)
    shapes = refiner.param_shapes(RefinerConfig(), model)
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    of_model = sum(leaf.size for leaf in jax.tree.leaves(init.param_shapes(model)))
    assert shapes["blocks"]["attn"]["qkv"].shape == (2, 1024, 3, 16, 64)
    assert shapes["token_embed"].shape == (4097, 1024)
    assert count == 35_332_128 and count / of_model == pytest.approx(0.1139, abs=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depth": 0}, "refiner.depth is 0"),
        ({"width": 12}, "refiner.width is 12; it must be a multiple of 8"),
        ({"last_scale": -2}, "refiner.last_scale is -2"),
        ({"last_scale": 3}, "refiner.last_scale is 3.*at most 2"),
    ],
    ids=str,
)
def test_refiner_config_refuses_values_by_name(settings, message):
    """The line has the key, its value and what would be right."""
    with pytest.raises(UserError, match=message):
        ModelConfig(small.TOKENIZER, small.TRANSFORMER, RefinerConfig(**settings))
