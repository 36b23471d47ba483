import pytest

from var_jax.errors import UserError
from var_jax.sweep import grid

A, B = grid.sweep("a", [1, 2]), grid.sweep("b", "xy")


def test_product_zip_and_chain():
    assert grid.product(A, B) == [{"a": 1, "b": "x"}, {"a": 1, "b": "y"}, {"a": 2, "b": "x"}, {"a": 2, "b": "y"}]
    assert grid.zip(A, B) == [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]
    assert grid.chain(A, B) == [{"a": 1}, {"a": 2}, {"b": "x"}, {"b": "y"}]
    nested = grid.product(grid.chain(A, [{"a": 3}]), grid.zip(B, grid.sweep("c", [0, 1])))
    assert len(nested) == 6 and nested[-1] == {"a": 3, "b": "y", "c": 1}


def test_members_are_copies():
    family = grid.chain(A)
    family[0]["a"] = 9
    assert A[0] == {"a": 1}


def test_what_does_not_fit_together_is_named():
    with pytest.raises(UserError, match="families of 2, 1 members"):
        grid.zip(A, [{"c": 0}])
    with pytest.raises(UserError, match="sets a to 1 and to 3 in one run"):
        grid.product(A, [{"a": 3}])
    assert grid.product(A[:1], [{"a": 1, "b": 2}]) == [{"a": 1, "b": 2}]
