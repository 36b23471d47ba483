"""Attention masks: which scales each scale attends to.

Attention, sampling and the FLOP counts all use these functions. Under every mask, scale k attends
to all tokens of the scales from a first one up to k itself, so that the keys are one contiguous
span of the sequence:

- block_causal: all coarser scales and its own (VAR, section 3.2).
- markov: the scale before and its own. The input of scale k already sums up the codes of all
  coarser scales, so that only attention to them is dropped.
- block_diagonal: only its own; coarser scales act through its input.
"""

import numpy as np

from var_jax.config.scales import Scales
from var_jax.config.transformer_config import Mask


def first_visible(mask: Mask, k: int) -> int:
    """Returns the coarsest scale that scale k attends to; it attends to all from there to k."""
    return {"block_causal": 0, "markov": max(k - 1, 0), "block_diagonal": k}[mask]


def visible(scales: Scales, mask: Mask, k: int) -> slice:
    """Returns the span of the sequence that every token of scale k attends to."""
    return slice(scales.offsets[first_visible(mask, k)], scales.offsets[k + 1])


def attended_pairs(scales: Scales, mask: Mask) -> int:
    """Returns the number of (query, key) pairs that the mask lets through.

    It is 286,434 for block_causal with the published scales at 256 pixels.
    """
    spans = (visible(scales, mask, k) for k in range(len(scales)))
    return sum(n * (span.stop - span.start) for n, span in zip(scales.lengths, spans, strict=True))


def dense(scales: Scales, mask: Mask) -> np.ndarray:
    """Returns the mask as an array (L, L), True where the row's token attends to the column's.

    Attention needs it only where every scale is one token; tests compare the implementations with
    it.
    """
    seen = np.zeros((scales.total, scales.total), bool)
    for k in range(len(scales)):
        seen[scales.span(k), visible(scales, mask, k)] = True
    return seen
