"""Small quantizers and vectors for tests of the codebook."""

import jax
import jax.numpy as jnp
import numpy as np

from var_jax.config.scales import Scales
from var_jax.ops import codebook_init, vq

SCALES = Scales.parse("1,2,4")


def make(codes, kind="euclidean", scales=SCALES, channels=None):
    """Returns a quantizer whose maps are the upsampled codes alone, without phi."""
    c = channels or codes.shape[1]
    return vq.Quantizer(
        codes,
        jnp.zeros((1, 3, 3, c, c)),
        jnp.zeros((1, c)),
        scales=scales,
        phi_ratio=0.0,
        codes=kind,
    )


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def codes_of_data(q, feature, key, how):
    """Returns initial codes in two rounds, as a run of the tokenizer makes them."""
    vectors = vq.exact_residuals(q, feature)
    for round_key in jax.random.split(key):
        codes = codebook_init.initial_codes(vectors, round_key, len(q.table), SCALES, how)
        vectors = vq.quantize(q.replace(codebook=codes), feature).residuals
    return codes
