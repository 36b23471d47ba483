"""The public object's construction; what it computes is tested beside what computes it."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from helpers import small
from var_jax import Pipeline
from var_jax.config.model import ModelConfig
from var_jax.config.scales import Scales
from var_jax.errors import UserError
from var_jax.io import model_directory, torch_convert
from var_jax.models.tokenizer import Tokenizer
from var_jax.ops import vq


def dicts_only(tree) -> bool:
    return isinstance(tree, dict) and all(map(dicts_only, tree.values()))


@pytest.mark.parametrize("loader", [(model_directory, "load"), (torch_convert, "from_torch")])
def test_weights_leave_the_loaders_tree_as_they_enter_the_model(loader, monkeypatch):
    """Otherwise every weight would be in memory twice until the last one is there."""
    config = small.MODEL
    loaded = jax.tree.map(np.array, small.pipeline().params)
    monkeypatch.setattr(*loader, lambda *args, **kwargs: (config, loaded))
    model = (
        Pipeline.from_pretrained("there")
        if loader[1] == "load"
        else Pipeline.from_torch({}, scales="1")
    )
    assert dicts_only(loaded)
    jax.tree.map(np.testing.assert_array_equal, model.params, small.pipeline().params)


def test_pipeline_leaves_the_callers_tree_alone():
    """Parameters that a caller passes to the constructor are the caller's, and they stay complete
    and unchanged."""
    original = jax.tree.map(np.array, small.pipeline().params)
    Pipeline(small.MODEL, original)
    jax.tree.map(np.testing.assert_array_equal, original, small.pipeline().params)


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("seed", (1.5, -1, 2**32, None, "1", float("nan")), "a whole number from 0 to 4294967295"),
        (
            "top_k",
            (float("nan"), float("inf"), 2.5, -1, "many"),
            "a whole number, 0 \\(off\\) or more",
        ),
        ("cfg", (float("nan"), float("inf"), -0.1, "much"), "0 \\(off\\) or more"),
        ("top_p", (float("nan"), 1.1, "0.5"), "from 0 to 1"),
        ("temperature", (0, float("inf"), "hot"), "above 0"),
        ("batch_size", (0, 1.5, "all"), "a whole number of at least 1"),
    ],
)
def test_sample_names_settings_out_of_range(name, values, expected):
    """The line has the setting, its value and the range; NaN and other types are out of every
    range."""
    for value in values:
        with pytest.raises(UserError, match=f"^{name} is {value}; it must be {expected}"):
            small.pipeline().sample([1], **{name: value})


def test_sample_takes_whole_numbers_of_any_type():
    """NumPy's integers and floats that are whole give the same images."""
    plain = small.pipeline().sample([1, 2], seed=3, top_k=5, batch_size=2)
    other = small.pipeline().sample([1, 2], seed=np.int64(3), top_k=5.0, batch_size=np.float32(2))
    np.testing.assert_array_equal(plain, other)


@pytest.fixture(scope="module")
def binary():
    """The small model with binary codes, of which there are as many as it has codes."""
    parts = dict(small.pipeline().params)
    quantize = {
        name: leaf for name, leaf in parts["tokenizer"]["quantize"].items() if name != "codebook"
    }
    parts["tokenizer"] = {**parts["tokenizer"], "quantize": quantize}
    return Pipeline(
        ModelConfig(dataclasses.replace(small.TOKENIZER, codes="bsq"), small.TRANSFORMER), parts
    )


@pytest.mark.slow
def test_pipeline_of_binary_codes_samples_and_saves(binary, tmp_path):
    """Images are those of the sampled tokens, mixed codes give others, and the loaded model has the
    same parameters."""
    images, tokens = binary.sample([1, 2, 3], seed=3, return_tokens=True)
    np.testing.assert_allclose(images, (binary.decode(tokens) + 1) / 2, atol=1e-5)
    mixed = binary.sample([1, 2, 3], seed=3, smooth=True)
    assert mixed.shape == images.shape and not np.allclose(mixed, images, atol=1e-3)
    binary.save(tmp_path / "model")
    loaded = Pipeline.from_pretrained(tmp_path / "model")
    assert loaded.config == binary.config
    jax.tree.map(np.testing.assert_array_equal, loaded.params, binary.params)


