"""The blocks of a transformer in sequence, as one scan over their stacked parameters."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from var_jax.config import rematerialization
from var_jax.config.model import TransformerConfig
from var_jax.config.rematerialization import Group
from var_jax.devices import gathering
from var_jax.models import int8_weights
from var_jax.models.transformer_block import Block
from var_jax.ops import attention_splash

# Fused attention is a product too, which no policy sees in its kernel.
PRODUCT = attention_splash.OUTPUT
policies = jax.checkpoint_policies


def block_stack(config: TransformerConfig) -> nn.Module:
    """Returns all blocks as one module, called as one `Block` with stacked caches and branches.

    Call it in a module's `setup`.
    """
    is_open = config.remat == rematerialization.AUTO  # outside of training, which resolves it
    groups = rematerialization.groups("none" if is_open else config.remat, config.depth)
    return GroupedBlocks(config, groups) if len(groups) > 1 else _scan(config, groups[0])


class GroupedBlocks(nn.Module):
    """The blocks of a transformer whose groups keep different results for the backward pass.

    Parameters have the names and shapes that they have without groups.
    """

    config: TransformerConfig
    groups: tuple[Group, ...]

    def setup(self):
        self.all = _scan(self.config, Group("none", self.config.depth))
        nn.share_scope(self, self.all)

    def __call__(self, x, cache, keep, condition):
        if cache is not None or self.is_initializing():  # no backward pass
            return self.all(x, cache, keep, condition)
        params, new, start = self.all.variables["params"], [], 0
        for group in self.groups:
            span = slice(start, start + group.blocks)
            part, branches = jax.tree.map(lambda stacked, span=span: stacked[span], (params, keep))
            blocks = _scan(self.config, group, parent=None)
            x, of_group = blocks.apply({"params": part}, x, None, branches, condition)
            new.append(of_group)
            start += group.blocks
        return x, jax.tree.map(lambda *parts: jnp.concatenate(parts), *new)


def _scan(config: TransformerConfig, group: Group, **module: Any) -> Any:
    """Returns a group's blocks as one module, with `module`'s arguments of Linen."""
    block = Block
    if config.param_dtype == "int8":
        to_floats = functools.partial(int8_weights.dequantized, dtype=config.dtype)
        block = nn.map_variables(Block, "params", trans_in_fn=to_floats)
    if group.policy != "none":
        block = nn.remat(block, prevent_cse=False, policy=_policy(group.policy))
    return nn.scan(
        block,
        length=group.blocks,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=(0, 0, nn.broadcast),
        out_axes=0,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )(config, **module)


def _policy(name: str) -> Callable[..., Any]:
    """Returns what is kept for the backward pass, among it whole weights where they are kept."""
    weights = [gathering.GATHERED] if gathering.keeps_weights() else []
    if name == rematerialization.OFFLOAD:
        return _offload(weights)
    names = policies.save_only_these_names(*weights, *[PRODUCT] * (name == "dots"))
    if name == rematerialization.FULL:
        return names
    return policies.save_from_both_policies(policies.dots_with_no_batch_dims_saveable, names)


def _offload(weights: list[str]) -> Callable[..., Any]:
    """Returns a policy that keeps products in the host's memory, and `weights` on the device."""
    places = {"offload_src": "device", "offload_dst": "pinned_host"}
    products = policies.offload_dot_with_no_batch_dims(**places)
    named = policies.save_and_offload_only_these_names(
        names_which_can_be_saved=weights, names_which_can_be_offloaded=[PRODUCT], **places
    )
    return lambda primitive, *args, **params: (named if "name" in params else products)(
        primitive, *args, **params
    )
