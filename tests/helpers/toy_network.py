"""A feature network that costs nothing: a random projection of the image's four quarters."""

import jax
import jax.numpy as jnp
import numpy as np

from var_jax.evaluate.features import FeatureNetwork

DIMENSIONS, CLASSES, SPATIAL = 5, 4, 3


def network(seed: int = 0, convention: str = "", *, spatial: bool = False) -> FeatureNetwork:
    """A network with class probabilities; with "ADM" as the convention, it stands for the one that
    published statistics are of."""
    random = np.random.default_rng(seed)
    params = {
        "features": random.standard_normal((4, DIMENSIONS)),
        "classes": random.standard_normal((4, CLASSES)),
        "spatial": random.standard_normal((4, SPATIAL)),
    }
    params = {name: value.astype(np.float32) for name, value in params.items()}
    return FeatureNetwork(
        "toy",
        "Fréchet distance, toy",
        "toy score",
        f"weights{seed}",
        "quarters",
        DIMENSIONS,
        params,
        apply,
        apply_with_spatial if spatial else None,
        convention=convention,
    )


def apply(params, images):
    return apply_with_spatial(params, images)[:2]


def apply_with_spatial(params, images):
    small = jax.image.resize(
        images.astype(jnp.float32).mean(-1) / 128, (len(images), 2, 2), "linear"
    )
    quarters = small.reshape(len(images), 4)
    log_probs = jax.nn.log_softmax(quarters @ params["classes"])
    return quarters @ params["features"], log_probs, quarters @ params["spatial"]