def test_to_torch_refuses_binary_codes(binary):
    """The published format has no binary codes, so that their export is refused with the key and
    the values that can be exported."""
    with pytest.raises(
        UserError, match="tokenizer.codes is 'bsq'; it must be 'euclidean' or 'cosine'"
    ):
        binary.to_torch()


def test_sample_refuses_to_mix_too_many_binary_codes():
    """Mixing needs all codes at once, which 2^17 exceed."""
    sizes = {"vocab_size": 2**17, "z_channels": 17}
    config = ModelConfig(
        dataclasses.replace(small.TOKENIZER, codes="bsq", **sizes),
        dataclasses.replace(small.TRANSFORMER, **sizes),
    )
    params = dict(small.pipeline().params)
    kernel, bias = np.zeros((2, 3, 3, 17, 17), np.float32), np.zeros((2, 17), np.float32)
    params["tokenizer"] = {
        **params["tokenizer"],
        "quantize": {"phi_kernel": kernel, "phi_bias": bias},
    }
    with pytest.raises(UserError, match="at most 65536 codes .smooth sampling"):
        Pipeline(config, params).sample([1], smooth=True)


@pytest.mark.parametrize(
    "scales", ["1x1,1x2,2x4", pytest.param("1,2x1,2,4,5x6,6x8", marks=pytest.mark.slow)]
)
def test_with_scales_encodes_and_decodes_at_other_scales(scales):
    """The result is that of the quantizer's functions on weights and scales put together by
    hand."""
    model = small.pipeline()
    other, sizes = model.with_scales(scales), Scales.parse(scales)
    shape = (2 * sizes.finest[0], 2 * sizes.finest[1], 1)
    assert other.config.tokenizer.image_shape == shape and other.config.transformer is None
    images = np.random.default_rng(0).uniform(-1, 1, (2, *shape)).astype(np.float32)
    tokens = other.encode(images)
    apply = jax.jit(
        lambda p, x: Tokenizer(small.TOKENIZER).apply({"params": p}, x, method="features")
    )
    weights = model.params["tokenizer"]["quantize"]
    quantizer = vq.Quantizer(
        weights["codebook"], weights["phi_kernel"], weights["phi_bias"], scales=sizes
    )
    np.testing.assert_array_equal(
        tokens, jax.jit(vq.quantize)(quantizer, apply(model.params["tokenizer"], images)).tokens
    )
    np.testing.assert_allclose(other.decode(tokens), other.reconstruct(images)[-1], atol=1e-4)
    with pytest.raises(UserError, match="a tokenizer alone"):
        other.sample([1])


def test_with_scales_needs_as_many_scales_as_convolutions():
    """A tokenizer with a convolution per scale takes as many other scales."""
    one_each = dataclasses.replace(small.TOKENIZER, phi=0)
    model = Pipeline(ModelConfig(one_each), {"tokenizer": {}})
    assert model.with_scales("1,2,6x8").config.tokenizer.scales == Scales.parse("1,2,6x8")
    with pytest.raises(
        UserError, match="^the number of scales is 4; it must be 3, as this tokenizer has one"
    ):
        model.with_scales("1,2,4,8")
    with pytest.raises(UserError, match="coarse to fine"):
        model.with_scales("4,2")


@pytest.mark.parametrize(("room", "expected"), [(5.5, 4), (0.2, 1), (10**6, 64), (None, 64)])
def test_default_batch_size_fills_half_of_what_the_weights_leave(monkeypatch, room, expected):
    """Half of the memory beside the weights has room for 5.5 images: the batch is 4, the next lower
    power of two. It is at least 1 and at most 64."""
    model = small.pipeline()
    t, v = small.TRANSFORMER, small.TOKENIZER
    height, width, _ = v.image_shape
    bytes_per_image = (
        2 * 2 * t.depth * t.scales.total * t.width * 4 + 4 * height * width * v.channels * 4
    )
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
    stats = None if room is None else {"bytes_limit": int(weights + 2 * room * bytes_per_image)}
    monkeypatch.setattr(jax, "local_devices", lambda: [SimpleNamespace(memory_stats=lambda: stats)])
    assert model.default_batch_size(seed=0, cfg=1.5) == expected
