"""Merged models: the formula, its ends bit for bit, and what does not merge."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import small
from var_jax import Pipeline
from var_jax.cli.main import main
from var_jax.io.model_merge import merge


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    """Two models of one configuration; every weight of the second differs from the first's."""
    base = small.pipeline()
    random = np.random.default_rng(0)
    tuned = Pipeline(
        base.config,
        jax.tree.map(lambda x: x + random.standard_normal(x.shape).astype(np.float32), base.params),
    )
    directory = tmp_path_factory.mktemp("models")
    base.save(directory / "base")
    tuned.save(directory / "tuned")
    return directory


def merged(directory, out, weight) -> Pipeline:
    names = {name: str(directory / name) for name in ("base", "tuned")}
    code = main(
        ["merge", "--base", names["base"], "--tuned", names["tuned"], f"--weight={weight}"]
        + ["--out", str(out)]
    )
    assert code == 0
    return Pipeline.from_pretrained(out)


@pytest.mark.long
@pytest.mark.parametrize("weight", [0, 1, 0.25, -0.5, 2])
def test_merge_is_the_line_through_both(directories, weight, tmp_path):
    """Each array is A + W (B - A) in float32; with W 0 and 1 they are A and B to the last bit."""
    a, b = (Pipeline.from_pretrained(directories / name).params for name in ("base", "tuned"))
    result = merged(directories, tmp_path / "out", weight)
    assert result.config == small.MODEL

    def check(merged, a, b):
        expected = {0: a, 1: b}.get(weight, a + np.float32(weight) * (b - a))
        np.testing.assert_array_equal(merged, expected)

    jax.tree.map(check, result.params, a, b)


def test_merge_keeps_the_sign_of_zero_and_the_dtype_at_its_ends():
    """A formula alone would make -0 into 0, and would round B's bits."""
    base, tuned = {"w": np.float32([-0.0, 1e8])}, {"w": np.float32([1e-9, 1])}
    assert merge(base, tuned, 0)["w"].tobytes() == base["w"].tobytes()
    assert merge(base, tuned, 1)["w"].tobytes() == tuned["w"].tobytes()
    half = {"w": jnp.ones(3, jnp.bfloat16)}
    assert merge(half, half, 0.5)["w"].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("weight", "change", "words"),
    [
        ("nan", {}, "--weight is nan"),
        ("1e39", {}, "--weight is 1e+39"),
        ("-1e300", {}, "--weight is -1e+300"),
        ("1e38", {}, "not finite"),
        ("0.5", {"transformer": {"qk_norm": False}}, "transformer.qk_norm"),
    ],
)
def test_merge_refuses_in_one_line(directories, tmp_path, capsys, weight, change, words):
    """A weight that is no number or leads to infinities, and models of two configurations, leave no
    output."""
    config = small.MODEL
    for part, values in change.items():
        changed = dataclasses.replace(getattr(config, part), **values)
        config = dataclasses.replace(config, **{part: changed})
    params = jax.tree.map(lambda x: x, small.pipeline().params)
    if change:
        del params["transformer"]["blocks"]["attn"]["log_scale"]
    Pipeline(config, params).save(tmp_path / "base")
    code = main(
        ["merge", "--base", str(tmp_path / "base"), "--tuned", str(directories / "tuned")]
        + [f"--weight={weight}", "--out", str(tmp_path / "out")]
    )
    error = capsys.readouterr().err
    assert code == 2 and error.count("\n") == 1 and words in error
    assert not (tmp_path / "out").exists()


def test_merge_refuses_other_class_names(directories, tmp_path, capsys):
    """Labels of the two models mean different things."""
    for name, classes in (("base", "ab"), ("tuned", "ba")):
        small.pipeline().save(tmp_path / name)
        names = {"class_names": list(classes)}
        (tmp_path / name / "data.json").write_text(json.dumps(names))
    code = main(
        ["merge", "--base", str(tmp_path / "base"), "--tuned", str(tmp_path / "tuned")]
        + ["--weight", "0.5", "--out", str(tmp_path / "out")]
    )
    assert code == 2 and "class names" in capsys.readouterr().err
