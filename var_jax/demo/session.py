"""The logic of the page of `var-jax demo`: from a model and a visitor's choices to pictures."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8

from var_jax.config.model import ModelConfig, TokenizerConfig
from var_jax.data import mask_file
from var_jax.errors import UserError
from var_jax.io import pictures
from var_jax.ops.normalize import normalize_images
from var_jax.pipeline import Pipeline
from var_jax.sampling import kept_scales, sampler_registry, validate

# No guidance, in the program that guides: (1 + t) a - t b is `a` to the last bit, and a cfg of 0
# compiles another one.
NO_CFG = 1e-30


class Choices(NamedTuple):
    """The settings that a visitor samples an image with; see `Pipeline.sample`.

    Attributes:
      label: class id; `num_classes` means "no class".
      cfg: guidance strength at the last scale, 0 for none.
    """

    label: int
    seed: int = 0
    preset: str = "fid"
    cfg: float = 1.5


def class_choices(config: ModelConfig, class_names: Sequence[str]) -> list[tuple[str, int]]:
    """Returns (text, class id) of every class, and of "no class".

    Args:
      class_names: the model's class names, by id, which the texts have; may be empty.
    Raises:
      UserError: the model has no transformer.
    """
    classes = validate.transformer(config).num_classes
    texts = [str(i) for i in range(classes)]
    for i, name in enumerate(class_names[:classes]):
        texts[i] += "" if name == texts[i] else f": {name}"
    return [*zip(texts, range(classes), strict=True), ("no class", classes)]


def default_keep_scales(config: TokenizerConfig) -> int:
    """Returns the number of leading scales that an edit keeps by default, the published rule."""
    return min(kept_scales.published_keep_scales(config.scales), len(config.scales) - 1)


def draw(model: Pipeline, choices: Choices) -> UInt8[np.ndarray, "k H W c"]:
    """Samples an image of a class, and returns the images after each scale.

    The last is the finished image. A model that does not sample scale by scale has only that one.

    Raises:
      UserError: a choice is out of range.
    """
    if not sampler_registry.find(model.config).by_scale:
        return model.sample([choices.label], as_uint8=True, **_settings(choices))
    _, steps = model.sample([choices.label], return_steps=True, as_uint8=True, **_settings(choices))
    return steps[0]


def redraw(
    model: Pipeline,
    image: UInt8[np.ndarray, "H W c"],
    mask: Bool[np.ndarray, "H W"],
    choices: Choices,
    keep_scales: int | None,
) -> UInt8[np.ndarray, "H W c"]:
    """Returns an image with new content where the mask is True (VAR, section 5.3).

    All other pixels stay as they were.

    Args:
      keep_scales: number of leading scales that are the image's own everywhere; without effect
        for a model that does not sample scale by scale.
    Raises:
      UserError: a choice is out of range, or the mask covers no token.
    """
    h, w = model.config.tokenizer.scales.finest
    if model.kept_tokens(~mask).all():
        painted = "less than a token" if mask.any() else "empty"
        raise UserError(
            f"the painted region is {painted}, so that nothing would change; paint over at least "
            f"1/{h} of the height by 1/{w} of the width"
        )
    images = normalize_images(image[None])
    edited = model.edit(
        images,
        ~mask,
        [choices.label],
        keep_scales=keep_scales if sampler_registry.find(model.config).by_scale else None,
        composite=True,
        **_settings(choices),
    )
    return pictures.to_uint8(edited)[0]


def warm_up(model: Pipeline, choices: Choices):
    """Compiles the programs of sampling, and of editing with the default scales."""
    image = draw(model, choices)[-1]
    if not model.edits:
        return
    redraw(
        model,
        image,
        np.ones(image.shape[:2], bool),
        choices,
        default_keep_scales(model.config.tokenizer),
    )


def read_mask(
    layers: Iterable[UInt8[np.ndarray, "h w 4"]], config: TokenizerConfig
) -> Bool[np.ndarray, "H W"]:
    """Returns True where something is painted on any layer; all False without layers.

    Layers are RGBA of any size, over the whole image.
    """
    height, width, _ = config.image_shape
    mask = np.zeros((height, width), bool)
    for layer in layers:
        mask |= mask_file.region(layer[..., 3], (height, width), "stretch")
    return mask


def _settings(choices: Choices) -> dict[str, Any]:
    return {"seed": choices.seed, "preset": choices.preset, "cfg": choices.cfg or NO_CFG}
