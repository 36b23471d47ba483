"""The public object's construction; what it computes is tested beside what computes it."""

import jax
import numpy as np
import pytest
import small

from var_jax import Pipeline, convert, model_directory
from var_jax.errors import UserError


def dicts_only(tree) -> bool:
    return isinstance(tree, dict) and all(map(dicts_only, tree.values()))


@pytest.mark.parametrize("loader", [(model_directory, "load"), (convert, "from_torch")])
def test_weights_leave_the_loaders_tree_as_they_enter_the_model(loader, monkeypatch):
    """Otherwise every weight would be in memory twice until the last one is there."""
    config = small.MODEL
    loaded = jax.tree.map(np.array, small.pipeline().params)
    monkeypatch.setattr(*loader, lambda *args, **kwargs: (config, loaded))
    model = Pipeline.from_pretrained("there") if loader[1] == "load" else Pipeline.from_torch({}, scales="1")
    assert dicts_only(loaded)
    jax.tree.map(np.testing.assert_array_equal, model.params, small.pipeline().params)


def test_a_callers_own_tree_is_left_alone():
    theirs = jax.tree.map(np.array, small.pipeline().params)
    Pipeline(small.MODEL, theirs)
    jax.tree.map(np.testing.assert_array_equal, theirs, small.pipeline().params)


@pytest.mark.parametrize(("name", "values", "wanted"), [
    ("seed", (1.5, -1, 2**32, None, "1", float("nan")), "a whole number from 0 to 4294967295"),
    ("top_k", (float("nan"), float("inf"), 2.5, -1, None, "many"), "a whole number, 0 \\(off\\) or more"),
    ("cfg", (float("nan"), float("inf"), -0.1, None, "much"), "0 \\(off\\) or more"),
    ("top_p", (float("nan"), 1.1, None, "0.5"), "from 0 to 1"),
    ("temperature", (0, float("inf"), None, "hot"), "above 0"),
    ("batch_size", (0, 1.5, "all"), "a whole number of at least 1"),
])
def test_settings_out_of_range(name, values, wanted):
    for value in values:
        with pytest.raises(UserError, match=f"^{name} is {value}; it must be {wanted}"):
            small.pipeline().sample([1], **{name: value})


def test_whole_numbers_of_any_kind():
    plain = small.pipeline().sample([1, 2], seed=3, top_k=5, batch_size=2)
    other = small.pipeline().sample([1, 2], seed=np.int64(3), top_k=5.0, batch_size=np.float32(2))
    np.testing.assert_array_equal(plain, other)
