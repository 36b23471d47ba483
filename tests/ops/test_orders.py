"""Orders of a token map against the published tables, and what is no order of it."""

import numpy as np
import pytest

from var_jax.errors import UserError
from var_jax.ops import orders

TABLES = {
    "raster": list(range(16)),
    "zcurve": [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15],
    "spiral_out": [9, 5, 6, 10, 14, 13, 12, 8, 4, 0, 1, 2, 3, 7, 11, 15],
    "spiral_in": [15, 11, 7, 3, 2, 1, 0, 4, 8, 12, 13, 14, 10, 6, 5, 9],
    "alternate": [0, 1, 2, 3, 7, 6, 5, 4, 8, 9, 10, 11, 15, 14, 13, 12],
    "subsample": [0, 2, 8, 10, 1, 3, 9, 11, 4, 6, 12, 14, 5, 7, 13, 15],
}


@pytest.mark.parametrize("order", TABLES)
def test_forward_is_the_published_table_at_4x4(order):
    """Each order of a 4x4 map visits its tokens as the published table says."""
    np.testing.assert_array_equal(orders.forward(order, (4, 4)), TABLES[order])


def test_forward_of_a_spiral_at_2x2_and_by_its_short_name():
    """`spiral` is short for the published spiral, whose first token is at the center's lower
    left."""
    np.testing.assert_array_equal(orders.forward("spiral", (2, 2)), [2, 0, 1, 3])


@pytest.mark.parametrize(
    ("order", "size"),
    [(order, (8, 8)) for order in orders.ORDERS]
    + [(order, (3, 5)) for order in ("raster", "zcurve", "alternate", "subsample")]
    + [("3,1,2,0,4,5", (2, 3))],
)
def test_inverse_undoes_forward(order, size):
    """A sequence is tokens[forward], and tokens are sequence[inverse], also of maps whose sides are
    no powers of two."""
    forward = orders.forward(order, size)
    tokens = np.random.default_rng(0).permutation(size[0] * size[1])
    np.testing.assert_array_equal(tokens[forward][orders.inverse(forward)], tokens)


@pytest.mark.parametrize(
    ("order", "size", "value"),
    [
        ("spiral", (3, 3), "3x3"),
        ("spiral_in", (2, 4), "2x4"),
        ("zigzag", (4, 4), "zigzag"),
        ("0,1,2", (2, 2), "list of 3"),
        ("0,1,2,2", (2, 2), "list of 4"),
    ],
)
def test_forward_names_what_is_no_order_of_the_map(order, size, value):
    """An order that the map's size or the list's numbers rule out is refused in one line with its
    value."""
    with pytest.raises(UserError, match=rf"transformer\.order is .*{value}") as caught:
        orders.forward(order, size)
    assert "\n" not in str(caught.value)
