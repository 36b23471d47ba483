"""Which scales a scale sees: the one place that attention, generation and the FLOP counts ask.

Every mask lets scale k see the scales from a first one up to and with k itself, whole, so that
visible keys are one contiguous span of the sequence:

- block_causal: all coarser scales and its own (VAR, section 3.2).
- markov: the scale before and its own. Its input already sums up all coarser scales' codes, so what
is dropped is
  attention to them alone.
- block_diagonal: its own alone; coarser scales act through its input.
"""

import numpy as np

from var_jax.config.model import Mask
from var_jax.config.scales import Scales


def first_visible(mask: Mask, k: int) -> int:
    """The coarsest scale that scale k sees; it sees all from there to k."""
    return {"block_causal": 0, "markov": max(k - 1, 0), "block_diagonal": k}[mask]


def visible(scales: Scales, mask: Mask, k: int) -> slice:
    """The span of the sequence that every token of scale k sees."""
    return slice(scales.offsets[first_visible(mask, k)], scales.offsets[k + 1])


def attended_pairs(scales: Scales, mask: Mask) -> int:
    """M: the (query, key) pairs that the mask lets through, 286,434 for block_causal at 256 px."""
    spans = (visible(scales, mask, k) for k in range(len(scales)))
    return sum(n * (span.stop - span.start) for n, span in zip(scales.lengths, spans, strict=True))


def dense(scales: Scales, mask: Mask) -> np.ndarray:
    """bool (L, L), True where the row's token sees the column's: the reference that attention is
    checked against."""
    seen = np.zeros((scales.total, scales.total), bool)
    for k in range(len(scales)):
        seen[scales.span(k), visible(scales, mask, k)] = True
    return seen
