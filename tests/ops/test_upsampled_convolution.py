"""A convolution of an upsampled map without upsampling it."""

import jax
import jax.numpy as jnp
import numpy as np

from var_jax.ops import upsampled_convolution


def test_by_phase_is_the_convolution_of_the_upsampled_map():
    """On a map with an odd side, where borders matter, the value and both gradients are those of
    upsampling and convolving, to float32 rounding."""
    keys = jax.random.split(jax.random.key(0), 3)
    x, kernel = jax.random.normal(keys[0], (2, 3, 4, 5)), jax.random.normal(keys[1], (3, 3, 5, 6))

    def plain(x, kernel):
        return jax.lax.conv_general_dilated(
            jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2),
            kernel,
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    expected, expected_vjp = jax.vjp(plain, x, kernel)
    y, vjp = jax.vjp(upsampled_convolution.by_phase, x, kernel)
    cotangent = jax.random.normal(keys[2], expected.shape)
    for actual, reference in zip(
        (y, *vjp(cotangent)), (expected, *expected_vjp(cotangent)), strict=True
    ):
        scale = float(jnp.abs(reference).max())
        np.testing.assert_allclose(actual, reference, rtol=0, atol=1e-6 * scale)
