"""Products in bfloat16 whose weights' gradients are float32 sums, or bfloat16 ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from var_jax.ops.mixed_precision import add_bias, convolution, last_axis_spec, product

NARROW, WIDE = jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32)


def random_array(*shape) -> jax.Array:
    return jnp.asarray(np.random.default_rng(sum(shape)).normal(size=shape), jnp.float32)


# (function of x, weight and the dtype of gradients; x; weight), and the same by JAX's own
# derivatives in float32.
CASES = {
    "linear": (
        lambda x, w, g: product(last_axis_spec(3, 1), x, w, NARROW, g),
        (4, 6, 8),
        (8, 5),
        lambda x, w: jnp.tensordot(x, w, 1),
    ),
    "heads": (
        lambda x, w, g: product("blw,wnhd->blnhd", x, w, NARROW, g),
        (4, 6, 8),
        (8, 3, 2, 4),
        lambda x, w: jnp.tensordot(x, w, 1),
    ),
    "conditions": (
        lambda x, w, g: product("bw,wnv->bnv", x, w, NARROW, g),
        (4, 128),
        (128, 6, 128),
        lambda x, w: jnp.tensordot(x, w, 1),
    ),
    "joined heads": (
        lambda x, w, g: product("blhd,hdw->blw", x, w, NARROW, g),
        (4, 6, 2, 4),
        (2, 4, 8),
        lambda x, w: jnp.tensordot(x, w, 2),
    ),
    "wide": (
        lambda x, w, g: product(last_axis_spec(3, 1), x, w, NARROW, g, wide=True),
        (4, 6, 8),
        (8, 5),
        lambda x, w: jnp.tensordot(x, w, 1),
    ),
    "bias": (
        lambda x, w, g: add_bias(x.astype(NARROW), w, g),
        (40, 6, 8),
        (6, 8),
        lambda x, w: x + w,
    ),
    "convolution": (
        lambda x, w, g: convolution(x, w, (2, 2), ((0, 1), (0, 1)), NARROW, g),
        (3, 8, 6, 4),
        (3, 3, 4, 5),
        lambda x, w: jax.lax.conv_general_dilated(
            x, w, (2, 2), ((0, 1), (0, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        ),
    ),
}


def rounded(x: jax.Array) -> jax.Array:
    return x.astype(NARROW).astype(WIDE)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("gradient_dtype", [NARROW, WIDE], ids=str)
def test_products_give_gradients_in_the_dtype_that_is_asked_for(case, gradient_dtype):
    """Operands are rounded to bfloat16, so that they are exact in float32 arithmetic. A float32
    gradient is that of float32 arithmetic, to its rounding; a bfloat16 one is a bfloat16 number."""
    function, x_shape, w_shape, plain = case
    x, w = rounded(random_array(*x_shape)), rounded(random_array(*w_shape))
    cotangent = rounded(random_array(*jax.eval_shape(plain, x, w).shape))
    result, gradients = jax.vjp(functools.partial(function, g=gradient_dtype), x, w)
    if gradient_dtype == WIDE:  # compiled, rounding between float32 operations may be left out
        gradients = jax.jit(gradients)
    expected, exact = jax.vjp(plain, x, w)
    np.testing.assert_allclose(result.astype(WIDE), expected, rtol=2**-7, atol=0.2)
    (d_x, d_w), (exact_x, exact_w) = gradients(cotangent.astype(result.dtype)), exact(cotangent)
    assert d_w.dtype == WIDE and d_x.dtype == x.dtype
    np.testing.assert_allclose(d_x, exact_x, rtol=2**-7, atol=0.2)
    if gradient_dtype == WIDE:
        np.testing.assert_allclose(d_w, exact_w, rtol=1e-5, atol=1e-4)
        assert (rounded(d_w) != d_w).any()
    else:
        np.testing.assert_allclose(d_w, exact_w, rtol=2**-7, atol=0.2)
        assert (rounded(d_w) == d_w).all()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_products_in_float32_are_plain(case):
    """Where all is float32, the dtype of gradients has no effect: results agree to a millionth of
    the largest, as sums in another order do, whose terms cancel in small results."""
    function, x_shape, w_shape, plain = case
    x, w = random_array(*x_shape), random_array(*w_shape)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "NARROW", WIDE)
        result, gradients = jax.vjp(functools.partial(function, g=jnp.dtype(jnp.bfloat16)), x, w)
    expected, exact = jax.vjp(plain, x, w)
    for actual, reference in zip(
        (result, *gradients(expected)), (expected, *exact(expected)), strict=True
    ):
        largest = np.abs(reference).max()
        np.testing.assert_allclose(actual, reference, rtol=0, atol=1e-6 * largest)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_products_are_kept_by_the_policy_that_keeps_dots(dtype):
    """A gradient whose policy keeps products computes one forward product, and that of a policy
    that keeps nothing another one in the backward pass, on a single CPU in float32 too."""
    x, kernel = jnp.ones((4, 8)), jnp.ones((8, 8))
    policies = jax.checkpoint_policies

    def products(policy) -> int:
        @functools.partial(jax.checkpoint, policy=policy, prevent_cse=False)
        def f(x, kernel):
            y = product("bz,zv->bv", x, kernel, jnp.dtype(dtype), jnp.dtype("float32"))
            return jnp.sum(jnp.sin(y.astype(jnp.float32)))

        return str(jax.make_jaxpr(jax.grad(f, argnums=(0, 1)))(x, kernel)).count("dot_general[")

    with_dots = products(policies.dots_with_no_batch_dims_saveable)
    assert with_dots == 3 and products(policies.nothing_saveable) == with_dots + 1
