"""The next-token network: what each token depends on in every order, by both paths."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import next_token
from var_jax.models import flops, init
from var_jax.models.token_transformer import TokenTransformer
from var_jax.ops import orders

PERMUTATION = "5,3,0,15,7,9,1,2,14,4,6,8,10,11,13,12"
ORDERS = ("raster", "zcurve", "spiral", "spiral_in", "alternate", "subsample", PERMUTATION)
KINDS = ({}, {"class_conditioning": "start_token"}, {"shared_adaln": True, "qk_norm": False})
TOKENS = np.random.default_rng(0).integers(0, 16, (2, 16)).astype(np.int32)
LABELS = np.array([3, 10], np.int32)


@functools.partial(jax.jit, static_argnums=0)
def teacher_forced(config, params, tokens):
    """Logits of the sequence, in its order, by one pass."""
    logits = TokenTransformer(config).apply({"params": params}, tokens, LABELS)
    return logits[:, orders.forward(config.order, (4, 4))]


@functools.partial(jax.jit, static_argnums=0)
def cached(config, params, tokens):
    """The same by the path that sampling takes."""
    apply = functools.partial(TokenTransformer(config).apply, {"params": params})
    sequence = tokens[:, orders.forward(config.order, (4, 4))]
    first, state = apply(LABELS, method="first_token")

    def step(state, token):
        logits, state = apply(token, state, method="next_token")
        return state, logits

    _, later = jax.lax.scan(step, state, sequence[:, :-1].T)
    return jnp.concatenate([first[None], later]).swapaxes(0, 1)


@pytest.mark.long
@pytest.mark.parametrize("order", ORDERS)
def test_cached_logits_are_those_of_teacher_forcing(order):
    """Sampling with a cache, one token after another, computes what one pass over all tokens
    computes, in every order."""
    config, params = next_token.transformer(order=order), next_token.params()["transformer"]
    np.testing.assert_allclose(
        cached(config, params, TOKENS), teacher_forced(config, params, TOKENS), atol=1e-4
    )


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS[1:], ids=str)
def test_cached_logits_of_other_kinds_are_those_of_teacher_forcing(kind):
    """The other kinds are plain LayerNorm with the class as a start token, and shared AdaLN."""
    config = next_token.transformer(**kind)
    params = next_token.params(**kind)["transformer"]
    by_cache = cached(config, params, TOKENS)
    np.testing.assert_allclose(by_cache, teacher_forced(config, params, TOKENS), atol=1e-4)
    assert np.abs(by_cache[0] - by_cache[1]).max() > 1e-3


@pytest.mark.parametrize("path", [teacher_forced, cached], ids=lambda path: path.__name__)
@pytest.mark.parametrize("order", ORDERS)
def test_token_changes_only_later_logits(path, order):
    """Another token at position p of the order leaves logits at positions up to p as they were to
    the last bit, and moves the next one."""
    config, params = next_token.transformer(order=order), next_token.params()["transformer"]
    before = np.asarray(path(config, params, TOKENS))
    forward = orders.forward(order, (4, 4))
    for position in (0, 5, 14):
        changed = TOKENS.copy()
        changed[:, forward[position]] = (changed[:, forward[position]] + 1) % 16
        moved = np.abs(np.asarray(path(config, params, changed)) - before).max(axis=(0, 2))
        assert (moved[: position + 1] == 0).all() and moved[position + 1] > 1e-4


@pytest.mark.long
@pytest.mark.parametrize("path", [teacher_forced, cached], ids=lambda path: path.__name__)
@pytest.mark.parametrize("order", ORDERS)
def test_gradient_of_logits_reaches_earlier_tokens_alone(path, order):
    """Each place of the map has a token of its own, so that a row of the table is one place's: the
    logits at a position of the order have a gradient by every token before it, and none by their
    own or a later one."""
    config, params = next_token.transformer(order=order), next_token.params()["transformer"]
    token_of_place = np.random.default_rng(0).permutation(16)
    tokens = np.tile(token_of_place, (len(TOKENS), 1))

    def sums(table):
        logits = path(config, {**params, "token_embed": table}, tokens)
        return jnp.sum(logits**2, axis=(0, 2))

    slopes = np.abs(jax.jacrev(sums)(params["token_embed"])).sum(axis=-1)
    forward = orders.forward(order, (4, 4))
    by_position = slopes[:, token_of_place[forward]]
    earlier = np.tril(np.ones((16, 16), bool), -1)
    assert (by_position[~earlier] == 0).all() and (by_position[earlier] > 0).all()


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_param_count_is_that_of_the_parameters(kind):
    """The formula counts every value of the initialized parameters, for each kind of network."""
    config = next_token.transformer(**kind)
    shapes = jax.tree.leaves(init.param_shapes(config))
    assert flops.param_count(config)["total"] == sum(int(np.prod(leaf.shape)) for leaf in shapes)
