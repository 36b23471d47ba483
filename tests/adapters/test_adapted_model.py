"""Adapters merged into a model in memory: exact sums, exact removal, new classes, wrong bases."""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from helpers import adapters, small
from var_jax.adapters import adapter_file
from var_jax.data.model_fingerprint import model_fingerprint
from var_jax.errors import UserError

TARGETS = {"blocks/attn/qkv", "blocks/attn/proj", "blocks/fc1/kernel", "blocks/fc2/kernel"}


@pytest.fixture(scope="module")
def model():
    return small.pipeline()


@pytest.fixture(scope="module")
def first(tmp_path_factory, model):
    """An adapter of all linears that LoRA changes by default."""
    return adapters.random_adapter(tmp_path_factory.mktemp("a") / "first", model, 0)


@pytest.fixture(scope="module")
def second(tmp_path_factory, model):
    """An adapter of some linears, with two new classes."""
    return adapters.random_adapter(
        tmp_path_factory.mktemp("a") / "second",
        model,
        1,
        starts=(None, 3),
        targets="qkv,head,ada",
        classes="mug,cup",
    )


def leaves(model) -> dict[str, np.ndarray]:
    """Returns the transformer's parameters by their paths, on the host."""
    flat = flatten_dict(model.params["transformer"], sep="/")
    return {path: np.asarray(leaf) for path, leaf in flat.items()}


def assert_same(model, other):
    """Asserts that two models are equal to the last bit."""
    assert model.config == other.config and model.class_names == other.class_names
    jax.tree.map(np.testing.assert_array_equal, model.params, other.params)


def test_with_adapter_merges_the_product_into_targets_alone(model, first):
    """W + w * alpha / r * A B on each target, whatever the weight's sign; all other parameters are
    the base's, and the base itself stays as it was."""
    before = {path: leaf.copy() for path, leaf in leaves(model).items()}
    adapted = leaves(model.with_adapter(first, -0.7))
    factors = adapter_file.load(first).params["lora"]["proj"]
    product = np.einsum("lhdr,lrw->lhdw", factors["a"], factors["b"])
    expected = before["blocks/attn/proj"] - 0.7 * 3 / 2 * product
    np.testing.assert_allclose(adapted["blocks/attn/proj"], expected, rtol=1e-5, atol=1e-6)
    changed = {path for path in before if not np.array_equal(adapted[path], before[path])}
    assert changed == TARGETS
    for path, leaf in leaves(model).items():
        np.testing.assert_array_equal(leaf, before[path], err_msg=path)


def test_with_adapter_sums_without_cross_terms(model, first, second):
    """The change by two adapters is the sum of the changes by each, to the rounding of one addition
    in float32, and their order does not matter to the last bit."""
    base, one, other = (
        leaves(m) for m in (model, model.with_adapter(first, 2), model.with_adapter(second, -0.5))
    )
    both = model.with_adapter(first, 2).with_adapter(second, -0.5)
    for path in TARGETS | {"head/kernel", "blocks/ada/kernel"}:
        exact = base[path] + (one[path] - base[path]) + (other[path] - base[path])
        np.testing.assert_allclose(leaves(both)[path], exact, rtol=0, atol=1e-5, err_msg=path)
    assert_same(both, model.with_adapter(second, -0.5).with_adapter(first, 2))


def test_without_adapter_is_the_model_before_to_the_last_bit(model, first, second):
    """An adapter that is taken out of a chain leaves nothing behind, its classes neither; weights
    of one adapter add up, and cancel."""
    both = model.with_adapter(second, 0.3).with_adapter(first, 0.25)
    assert_same(both.without_adapter(second), model.with_adapter(first, 0.25))
    assert_same(both.without_adapter(second).without_adapter(first), model)
    assert_same(model.with_adapter(first, 0.1).with_adapter(first, -0.1), model)
    assert_same(both.with_adapter(first, 0.75), model.with_adapter(second, 0.3).with_adapter(first))
    with pytest.raises(UserError, match="no adapter of .*first"):
        model.without_adapter(first)


def test_with_adapter_appends_classes_before_no_class(model, second, tmp_path):
    """New rows are the starting ones plus the weighted change; "no class" stays the last, and the
    new classes of a further adapter follow."""
    table = leaves(model)["class_embed"]
    adapted = model.with_adapter(second, 0.5)
    change = adapter_file.load(second).params["class_rows"]
    extended = leaves(adapted)["class_embed"]
    np.testing.assert_array_equal(extended[:10], table[:10])
    np.testing.assert_array_equal(extended[-1], table[-1])
    starts = np.stack([table[:10].mean(axis=0), table[3]])
    np.testing.assert_allclose(extended[10:12], starts + 0.5 * change, rtol=1e-5, atol=1e-6)
    assert adapted.config.transformer.num_classes == 12
    assert adapted.class_names == (*map(str, range(10)), "mug", "cup")
    third = adapters.random_adapter(tmp_path / "third", model, 2, kind="class_rows", classes="jar")
    longer = adapted.with_adapter(third)
    assert longer.class_names[-3:] == ("mug", "cup", "jar")
    np.testing.assert_array_equal(leaves(longer)["class_embed"][:12], extended[:12])
    again = adapters.random_adapter(tmp_path / "again", model, 3, classes="jar")
    with pytest.raises(UserError, match="'jar'.*name of no other class"):
        longer.with_adapter(again)


def test_with_adapter_keeps_the_devices(model, second):
    """A model on two devices stays on both, and has the same weights as on one."""
    spread = model.spread(jax.devices()[:2]).with_adapter(second)
    assert_same(spread, model.with_adapter(second))
    assert len(jax.tree.leaves(spread.params)[0].devices()) == 2
    assert_same(spread.without_adapter(second), model)


def test_with_adapter_refuses_another_base_and_wrong_weights(model, first, tmp_path):
    """The message has both fingerprints; a weight must be a finite number, and a directory without
    an adapter, or with a damaged one, is named."""
    other = model.astype("bfloat16")
    fingerprint = adapter_file.load(first).fingerprint
    other_fingerprint = model_fingerprint(other.config, other.params)
    with pytest.raises(UserError, match=f"{first}.*{fingerprint}.*{other_fingerprint}"):
        other.with_adapter(first)
    for weight in (float("nan"), float("inf"), 1e39, "much"):
        with pytest.raises(UserError, match=r"weight of the adapter.*finite"):
            model.with_adapter(first, weight)
    with pytest.raises(UserError, match=f"{first} holds an adapter; save the model to another"):
        model.with_adapter(first).save(first)
    with pytest.raises(UserError, match=f"no adapter in {tmp_path}"):
        model.with_adapter(tmp_path)
    content = (first / adapter_file.NAME).read_bytes()
    for damaged in (b"", content[:100], content[:-4], b"\xff" * 64):
        (tmp_path / adapter_file.NAME).write_bytes(damaged)
        with pytest.raises(UserError, match=str(tmp_path)):
            model.with_adapter(tmp_path)
    (tmp_path / adapter_file.NAME).write_bytes(content.replace(b"base_fing", b"best_fing"))
    with pytest.raises(UserError, match=r"is no adapter's file"):
        model.with_adapter(tmp_path)
