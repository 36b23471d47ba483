"""The frozen networks that images are compared by, and their published preprocessing."""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp

from var_jax.errors import UserError
from var_jax.evaluate.features import FeatureNetwork
from var_jax.ops.normalize import normalize_images
from var_jax.ops.resize import resize
from var_jax.pretrained import (
    clip_vision,
    dinov2,
    efficientnet,
    inception,
    inception_graph,
    vision_transformer,
    weights,
)

SIDE = 64  # side in pixels of the input of both EfficientNets
CMMD = "cmmd"  # the key of the distance by CLIP, the only one that is no Fréchet distance
Kind = Literal["efficientnet", "efficientnet_lite2", "inception", "dinov2", "clip"]
IN_PACKAGES = ("efficientnet", "efficientnet_lite2")  # kinds whose weights a package has
# What a file of each network that needs one is called, for messages.
FILES = {
    "inception": (
        "the ADM evaluator's classify_image_graph_def.pb or pytorch-fid's "
        "pt_inception-2015-12-05-6726825d.pth"
    ),
    "dinov2": "dinov2_vitl14_pretrain.pth of facebookresearch/dinov2",
    "clip": "model.safetensors of openai/clip-vit-large-patch14-336",
}


def load(kind: Kind, path: str = "") -> FeatureNetwork:
    """Returns a network with its weights.

    Args:
      kind: "efficientnet" (Lite0) and "efficientnet_lite2", at 64 x 64 pixels (bilinear,
        antialiased), in [-1, 1]; "inception", at 299 x 299; "dinov2", at 224 x 224, for FD-DINOv2
        (Stein et al., arXiv 2306.04675); or "clip", at its own size, for CMMD (Jayasumana et al.,
        arXiv 2401.09603).
      path: path of the weights; for EfficientNets "" is the installed package, for the others a
        file is needed. That of Inception is the frozen graph of the ADM evaluator (`.pb`), or
        weights in torchvision's layout.
    Raises:
      UserError: there are no weights, or they are another network's.
    """
    if not path and kind not in IN_PACKAGES:
        by_weights = "by --weights, or " if kind == "inception" else ""
        raise UserError(
            f"features {kind!r} need a file of weights, such as {FILES[kind]}; name it "
            f"{by_weights}as --features {kind}:FILE"
        )
    return LOADERS[kind](path)


def _load_efficientnet(path: str, size: efficientnet.Size, key: str) -> FeatureNetwork:
    params = efficientnet.load(path, size)
    return FeatureNetwork(
        f"{size.name} {SIDE} px",
        f"Fréchet distance, {size.name} {SIDE} px",
        "",
        weights.fingerprint(efficientnet.find_weights(path, size)),
        f"bilinear and antialiased to {SIDE} x {SIDE}",
        efficientnet.pooled_width(params),
        params,
        _efficientnet,
        key=key,
    )


def _load_dinov2(path: str) -> FeatureNetwork:
    params = dinov2.load(path)
    sizes = vision_transformer.sizes(params)
    is_large = sizes == dinov2.LARGE
    size = "ViT-L/14" if is_large else _described(sizes)
    return FeatureNetwork(
        f"DINOv2 {size}",
        "FD-DINOv2" if is_large else f"Fréchet distance, DINOv2 {size}",
        "",
        weights.fingerprint(path),
        f"Pillow's bicubic to {dinov2.SIDE} x {dinov2.SIDE}",
        sizes.width,
        params,
        _dinov2,
        key="fd_dinov2",
    )


def _dinov2(params: Any, images: jax.Array):
    return dinov2.class_features(params, dinov2.as_pillow_resizes(images) / 255), None


def _load_clip(path: str) -> FeatureNetwork:
    params = clip_vision.load(path)
    sizes = vision_transformer.sizes(params)
    side, is_large = sizes.side, sizes == clip_vision.LARGE
    size = f"ViT-L/14 {side} px" if is_large else _described(sizes)
    return FeatureNetwork(
        f"CLIP {size}",
        "CMMD" if is_large else f"1000 times the squared MMD, CLIP {size}",
        "",
        weights.fingerprint(path),
        f"bicubic to {side} x {side} without antialiasing; embeddings of length 1",
        params["projection"].shape[1],
        params,
        functools.partial(_clip, side=side),
        key=CMMD,
    )


def _described(sizes: vision_transformer.Sizes) -> str:
    return f"of width {sizes.width} and depth {sizes.depth}, {sizes.patch} px of {sizes.side}"


def _clip(params: Any, images: jax.Array, side: int):
    resized = resize(images.astype(jnp.float32) / 255, (side, side), "bicubic")
    embeddings = clip_vision.embeddings(params, resized)
    return embeddings / jnp.linalg.norm(embeddings, axis=-1, keepdims=True), None


def _efficientnet(params: Any, images: jax.Array):
    return efficientnet.pooled_at(params, normalize_images(images), SIDE), None


def _load_inception(path: str) -> FeatureNetwork:
    """Returns Inception v3 with the weights and the preprocessing of its file's kind."""
    way: inception.Preprocessing = "pytorch_fid"
    preprocessing = "bilinear to 299 x 299 within the network"
    if path.endswith(".pb"):
        params = inception_graph.load(path)
        way, convention = "tensorflow", "ADM"
        preprocessing += ", as TensorFlow 1 does, without half-pixel centers"
        weights_from = "the ADM evaluator's frozen graph"
    else:
        params = inception.load(path)
        convention, weights_from = "pytorch-fid's resize", "pytorch-fid's port"
    # FID is a distance in the features of TensorFlow's network of 2015, which has 1008 classes.
    whose = ""
    if params["fc"]["bias"].size != inception.TENSORFLOW_CLASSES:
        whose, convention, weights_from = " with torchvision's Inception v3", "", "torchvision"
    return FeatureNetwork(
        "Inception v3",
        f"FID{whose}",
        f"Inception Score{whose}",
        weights.fingerprint(path),
        preprocessing,
        len(params["fc"]["kernel"]),
        params,
        functools.partial(_inception, preprocessing=way),
        functools.partial(_inception_with_spatial, preprocessing=way),
        weights_from,
        convention,
        key="fid",
    )


def _inception(
    params: Any, images: jax.Array, preprocessing: inception.Preprocessing
) -> tuple[jax.Array, jax.Array]:
    features, log_probs, _ = _inception_with_spatial(params, images, preprocessing)
    return features, log_probs


def _inception_with_spatial(
    params: Any, images: jax.Array, preprocessing: inception.Preprocessing
) -> tuple[jax.Array, ...]:
    features = inception.features(params, images, preprocessing)
    # The published score is of TensorFlow's network's logits without biases.
    biases = params["fc"]["bias"].size != inception.TENSORFLOW_CLASSES
    logits = inception.logits(params, features.pooled, biases=biases)
    return features.pooled, jax.nn.log_softmax(logits), features.spatial


LOADERS = {
    "efficientnet": functools.partial(
        _load_efficientnet, size=efficientnet.LITE0, key="fd_efficientnet"
    ),
    "efficientnet_lite2": functools.partial(
        _load_efficientnet, size=efficientnet.LITE2, key="fd_efficientnet_lite2"
    ),
    "inception": _load_inception,
    "dinov2": _load_dinov2,
    "clip": _load_clip,
}
