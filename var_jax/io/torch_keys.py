"""Keys of the published PyTorch state dicts: one table per model, for both directions of `convert`.

The table pairs this package's parameter paths with the published keys. An einops pattern states how
the axes move: from left to right when weights are imported, from right to left when they are
exported. The entries are derived from the model's abstract parameters, so that none can be missed
on either side.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from einops import parse_shape, rearrange
from flax.traverse_util import flatten_dict

from var_jax.config.model import TokenizerConfig, TransformerConfig
from var_jax.config.strict import require
from var_jax.models import init

CONV, SAME = "o i h w -> h w i o", "c -> c"
LINEAR, MODULATION = "o i -> i o", "(n o) i -> i n o"


def _conv(path: str, key: str) -> tuple[tuple[str, str, str], ...]:
    """Returns the rows of the table for a convolution's kernel and bias."""
    return (f"{path}/kernel", f"{key}.weight", CONV), (f"{path}/bias", f"{key}.bias", SAME)


def _norm(path: str, key: str) -> tuple[tuple[str, str, str], ...]:
    """Returns the rows of the table for a group norm's scale and bias."""
    return (
        (f"{path}/group/scale", f"{key}.weight", SAME),
        (f"{path}/group/bias", f"{key}.bias", SAME),
    )


# Path of our parameter, published key, published axes -> our axes. A {field} stands for one of
# FIELDS in both; {n} counts along the leading axis that our parameter stacks, and {phi} depends on
# how the residual convolutions are shared.
TOKENIZER = (
    *_conv("{conv}", "{conv}"),
    *_conv("{side}/{end}", "{side}.{end}"),
    *_norm("{side}/norm_out", "{side}.norm_out"),
    *_conv("{side}/mid/{middle}/{layer}", "{side}.mid.{middle}.{layer}"),
    *_norm("{side}/mid/{middle}/{norm}", "{side}.mid.{middle}.{norm}"),
    *_conv("{side}/{way}_{i}/{kind}_{j}/{layer}", "{side}.{way}.{i}.{kind}.{j}.{layer}"),
    *_norm("{side}/{way}_{i}/{kind}_{j}/{norm}", "{side}.{way}.{i}.{kind}.{j}.{norm}"),
    *_conv("encoder/downsample_{i}", "encoder.down.{i}.downsample.conv"),
    *_conv("decoder/upsample_{i}", "decoder.up.{i}.upsample.conv"),
    ("quantize/codebook", "quantize.embedding.weight", "v c -> v c"),
    ("quantize/phi_kernel", "quantize.quant_resi.{phi}.weight", CONV),
    ("quantize/phi_bias", "quantize.quant_resi.{phi}.bias", SAME),
)
TRANSFORMER = (
    ("word_embed/kernel", "word_embed.weight", LINEAR),
    ("word_embed/bias", "word_embed.bias", SAME),
    ("class_embed", "class_emb.weight", "n c -> n c"),
    ("level_embed", "lvl_embed.weight", "n c -> n c"),
    ("pos_start", "pos_start", "1 l c -> l c"),
    ("pos_embed", "pos_1LC", "1 l c -> l c"),
    ("blocks/attn/qkv", "blocks.{n}.attn.mat_qkv.weight", "(n h d) w -> w n h d"),
    ("blocks/attn/q_bias", "blocks.{n}.attn.q_bias", "(h d) -> h d"),
    ("blocks/attn/v_bias", "blocks.{n}.attn.v_bias", "(h d) -> h d"),
    ("blocks/attn/log_scale", "blocks.{n}.attn.scale_mul_1H11", "1 h 1 1 -> h"),
    ("blocks/attn/proj", "blocks.{n}.attn.proj.weight", "w (h d) -> h d w"),
    ("blocks/attn/proj_bias", "blocks.{n}.attn.proj.bias", SAME),
    ("blocks/{mlp}/kernel", "blocks.{n}.ffn.{mlp}.weight", LINEAR),
    ("blocks/{mlp}/bias", "blocks.{n}.ffn.{mlp}.bias", SAME),
    ("blocks/ada/kernel", "blocks.{n}.ada_lin.1.weight", MODULATION),
    ("blocks/ada/bias", "blocks.{n}.ada_lin.1.bias", "(n o) -> n o"),
    ("blocks/ada_offset", "blocks.{n}.ada_gss", "1 1 n o -> n o"),
    ("shared_ada/kernel", "shared_ada_lin.1.weight", MODULATION),
    ("shared_ada/bias", "shared_ada_lin.1.bias", "(n o) -> n o"),
    ("head_ada/kernel", "head_nm.ada_lin.1.weight", MODULATION),
    ("head_ada/bias", "head_nm.ada_lin.1.bias", "(n o) -> n o"),
    ("head/kernel", "head.weight", LINEAR),
    ("head/bias", "head.bias", SAME),
)
FIELDS = {
    "conv": "(?:post_)?quant_conv",
    "side": "encoder|decoder",
    "end": "conv_in|conv_out",
    "middle": "block_[12]|attn_1",
    "layer": "conv[12]|nin_shortcut|qkv|proj_out",
    "norm": "norm[12]?",
    "way": "down|up",
    "kind": "block|attn",
    "i": r"\d+",
    "j": r"\d+",
    "mlp": "fc[12]",
}
CODE_HITS = "quantize.ema_vocab_hit_SV"


