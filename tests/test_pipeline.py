"""The public object's construction; what it computes is tested beside what computes it."""

import jax
import numpy as np
import pytest
import small

from var_jax import Pipeline, convert, model_directory


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
