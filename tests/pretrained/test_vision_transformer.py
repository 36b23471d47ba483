"""DINOv2 and CLIP against a plain numpy implementation (`helpers.numpy_vit`), with small random
weights under the published keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from helpers import numpy_vit
from var_jax.errors import UserError
from var_jax.ops.resize import resize
from var_jax.pretrained import clip_vision, dinov2, vision_transformer

RANDOM = np.random.default_rng(0)
MEAN, DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
CLIP_MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
CLIP_DEVIATION = np.array([0.26862954, 0.26130258, 0.27577711])


@pytest.fixture(scope="module")
def dino_state():
    return numpy_vit.state(numpy_vit.dinov2_shapes())


@pytest.fixture(scope="module")
def clip_state():
    return numpy_vit.state(numpy_vit.clip_shapes())


@pytest.mark.parametrize("shape", [(20, 20), (12, 28)])
def test_dinov2_class_features_are_those_of_numpy(dino_state, shape):
    """At the trained size, and at another one whose positions are interpolated down and up with the
    published offset; LayerScale, which is folded into the weights here, is a factor there."""
    images = RANDOM.uniform(0, 1, (2, *shape, 3)).astype(np.float32)
    params = dinov2.from_state(dino_state)
    actual = jax.jit(dinov2.class_features)(params, images)
    for image, features in zip(images, actual, strict=True):
        expected = numpy_vit.dinov2(dino_state, (image.astype(np.float64) - MEAN) / DEVIATION)
        np.testing.assert_allclose(features, expected, atol=2e-4)
    assert vision_transformer.sizes(params) == (128, 2, 4, 20)


@pytest.mark.parametrize("keys", ["openai", "transformers"])
def test_clip_embeddings_are_those_of_numpy(clip_state, keys):
    """Under OpenAI's keys and those of `transformers`, whose queries, keys and values are apart."""
    images = RANDOM.uniform(0, 1, (2, 20, 20, 3)).astype(np.float32)
    renamed = numpy_vit.as_transformers(clip_state) if keys == "transformers" else clip_state
    params = clip_vision.from_state(renamed)
    actual = jax.jit(clip_vision.embeddings)(params, images)
    assert actual.shape == (2, 24)
    for image, embedding in zip(images, actual, strict=True):
        normalized = (image.astype(np.float64) - CLIP_MEAN) / CLIP_DEVIATION
        np.testing.assert_allclose(
            embedding, numpy_vit.clip(clip_state, normalized), atol=2e-4, rtol=2e-4
        )
    assert vision_transformer.sizes(params) == (128, 2, 4, 20)


def test_gray_images_are_gray_ones_of_three_channels(dino_state, clip_state):
    """One channel is repeated, as for all feature networks."""
    gray = RANDOM.uniform(0, 1, (1, 20, 20, 1)).astype(np.float32)
    gray, color = jnp.asarray(gray), jnp.repeat(gray, 3, axis=-1)
    for apply, params in (
        (dinov2.class_features, dinov2.from_state(dino_state)),
        (clip_vision.embeddings, clip_vision.from_state(clip_state)),
    ):
        np.testing.assert_array_equal(apply(params, gray), apply(params, color))


@pytest.mark.parametrize("shape", [(28, 28, 1), (300, 260, 3), (224, 224, 3)])
def test_resize_is_pillows(shape):
    """Smaller, larger and equal images, of noise that the filter overshoots: but for rounding of
    Pillow's weights."""
    pixels = RANDOM.integers(0, 256, shape, dtype=np.uint8)
    image = Image.fromarray(pixels.squeeze()).resize((224, 224), Image.Resampling.BICUBIC)
    expected = np.asarray(image, np.float32).reshape(224, 224, shape[-1])
    actual = np.asarray(dinov2.as_pillow_resizes(pixels[None]))[0]
    assert np.abs(actual - expected).max() <= 1
    assert (actual == expected).mean() > 0.99


def test_wrong_files_are_refused_in_one_line(dino_state, clip_state):
    """DINO's first version, registers, another network's weights and misshapen arrays are each
    named by a key."""
    without = {key: x for key, x in dino_state.items() if ".ls" not in key}
    for state, message in (
        (without, r"no blocks\.0\.ls1\.gamma; these are weights of another network"),
        ({**dino_state, "register_tokens": np.zeros((1, 4, 128))}, "unknown key register_tokens"),
        ({**dino_state, "pos_embed": np.zeros((1, 24, 128))}, "pos_embed has 24 positions"),
        (clip_state, "weights of another network"),
    ):
        with pytest.raises(UserError, match=message) as refused:
            dinov2.from_state(state, "file.pth")
        assert "\n" not in str(refused.value) and str(refused.value).startswith("file.pth: ")
    projection = numpy_vit.as_transformers(clip_state) | {"visual_projection.weight": np.zeros(3)}
    for state, message in (
        (dino_state, "weights of another network"),
        ({k: x for k, x in clip_state.items() if k != "visual.proj"}, r"no visual\.proj"),
        (projection, r"visual_projection\.weight has the shape \(3,\); it must be any x 128"),
        ({**clip_state, "visual.attnpool.c_proj.weight": np.zeros(1)}, "unknown key visual.attn"),
    ):
        with pytest.raises(UserError, match=message) as refused:
            clip_vision.from_state(state, "file.pth")
        assert "\n" not in str(refused.value)


def test_clip_resizes_as_pytorch_does():
    """CMMD's images are resized without antialiasing: of an image of twice the size, a pixel is
    the kernel's (-3, 19, 19, -3) / 32 of four, along each side."""
    pixels = RANDOM.uniform(0, 1, (1, 8, 8, 1)).astype(np.float32)
    weights = np.array([-3, 19, 19, -3]) / 32
    expected = weights @ pixels[0, 1:5, 3:7, 0] @ weights
    np.testing.assert_allclose(
        resize(jnp.asarray(pixels), (4, 4), "bicubic")[0, 1, 2, 0], expected, rtol=1e-5
    )