@dataclasses.dataclass(frozen=True)
class Entry:
    """One published tensor: its key and shape, and its place in this package's parameters.

    Attributes:
      path: path of our parameter, its names joined by "/".
      index: index along our parameter's leading axis, if that stacks published tensors; else None.
      key: the published key.
      shape: shape of the published tensor.
      param_shape: shape of our parameter, without the stacked axis.
      layout: einops pattern from the published axes to ours.
    """

    path: str
    index: int | None
    key: str
    shape: tuple[int, ...]
    param_shape: tuple[int, ...]
    layout: str

    def from_torch(self, array: np.ndarray) -> np.ndarray:
        """Returns a published tensor in the layout of this package's parameters."""
        sizes = parse_shape(
            np.broadcast_to(np.float32(0), self.param_shape), self.layout.split("->")[1]
        )
        return rearrange(array, self.layout, **sizes)

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """Returns this package's parameter (one slice of the stack) in the published layout."""
        return _to_published_axes(array, self.layout)


def _to_published_axes(array, layout: str):
    published_axes, param_axes = layout.split("->")
    return rearrange(array, f"{param_axes} -> {published_axes}")


def abstract(config: TokenizerConfig | TransformerConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns {path: shape and dtype} of a model's parameters without allocating them."""
    flat: Any = flatten_dict(init.param_shapes(config), sep="/")
    return flat


def entries(
    config: TokenizerConfig | TransformerConfig, parameters: Mapping[str, Any] | None = None
) -> list[Entry]:
    """Returns the entry of every published tensor of a model, in the parameters' order.

    Args:
      config: the model's configuration.
      parameters: our parameters, {path: array or shape}; by default `abstract(config)`.
    Raises:
      UserError: no PyTorch weights are published of the transformer's objective, or without AdaLN.
    """
    objective = getattr(config, "objective", "next_scale")
    require(
        objective == "next_scale",
        "transformer.objective",
        repr(objective),
        "'next_scale' for PyTorch weights, which VAR alone has published",
    )
    conditioning = getattr(config, "class_conditioning", "adaln")
    require(
        conditioning == "adaln",
        "transformer.class_conditioning",
        repr(conditioning),
        "'adaln' for PyTorch weights, as published",
    )
    table = []
    for path, leaf in (abstract(config) if parameters is None else parameters).items():
        template, layout = _rule(config, path)
        stacked = path.startswith(("blocks/", "quantize/phi_"))
        param_shape = tuple(leaf.shape[1:] if stacked else leaf.shape)
        shape = _to_published_axes(np.broadcast_to(np.float32(0), param_shape), layout).shape
        for n in range(leaf.shape[0]) if stacked else (None,):
            key = template.replace("{n}", str(n))
            table.append(Entry(path, n, key, shape, param_shape, layout))
    return table


def buffers(config: TokenizerConfig | TransformerConfig) -> dict[str, np.ndarray]:
    """Returns {published key: array} of the buffers in released checkpoints, as initialized.

    The running count of code hits, a statistic of training, is zero as in a new tokenizer.
    """
    if isinstance(config, TokenizerConfig):
        return {CODE_HITS: np.zeros((len(config.scales), config.vocab_size), np.float32)}
    levels = config.scales.level_ids.astype(np.int64)
    bias = np.where(levels[:, None] >= levels, np.float32(0), np.float32(-np.inf))
    zero_k = {
        f"blocks.{n}.attn.zero_k_bias": np.zeros(config.width, np.float32)
        for n in range(config.depth)
    }
    return {"lvl_1L": levels[None], "attn_bias_for_masking": bias[None, None], **zero_k}


def _rule(config: TokenizerConfig | TransformerConfig, path: str) -> tuple[str, str]:
    """Returns the published key (with {n} left in it) and the layout of a parameter."""
    tokenizer = isinstance(config, TokenizerConfig)
    for path_pattern, key, layout in TOKENIZER if tokenizer else TRANSFORMER:
        pattern = re.sub(r"\{(\w+)\}", lambda m: f"(?P<{m[1]}>{FIELDS[m[1]]})", path_pattern)
        match = re.fullmatch(pattern, path)
        if match:
            phi = {1: "qresi", 0: "{n}"}.get(config.phi, "qresi_ls.{n}") if tokenizer else ""
            return key.format(**match.groupdict(), n="{n}", phi=phi), layout
    raise ValueError(f"parameter {path} has no published key; add it to the table in {__name__}")
