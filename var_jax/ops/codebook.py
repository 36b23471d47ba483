"""Codebook usage: code counts per scale, codes in use, perplexity, and collapsed scales.

Counts are over the global batch: under `jax.jit` with a batch that is sharded over devices or
hosts, every host gets the counts of all images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from var_jax.config.scales import Scales

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

    Counts = Array | np.ndarray  # on devices while a step is traced, in numpy for reports

MAX_BINS = 2**16  # larger vocabularies are counted by the lowest bits of their tokens


def count_bins(vocab_size: int) -> int:
    """Returns the number of columns of `code_counts`: V, but at most 65,536."""
    return min(vocab_size, MAX_BINS)


def code_counts(
    scales: Scales,
    tokens: Int[Array, "b L"],
    vocab_size: int,
    counted: Bool[Array, "b l"] | None = None,
) -> Int[Array, "k v"]:
    """Returns how often each code was chosen at each scale.

    In a vocabulary of more than 65,536 codes, tokens that agree in their lowest 16 bits are counted
    together.

    Args:
      tokens: tokens of all scales.
      vocab_size: V, the number of codes.
      counted: which tokens count, one value per token, or one per image as (b, 1); None for all.
    """
    bins = count_bins(vocab_size)
    tokens = tokens % bins if bins < vocab_size else tokens
    if counted is not None:
        # Tokens that do not count go to one more bin, which is cut off below.
        tokens = jnp.where(counted, tokens, bins)
    scale_counts = [
        jnp.bincount(scale_tokens.reshape(-1), length=bins + 1)[:-1]
        for scale_tokens in scales.split(tokens)
    ]
    return jnp.stack(scale_counts)


def codes_used(counts: Int[Counts, "*k v"]) -> Int[Counts, "*k"]:
    """Returns how many codes were chosen at least once."""
    return (counts > 0).sum(axis=-1)


def perplexity(counts: Int[Counts, "*k v"]) -> Float[Counts, "*k"]:
    """Returns exp of the entropy of the chosen codes; 1 where nothing was counted.

    It is the number of codes that would have this entropy in equal use.

    Counts in numpy give float64, for reports; those in JAX may be traced.
    """
    xp = jnp if isinstance(counts, jax.Array) else np
    shares = counts / xp.maximum(counts.sum(axis=-1, keepdims=True), 1)
    logs = xp.log(xp.where(shares > 0, shares, 1))
    return xp.exp(-xp.sum(shares * logs, axis=-1))


def collapsed(
    counts: Int[np.ndarray, "k v"], share: float, perplexity_floor: float = 2.0
) -> list[int]:
    """Returns the scales, counted from 0, whose codes have collapsed.

    At most `attainable` = min(V, number of tokens) codes can be in use at a scale. A scale has
    collapsed when it uses fewer than `share` of these, or when its perplexity is below the floor
    (or below `attainable`, where that is less). A scale where nothing was counted has not
    collapsed.

    Args:
      counts: the `code_counts` of many images.
    """
    counts = np.asarray(counts)
    num_tokens = counts.sum(axis=-1)
    attainable = np.minimum(counts.shape[-1], num_tokens)
    few_codes = codes_used(counts) < share * attainable
    uneven = perplexity(counts) < np.minimum(perplexity_floor, attainable) - 1e-3
    return [int(k) for k in np.nonzero((few_codes | uneven) & (num_tokens > 0))[0]]


def usage_metrics(counts: Int[np.ndarray, "k v"]) -> dict[str, Any]:
    """Returns an evaluation's metrics of the codes: share in use and perplexity.

    Each is given per scale and over the tokens of all scales.
    """
    all_counts = counts.sum(axis=0)
    return {
        "code_usage": (counts > 0).mean(axis=1).tolist(),
        "code_usage_all": float((all_counts > 0).mean()),
        "perplexity": perplexity(counts).tolist(),
        "perplexity_all": float(perplexity(all_counts)),
    }
