import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from var_jax.errors import UserError
from var_jax.sweep import grid

A, B = grid.sweep("a", [1, 2]), grid.sweep("b", "xy")


def test_product_zip_and_chain():
    """`product` combines all members of two families, the last family varying fastest; `zip` pairs
    members by position; `chain` lists both families. They can be nested, because their results are
    families too."""
    assert grid.product(A, B) == [
        {"a": 1, "b": "x"},
        {"a": 1, "b": "y"},
        {"a": 2, "b": "x"},
        {"a": 2, "b": "y"},
    ]
    assert grid.zip(A, B) == [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]
    assert grid.chain(A, B) == [{"a": 1}, {"a": 2}, {"b": "x"}, {"b": "y"}]
    nested = grid.product(grid.chain(A, [{"a": 3}]), grid.zip(B, grid.sweep("c", [0, 1])))
    assert len(nested) == 6 and nested[-1] == {"a": 3, "b": "y", "c": 1}


def test_chain_copies_members():
    """A change of a member of the new family leaves the family that it was made from as it was."""
    family = grid.chain(A)
    family[0]["a"] = 9
    assert A[0] == {"a": 1}


def test_zip_and_product_name_conflicts():
    """`zip` refuses families of different lengths and `product` refuses two values for one key, and
    the messages have the lengths, the key and the values. Two equal values are no conflict."""
    with pytest.raises(UserError, match="families of 2, 1 members"):
        grid.zip(A, [{"c": 0}])
    with pytest.raises(UserError, match="sets a to 1 and to 3 in one run"):
        grid.product(A, [{"a": 3}])
    assert grid.product(A[:1], [{"a": 1, "b": 2}]) == [{"a": 1, "b": 2}]


@pytest.mark.parametrize(
    ("values", "value"),
    [
        (np.float64(0.001), 0.001),
        (np.float32(0.5), 0.5),
        (np.float16(0.5), 0.5),
        (np.int64(3), 3),
        (np.uint8(3), 3),
        (np.bool_(True), True),
        (np.str_("cosine"), "cosine"),
        (np.array(2.5), 2.5),
        (np.array([1, 2]), (1, 2)),
        (np.array([[1, 2], [3, 4]]), ((1, 2), (3, 4))),
        ([np.int32(1), np.float64(0.5)], [1, 0.5]),
        ((np.int32(1),), (1,)),
        ({"a": np.int8(1), "b": {"c": np.float64(2)}}, {"a": 1, "b": {"c": 2.0}}),
        (jnp.float32(0.5), 0.5),
        (jnp.arange(2), (0, 1)),
        (ml_dtypes.bfloat16(0.5), 0.5),
        (0.1, 0.1),
        ("x", "x"),
        (None, None),
        (range(2), range(2)),
    ],
)
def test_native_converts_every_kind_of_number(values, value):
    """The text of a value is what the config reads: numpy would write its type into it."""
    result = grid.native(values)
    assert result == value and type(result) is type(value) and repr(result) == repr(value)


def test_product_merges_arrays_by_value():
    """Two members that set a key to equal arrays agree, and to different ones do not: an array has
    no truth value."""
    one, same, other = ([{"keep_steps": np.array(steps)}] for steps in ([1, 2], [1, 2], [1, 3]))
    assert grid.product(one, same) == [{"keep_steps": (1, 2)}]
    with pytest.raises(UserError, match=r"sets keep_steps to \(1, 2\) and to \(1, 3\)"):
        grid.product(one, other)
    assert grid.sweep("a", np.arange(3)) == [{"a": 0}, {"a": 1}, {"a": 2}]
    assert [type(member["a"]) for member in grid.sweep("a", np.arange(3))] == [int] * 3


def test_between_has_what_a_base_needs_to_become_another_config():
    """Only keys that differ are there, nested ones dotted; a value that goes back to its default is
    one of them."""
    base = {"steps": 3, "data": {"name": "a", "size": (1, 2)}, "optimizer": {"b": {"c": 0.5}}}
    other = {"steps": 3, "data": {"name": "", "size": (1, 3)}, "optimizer": {"b": {"c": 1.5}}}
    assert grid.between(base, other) == {
        "data.name": "",
        "data.size": (1, 3),
        "optimizer.b.c": 1.5,
    }
    assert grid.between(base, base) == {}


def test_annealed_runs_branch_off_the_longest_where_their_cooldowns_begin():
    """The longest run comes first and is the trunk of the others; each cools down over the last
    fifth of its own steps, and keeps what the member has."""
    trunk, short, middle = grid.annealed({"transformer.depth": 2}, [100, 200, 400], 0.2)
    assert trunk == {"transformer.depth": 2, "steps": 400, "optimizer.cooldown_steps": 80}
    for run, steps in ((short, 100), (middle, 200)):
        assert run["branch_from"] == trunk
        assert run["branch_step"] + run["optimizer.cooldown_steps"] == run["steps"] == steps
        assert run["optimizer.cooldown_steps"] == steps // 5
        assert run["transformer.depth"] == 2
