"""Converts published PyTorch weights to parameters and back, by the table in `torch_keys`."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import save_file

from var_jax.config.model import DType, ModelConfig, TokenizerConfig, TransformerConfig
from var_jax.config.scales import Scales
from var_jax.config.strict import require
from var_jax.errors import UserError
from var_jax.io import finite
from var_jax.io.torch_keys import CODE_HITS, abstract, buffers, entries
from var_jax.io.torch_weights import Source, Weights, listed

State = dict[str, np.ndarray]
# Keys that every model of the kind has, which locate it in a file.
TOKENIZER_ANCHORS = (
    "quantize.embedding.weight",
    "encoder.conv_in.weight",
    "decoder.conv_in.weight",
)
TRANSFORMER_ANCHORS = (
    "class_emb.weight",
    "word_embed.weight",
    "lvl_embed.weight",
    "pos_1LC",
    "pos_start",
    "head_nm.ada_lin.1.weight",
    "head.weight",
)


def from_torch(
    tokenizer: Source,
    transformer: Source | None = None,
    *,
    scales: Scales,
    num_heads: int | None = None,
    cosine_codes: bool = False,
    norm_groups: int = TokenizerConfig.norm_groups,
    dtype: DType = "float32",
) -> tuple[ModelConfig, dict[str, Any]]:
    """Returns a model's config and {"tokenizer": ..., "transformer": ...} from published weights.

    Args:
      tokenizer: {published key: array}, or a path (.pth, .pt, .safetensors, .npz). Training
        checkpoints of the published code, which hold both stages, serve for either.
      transformer: the same for the transformer; None for a tokenizer without one.
      scales: token-map sizes, coarse to fine.
      num_heads: number of heads; needed only without QK-norm, where it does not follow from the
        weights.
      cosine_codes: whether codes are searched by cosine.
      norm_groups: groups of the tokenizer's GroupNorms, which do not follow from the weights; 32
        in the published code.
      dtype: dtype of the parameters, "float32" or "bfloat16".
    Returns:
      the configuration and nested dicts of numpy arrays.
    Raises:
      UserError: a file is unreadable, keys are unknown or missing, shapes are wrong, or the scales
        do not fit the weights.
    """
    tokenizer_config, tokenizer_params = tokenizer_from_torch(
        tokenizer, scales, cosine_codes=cosine_codes, dtype=dtype, norm_groups=norm_groups
    )
    if transformer is None:
        return ModelConfig(tokenizer_config), {"tokenizer": tokenizer_params}
    transformer_config, transformer_params = transformer_from_torch(
        transformer, tokenizer_config, num_heads, dtype
    )
    params = {"tokenizer": tokenizer_params, "transformer": transformer_params}
    return ModelConfig(tokenizer_config, transformer_config), params


def tokenizer_from_torch(
    source: Source,
    scales: Scales,
    *,
    cosine_codes: bool = False,
    dtype: DType = "float32",
    norm_groups: int = TokenizerConfig.norm_groups,
) -> tuple[TokenizerConfig, dict[str, Any]]:
    """Returns the tokenizer's part of `from_torch`."""
    weights = Weights(source, "the tokenizer", TOKENIZER_ANCHORS)
    config = read_tokenizer_config(
        weights, scales, cosine_codes=cosine_codes, dtype=dtype, norm_groups=norm_groups
    )
    return config, _load(config, weights)


def transformer_from_torch(
    source: Source,
    tokenizer: TokenizerConfig,
    num_heads: int | None = None,
    dtype: DType = "float32",
) -> tuple[TransformerConfig, dict[str, Any]]:
    """Returns the transformer's part of `from_torch`, for the tokens of `tokenizer`."""
    weights = Weights(source, "the transformer", TRANSFORMER_ANCHORS)
    config = read_transformer_config(weights, tokenizer, num_heads, dtype)
    return config, _load(config, weights)


def to_torch(
    config: ModelConfig, params: Mapping[str, Any], *, with_buffers: bool = False
) -> tuple[State, State | None]:
    """Returns the published state dicts (tokenizer, transformer) of a model.

    It is the inverse of `from_torch`. The transformer's is None if the model has none.

    Args:
      config: the model's configuration.
      params: its parameters.
      with_buffers: whether to add the buffers of the published modules, which released checkpoints
        contain, so that a strict `load_state_dict` accepts the dicts.
    Raises:
      UserError: the published tokenizer has no such codes.
    """
    require(
        config.tokenizer.codebook_parameters > 0,
        "tokenizer.codes",
        repr(config.tokenizer.codes),
        "'euclidean' or 'cosine' for published keys, which are those of a codebook",
    )
    require(
        config.refiner is None, "the model's refiner", "there", "none: it has no published keys"
    )

    def state(sizes: TokenizerConfig | TransformerConfig, part: str) -> State:
        return part_to_torch(sizes, params[part]) | (buffers(sizes) if with_buffers else {})

    return state(config.tokenizer, "tokenizer"), config.transformer and state(
        config.transformer, "transformer"
    )


