"""The blocks of a transformer in sequence, as one scan over their stacked parameters."""

from __future__ import annotations

import flax.linen as nn
import jax

from var_jax.config.model import TransformerConfig
from var_jax.models.transformer_block import Block

REMAT = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def block_stack(config: TransformerConfig) -> nn.Module:
    """Returns all blocks as one module, called as one `Block` with stacked caches and branches.

    Call it in a module's `setup`.
    """
    block = Block
    if config.remat != "none":
        block = nn.remat(Block, prevent_cse=False, policy=REMAT[config.remat])
    return nn.scan(
        block,
        length=config.depth,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=(0, 0, nn.broadcast),
        out_axes=0,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )(config)
