"""Which token may see which, as dense boolean masks (True: visible).

The model itself never builds the block-causal one: `ops.attention.block_causal` slices instead. These are the
reference that it is checked against.
"""

import numpy as np

from var_jax.ops.scales import Scales


def block_causal(scales: Scales) -> np.ndarray:
    """bool (L, L): a token sees its own scale and all coarser ones (VAR, section 3.2)."""
    level = scales.level_ids
    return level[:, None] >= level[None, :]