def flags_to_reload(config: ModelConfig) -> dict[str, Any]:
    """Returns the keyword arguments with which `from_torch` restores this model.

    They are the settings that do not follow from published weights.
    """
    c, t = config.tokenizer, config.transformer
    flags: dict[str, Any] = {"scales": str(c.scales)}
    if c.norm_groups != TokenizerConfig.norm_groups:
        flags["norm_groups"] = c.norm_groups
    if c.codes == "cosine":
        flags["cosine_codes"] = True
    if t and not t.qk_norm:
        flags["num_heads"] = t.heads
    return flags


def part_to_torch(config: TokenizerConfig | TransformerConfig, params: Mapping[str, Any]) -> State:
    """Returns {published key: float32 array} of one model's parameters.

    Args:
      config: the model's configuration.
      params: its parameters, or a tree of the same structure, such as gradients.
    """
    flat: Any = flatten_dict(params, sep="/")
    state = {}
    for entry in entries(config, flat):
        stack = flat[entry.path]
        array = np.asarray(stack if entry.index is None else stack[entry.index])
        state[entry.key] = np.ascontiguousarray(entry.to_torch(array), np.float32)
    return state


def write_torch(
    directory: str | os.PathLike,
    tokenizer: Mapping[str, np.ndarray],
    transformer: Mapping[str, np.ndarray] | None = None,
):
    """Writes the state dicts of `to_torch` as two `.safetensors` files.

    Args:
      directory: where to write; it is created if it is missing.
      tokenizer: written to `tokenizer.safetensors`.
      transformer: written to `transformer.safetensors`, unless it is None.
    Raises:
      UserError: the directory cannot be written.
    """
    directory = Path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, state in {"tokenizer": tokenizer, "transformer": transformer}.items():
            if state is not None:
                part = directory / f"{name}.part"
                part.touch()
                permissions = part.stat().st_mode  # safetensors gives access only to the owner
                save_file(dict(state), part)
                part.chmod(permissions)
                part.replace(directory / f"{name}.safetensors")
    except OSError as error:
        raise UserError(f"cannot write to {directory}: {error.strerror or error}") from error


