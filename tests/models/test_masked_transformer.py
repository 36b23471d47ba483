"""The masked-prediction network: what its logits depend on, by both paths."""

import functools

import jax
import numpy as np
import pytest

from helpers import masked
from var_jax.models import flops, init
from var_jax.models.masked_transformer import MaskedTransformer

LABELS = np.array([3, 10], np.int32)
KINDS = ({}, {"shared_adaln": True, "qk_norm": False, "depth": 2})


@pytest.fixture(scope="module")
def tokens() -> np.ndarray:
    """Two maps with four tokens masked."""
    rows = np.random.default_rng(0).integers(0, 16, (2, masked.TOKENS)).astype(np.int32)
    rows[:, [1, 4, 5, 11]] = masked.MASK
    return rows


@functools.partial(jax.jit, static_argnums=0)
def one_pass(config, params, tokens):
    return MaskedTransformer(config).apply({"params": params}, tokens, LABELS)


@functools.partial(jax.jit, static_argnums=0)
def by_passes(config, params, tokens, before):
    """Logits of `tokens` by the path that decoding takes, after a pass over other ones."""
    apply = functools.partial(MaskedTransformer(config).apply, {"params": params})
    first, modulation = apply(before, LABELS, method="first_pass")
    return first, apply(tokens, modulation, method="next_pass")


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_passes_of_decoding_are_those_of_training(kind, tokens):
    """The class's modulations, which are computed in the first pass alone, make no difference."""
    config, params = masked.transformer(**kind), masked.params(**kind)["transformer"]
    before = np.full_like(tokens, masked.MASK)
    first, second = by_passes(config, params, tokens, before)
    np.testing.assert_allclose(first, one_pass(config, params, before), atol=1e-5)
    np.testing.assert_allclose(second, one_pass(config, params, tokens), atol=1e-5)


def test_logits_of_masked_tokens_change_with_every_visible_one(tokens):
    """Attention goes both ways: each visible token moves the logits at each masked position."""
    config, params = masked.transformer(), masked.params()["transformer"]
    logits = np.asarray(one_pass(config, params, tokens))
    is_masked = tokens[0] == masked.MASK
    for position in np.flatnonzero(~is_masked):
        changed = tokens.copy()
        changed[:, position] = (changed[:, position] + 1) % masked.MASK
        moved = np.abs(np.asarray(one_pass(config, params, changed)) - logits).max(axis=(0, 2))
        assert (moved[is_masked] > 1e-4).all(), position


def test_logits_change_with_the_class(tokens):
    """The same tokens with two labels have different logits, so that the class is not ignored."""
    config, params = masked.transformer(), masked.params()["transformer"]
    logits = np.asarray(one_pass(config, params, tokens[[0, 0]]))
    assert np.abs(logits[0] - logits[1]).max() > 1e-3


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_param_count_is_that_of_the_parameters(kind):
    """The formula counts every value of the initialized parameters, for each kind of network."""
    config = masked.transformer(**kind)
    shapes = jax.tree.leaves(init.param_shapes(config))
    assert flops.param_count(config)["total"] == sum(int(np.prod(leaf.shape)) for leaf in shapes)


def test_flops_are_those_of_all_pairs_in_every_pass():
    """The count is written out for two blocks of width 16 with an MLP of 64, 16 codes and 12
    tokens: all 144 pairs are attended, and AdaLN is computed once for any number of passes."""
    config = masked.transformer(depth=2)
    a_pass = 2 * 12 * (2 * (4 * 16 * 16 + 2 * 16 * 64) + 16 * 16) + 2 * 4 * 16 * 144
    adaln = 2 * (2 * 6 + 2) * 16 * 16
    assert flops.train_flops_per_image(config) == 3 * (a_pass + adaln)
    assert flops.generation_flops(config, guided=False, evaluations=8) == 8 * a_pass + adaln
    assert flops.generation_flops(config, evaluations=8) == 2 * (8 * a_pass + adaln)


def test_training_flops_agree_with_xla():
    """The compiler counts a forward pass; norms and softmax are little beside its products."""
    config = masked.transformer(width=64, heads=1, depth=1)
    shapes = init.param_shapes(config)
    rows = jax.ShapeDtypeStruct((2, masked.TOKENS), np.int32)
    compiled = one_pass.lower(config, shapes, rows).cost_analysis()["flops"]
    assert flops.forward_flops(config) * 2 == pytest.approx(compiled, rel=0.05)
