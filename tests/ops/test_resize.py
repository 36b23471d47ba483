"""Against numbers stated by hand; agreement with PyTorch itself is shown by the reference cases of
test_parity."""

import jax.numpy as jnp
import numpy as np
import pytest

from var_jax.ops.resize import matrix, resize


def test_area_windows_of_a_ratio_that_is_not_whole():
    """Windows of 5 to 3 pixels overlap, as PyTorch's do, and each is averaged."""
    # 5 to 3: windows [0, 2), [1, 4), [3, 5)
    expected = [[1 / 2, 1 / 2, 0, 0, 0], [0, 1 / 3, 1 / 3, 1 / 3, 0], [0, 0, 0, 1 / 2, 1 / 2]]
    np.testing.assert_allclose(matrix(5, 3, "area"), expected, rtol=1e-6)


def test_bicubic_kernel_of_a_doubling():
    """The inner weights are those of Keys' kernel with a = -0.75, PyTorch's."""
    # Keys' kernel with a = -0.75 a quarter and three quarters of a pixel away
    inner = matrix(8, 16, "bicubic")[8]
    np.testing.assert_allclose(
        inner[2:6], [-0.03515625, 0.26171875, 0.87890625, -0.10546875], rtol=1e-6
    )


@pytest.mark.parametrize("method", ["area", "bicubic", "bilinear", "bilinear_tensorflow1"])
@pytest.mark.parametrize("source, target", [(1, 4), (4, 1), (5, 3), (3, 5), (13, 16), (16, 13)])
def test_resize_keeps_constants(method, source, target):
    """The weights of every output pixel sum to 1, with each method, up and down."""
    np.testing.assert_allclose(matrix(source, target, method).sum(axis=1), 1, rtol=1e-6)


def test_bilinear_repeats_the_border():
    """Pixels beyond the border count as those at the border."""
    np.testing.assert_allclose(
        matrix(2, 4, "bilinear"), [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]], rtol=1e-6
    )


def test_bilinear_of_tensorflow_1_takes_corners_for_centers():
    """Pixel i lies at i s/t: every second one of a doubling is a pixel itself, and the last one
    repeats the border."""
    np.testing.assert_allclose(
        matrix(2, 4, "bilinear_tensorflow1"), [[1, 0], [0.5, 0.5], [0, 1], [0, 1]], rtol=1e-6
    )
    third = [[1, 0, 0, 0], [0, 2 / 3, 1 / 3, 0], [0, 0, 1 / 3, 2 / 3]]
    np.testing.assert_allclose(matrix(4, 3, "bilinear_tensorflow1"), third, rtol=1e-6)


def test_sides_are_resized_independently():
    """Halving a 4 x 6 image is the mean over its 2 x 2 windows, and the same size returns the same
    array."""
    x = jnp.arange(2 * 4 * 6 * 3, dtype=jnp.float32).reshape(2, 4, 6, 3)
    y = resize(x, (2, 3), "area")
    np.testing.assert_allclose(y, x.reshape(2, 2, 2, 3, 2, 3).mean(axis=(2, 4)), rtol=1e-6)
    assert resize(x, (4, 6), "bicubic") is x