def read_tokenizer_config(
    weights: Weights,
    scales: Scales,
    *,
    cosine_codes: bool,
    dtype: DType,
    norm_groups: int = TokenizerConfig.norm_groups,
) -> TokenizerConfig:
    """Returns the configuration of a tokenizer with some published weights.

    Sizes follow from keys and shapes; all other values are the published code's defaults.
    """
    channels, in_channels = weights.size("encoder.conv_in.weight", 4)[:2]
    levels = max(1, weights.count(r"encoder\.down\.(\d+)\."))
    widths = [weights.size(f"encoder.down.{i}.block.0.conv1.weight", 4)[0] for i in range(levels)]
    for width in widths:
        require(
            width % channels == 0,
            f"{weights.name}: a level's width",
            width,
            f"a multiple of {channels}",
        )
    vocab, z_channels = weights.size("quantize.embedding.weight", 2)
    phi = weights.count(r"quantize\.quant_resi\.qresi_ls\.(\d+)\.")
    if "quantize.quant_resi.qresi.weight" in weights.shapes:
        phi = 1
    convolutions = weights.count(r"quantize\.quant_resi\.(\d+)\.")
    require(
        convolutions in (0, len(scales)),
        "scales",
        scales,
        f"{convolutions} sizes, one for each quantize.quant_resi of {weights.name}",
    )
    return TokenizerConfig(
        scales=scales,
        in_channels=in_channels,
        channels=channels,
        multipliers=tuple(w // channels for w in widths),
        blocks=weights.count(r"encoder\.down\.0\.block\.(\d+)\."),
        attention=f"encoder.down.{levels - 1}.attn.0.qkv.weight" in weights.shapes,
        mid_attention="encoder.mid.attn_1.qkv.weight" in weights.shapes,
        norm_groups=norm_groups,
        z_channels=z_channels,
        vocab_size=vocab,
        phi=phi,
        codes="cosine" if cosine_codes else "euclidean",
        param_dtype=dtype,
    )


def read_transformer_config(
    weights: Weights, tokenizer: TokenizerConfig, num_heads: int | None, dtype: DType
) -> TransformerConfig:
    """Returns the config of the transformer that published weights belong to.

    Sizes follow from keys and shapes; all other values are the published code's defaults.
    """
    scales = tokenizer.scales
    classes, width = weights.size("class_emb.weight", 2)
    for key, shape, count, unit in (
        ("lvl_embed.weight", weights.size("lvl_embed.weight", 2)[:1], len(scales), "sizes"),
        ("pos_1LC", weights.size("pos_1LC", 3)[1:2], scales.total, "tokens in all"),
        ("pos_start", weights.size("pos_start", 3)[1:2], scales.lengths[0], "tokens at the first"),
    ):
        require(
            shape[0] == count,
            "scales",
            f"{scales} ({count} {unit})",
            f"{shape[0]} {unit}, by {key} of {weights.name}",
        )
    scale_key = "blocks.0.attn.scale_mul_1H11"
    qk_norm = scale_key in weights.shapes
    heads_of_weights = weights.size(scale_key, 4)[1] if qk_norm else None
    heads = heads_of_weights or num_heads or 0
    require(heads > 0, "num_heads", num_heads, "given for weights without QK-norm")
    require(
        num_heads in (None, heads),
        "num_heads",
        num_heads,
        f"{heads} (or not given), as the weights tell",
    )
    require(width % heads == 0, "num_heads", heads, f"a divisor of the width {width}")
    return TransformerConfig(
        depth=weights.count(r"blocks\.(\d+)\."),
        width=width,
        heads=heads,
        num_classes=classes - 1,
        vocab_size=weights.size("head.weight", 2)[0],
        z_channels=weights.size("word_embed.weight", 2)[1],
        scales=scales,
        mlp_ratio=weights.size("blocks.0.ffn.fc1.weight", 2)[0] / width,
        shared_adaln="shared_ada_lin.1.weight" in weights.shapes,
        qk_norm=qk_norm,
        param_dtype=dtype,
    )


def check(
    config: TokenizerConfig | TransformerConfig, shapes: Mapping[str, tuple[int, ...]], name: str
):
    """Checks published keys and shapes against the table.

    Every key has to be a weight of the table, or one of the published buffers, which are skipped.

    Args:
      config: the model's configuration.
      shapes: {published key: shape}.
      name: the file's name, for the message.
    Raises:
      UserError: keys are missing or unknown, or shapes are wrong; one line names all of them.
    """
    expected = {entry.key: entry.shape for entry in entries(config)}
    problems = {
        "misses": [key for key in expected if key not in shapes],
        "has unknown": [],
        "has wrong shapes:": [],
    }
    skipped = {key: array.shape for key, array in buffers(config).items()}
    if CODE_HITS in skipped:  # for any number of scales, as published: one tokenizer serves several
        skipped[CODE_HITS] = (None, *skipped[CODE_HITS][1:])
    for key, shape in shapes.items():
        right = expected.get(key, skipped.get(key))
        if right is None:
            problems["has unknown"].append(key)
        elif len(right) != len(shape) or any(
            r not in (None, s) for r, s in zip(right, shape, strict=True)
        ):
            problems["has wrong shapes:"].append(f"{key} {shape} for {right}")
    texts = [f"{problem} {listed(names)}" for problem, names in problems.items() if names]
    if texts:
        raise UserError(f"{name} {'; '.join(texts)}")


def _load(config: TokenizerConfig | TransformerConfig, weights: Weights) -> dict[str, Any]:
    require(
        config.param_dtype in get_args(DType),
        "dtype",
        config.param_dtype,
        " or ".join(get_args(DType)),
    )
    check(config, weights.shapes, weights.name)
    parameters = abstract(config)
    flat = {path: np.empty(leaf.shape, leaf.dtype) for path, leaf in parameters.items()}
    wrong = {}
    # One tensor at a time, directly into its place and dtype.
    for entry in entries(config, parameters):
        place = flat[entry.path][... if entry.index is None else entry.index]
        with np.errstate(over="ignore"):  # overflows are reported below
            place[...] = entry.from_torch(weights.read(entry.key))
        bad = finite.not_finite(place)
        if bad:
            wrong[entry.key] = bad, place.size
    finite.refuse(wrong, weights.name)
    return unflatten_dict(flat, sep="/")
