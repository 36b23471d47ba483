"""Training inputs with random tokens at coarse scales, and targets that correct them.

Teacher forcing shows a model only the history of a real image, and sampling one that it made itself
with its own mistakes. Here some tokens of the history are replaced at random, and the targets of
the later scales are quantized anew, from what is then left of the image's feature map: so the model
learns to mend what an earlier scale got wrong. Infinity (arXiv 2412.04431, section 3.3) does this
with the bits of its codes; here whole tokens are replaced, as codes of a learned codebook have no
bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp

from var_jax.ops import vq

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, PRNGKeyArray


class CorrectedTargets(NamedTuple):
    """The result of `corrected_targets`.

    Attributes:
      inputs: the transformer's inputs for all scales but the first, from the replaced tokens.
      tokens: the tokens to predict: those of the image before the first flip, and after it the ones
        that bring the flawed history closest to the image's feature map.
    """

    inputs: Float[Array, "b L-1 c"]
    tokens: Int[Array, "b L"]


def corrected_targets(
    q: vq.Quantizer, tokens: Int[Array, "b L"], key: PRNGKeyArray, share: float
) -> CorrectedTargets:
    """Returns inputs with random flips of tokens, and the tokens that correct them.

    The feature map to reach is the sum that the image's own tokens make, as a token cache has no
    other; it is what the decoder would have seen. Tokens of the last scale are never replaced, as
    nothing follows them.

    Args:
      tokens: the image's own tokens, of all scales.
      share: the largest share of tokens that are replaced; an image's own share is uniform from 0
        to it. A replacement is uniform over the codes, and may be the token itself.
    """
    batch = tokens.shape[0]
    share_key, flip_key, code_key = jax.random.split(key, 3)
    shares = jax.random.uniform(share_key, (batch, 1), maxval=share)
    flips = jax.random.uniform(flip_key, tokens.shape) < shares
    codes = 2**q.channels if q.codes == "bsq" else q.table.shape[0]
    random = jax.random.randint(code_key, tokens.shape, 0, codes, tokens.dtype)

    goal = vq.decode(q, tokens)[-1]
    flawed = jnp.zeros((batch, 1), bool)
    f_hat, f_hats, targets = None, [], []
    for k in range(len(q.scales)):
        span = q.scales.span(k)
        target = tokens[:, span]
        if f_hat is not None:
            anew = vq.nearest_code(q, vq.area_tokens(q, goal - f_hat, k))
            target = jnp.where(flawed, anew.astype(target.dtype), target)
        history = jnp.where(flips[:, span], random[:, span], target)
        flawed |= jnp.any(flips[:, span], axis=1, keepdims=True)
        f_hat = vq.accumulate(q, f_hat, vq.lookup(q, history), k)
        targets.append(target)
        f_hats.append(f_hat)
    inputs = vq.scale_inputs(q, f_hats[:-1], batch)
    return CorrectedTargets(inputs, jnp.concatenate(targets, axis=1))
