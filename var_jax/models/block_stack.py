"""The blocks of a transformer in sequence, as one scan over their stacked parameters."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax

from var_jax.config.model import TransformerConfig
from var_jax.devices import gathering
from var_jax.models import int8_weights
from var_jax.models.transformer_block import Block
from var_jax.ops import attention_splash

REMAT = {
    "full": jax.checkpoint_policies.nothing_saveable,
    # Fused attention is a product too, which no policy sees in its kernel.
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names(attention_splash.OUTPUT),
    ),
}


def _policy(remat: str) -> Any:
    """Returns what is kept for the backward pass, among it whole weights where they are kept."""
    if not gathering.keeps_weights():
        return REMAT[remat]
    weights = jax.checkpoint_policies.save_only_these_names(gathering.GATHERED)
    return jax.checkpoint_policies.save_from_both_policies(REMAT[remat], weights)


def block_stack(config: TransformerConfig) -> nn.Module:
    """Returns all blocks as one module, called as one `Block` with stacked caches and branches.

    Call it in a module's `setup`.
    """
    block = Block
    if config.param_dtype == "int8":
        to_floats = functools.partial(int8_weights.dequantized, dtype=config.dtype)
        block = nn.map_variables(Block, "params", trans_in_fn=to_floats)
    if config.remat in REMAT:
        block = nn.remat(block, prevent_cse=False, policy=_policy(config.remat))
    return nn.scan(
        block,
        length=config.depth,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=(0, 0, nn.broadcast),
        out_axes=0,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )(config)
