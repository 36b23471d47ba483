"""Weights of the published implementation: both directions, sizes from keys, and mistakes."""

import dataclasses
import functools
import json
import tracemalloc
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from helpers.torch_parts import (
    SCALES,
    TOKENIZER,
    TRANSFORMER,
    assert_same,
    random_params,
    transformer_state,
)
from reference import torch_writer
from reference.seeded_weights import seeded_state_dict
from var_jax.config.model import ModelConfig, TokenizerConfig, TransformerConfig
from var_jax.config.scales import SCALES_256, SCALES_512, Scales
from var_jax.errors import UserError
from var_jax.io import torch_convert
from var_jax.io.torch_file import read_tensors
from var_jax.io.torch_keys import buffers, entries

REFERENCE = Path(__file__).parents[1] / "reference"
BUFFERS = ("lvl_1L", "attn_bias_for_masking", "zero_k_bias", "ema_vocab_hit_SV")


def states(name: str) -> tuple[dict, dict, dict]:
    described = json.loads((REFERENCE / f"{name}.json").read_text())
    seed = described["config"]["seed"]
    return (
        described["config"],
        *(seeded_state_dict(described[part], seed) for part in ("vae_shapes", "var_shapes")),
    )


def message(*args, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        torch_convert.transformer_from_torch(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.long
@pytest.mark.parametrize("name", ["small_l2norm", "small_shared_adaln"])
def test_to_torch_gives_back_the_same_state_dicts(name):
    """Sizes are those that PyTorch's model was built with, and converting back gives every array
    again."""
    settings, *state_dicts = states(name)
    config, params = torch_convert.from_torch(
        *state_dicts,
        scales=Scales.parse(settings["patch_nums"]),
        cosine_codes=True,
        num_heads=None if settings["attn_l2_norm"] else settings["heads"],
    )
    assert config.tokenizer.phi == settings["share_quant_resi"]
    assert config.tokenizer.codes == "cosine"
    assert config.transformer.shared_adaln == settings["shared_aln"]
    assert config.transformer.qk_norm == settings["attn_l2_norm"]
    for attribute in ("vocab_size", "z_channels", "num_classes", "depth", "width", "heads"):
        assert getattr(config.transformer, attribute) == settings[attribute]
    for before, after in zip(state_dicts, torch_convert.to_torch(config, params), strict=True):
        assert_same(before, after)
        assert all(
            array.flags.c_contiguous and array.dtype == np.float32 for array in after.values()
        )


RELEASED = json.loads((REFERENCE / "released_checkpoints.json").read_text())


@pytest.mark.long
@pytest.mark.parametrize("name", RELEASED)
def test_from_torch_takes_or_skips_every_released_key_by_name(name):
    """The keys and shapes of the released files are all taken but for buffers, and none twice."""
    scales = Scales.parse(SCALES_512 if "d36" in name else SCALES_256)
    shapes = {key: tuple(shape) for key, shape in RELEASED[name].items()}
    weights = torch_convert.Weights(
        {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()}, name
    )
    if name.startswith("vae"):
        config = torch_convert.read_tokenizer_config(
            weights, scales, cosine_codes=False, dtype="float32"
        )
        assert config == TokenizerConfig(scales=scales)
    else:
        config = torch_convert.read_transformer_config(
            weights, TokenizerConfig(scales=scales), None, "float32"
        )
        assert config == TransformerConfig(
            depth=int(name[1:]), scales=scales, shared_adaln=name == "d36"
        )
    torch_convert.check(config, shapes, name)
    taken = entries(config)
    assert len({(entry.path, entry.index) for entry in taken}) == len(taken)
    skipped = {key for key in shapes if key.endswith(BUFFERS)}
    assert {entry.key: entry.shape for entry in taken} == {
        k: s for k, s in shapes.items() if k not in skipped
    }
    for entry in taken:
        zeros = np.broadcast_to(np.float32(0), entry.shape)
        assert entry.from_torch(zeros).shape == entry.param_shape


@pytest.mark.parametrize("name", ["d16", "vae_d16"])
def test_buffers_complete_the_keys_of_the_released_files(name):
    """Weights and buffers together have the released files' keys and shapes, so that PyTorch loads
    them strictly."""
    scales = Scales.parse(SCALES_256)
    config = (
        TokenizerConfig(scales=scales)
        if name.startswith("vae")
        else TransformerConfig(depth=16, scales=scales)
    )
    constants = buffers(config)
    weights = {entry.key: entry.shape for entry in entries(config)}
    assert not weights.keys() & constants.keys()
    both = weights | {key: array.shape for key, array in constants.items()}
    assert both == {key: tuple(shape) for key, shape in RELEASED[name].items()}


def test_buffers_are_those_of_the_published_constructors():
    """Level ids, the attention mask, zero biases and zero counts, as PyTorch's modules make them;
    reading ignores them."""
    params = {"tokenizer": random_params(TOKENIZER), "transformer": random_params(TRANSFORMER)}
    model = ModelConfig(TOKENIZER, TRANSFORMER)
    weights = torch_convert.to_torch(model, params)
    with_buffers = torch_convert.to_torch(model, params, with_buffers=True)
    added = {
        key: array
        for part, with_them in zip(weights, with_buffers, strict=True)
        for key, array in with_them.items()
        if key not in part
    }
    level = np.repeat([0, 1, 2], [1, 4, 9])
    levels = added.pop("lvl_1L")
    assert levels.dtype == np.int64
    np.testing.assert_array_equal(levels, level[None])
    np.testing.assert_array_equal(added.pop("quantize.ema_vocab_hit_SV"), np.zeros((3, 16)))
    bias = added.pop("attn_bias_for_masking")
    assert bias.dtype == np.float32 and bias.shape == (1, 1, 14, 14)
    np.testing.assert_array_equal(bias[0, 0], np.where(level[:, None] >= level, 0, -np.inf))
    assert_same(added, {f"blocks.{n}.attn.zero_k_bias": np.zeros(24) for n in range(2)})
    assert_same(torch_convert.from_torch(*with_buffers, scales=SCALES)[1], params)
    assert torch_convert.to_torch(ModelConfig(TOKENIZER), params, with_buffers=True)[1] is None


@pytest.mark.long
@pytest.mark.parametrize(
    "changes, key",
    [
        ({"phi": 1}, "quantize.quant_resi.qresi.weight"),
        ({"phi": 0}, "quantize.quant_resi.2.bias"),
        ({"phi": 3}, "quantize.quant_resi.qresi_ls.2.weight"),
        ({"in_channels": 1}, "encoder.conv_in.weight"),
        ({"attention": False}, "encoder.mid.attn_1.qkv.weight"),
        ({"mid_attention": False}, "encoder.down.1.attn.0.qkv.weight"),
        ({"multipliers": (1, 3, 2), "blocks": 2}, "decoder.up.2.block.2.conv2.weight"),
        ({"multipliers": (1,), "param_dtype": "bfloat16"}, "quant_conv.bias"),
    ],
)
def test_tokenizer_from_torch_reads_sizes_from_the_keys(changes, key):
    """A tokenizer's config follows from the names and shapes of its PyTorch weights: each variation
    comes back with its config and its parameters."""
    config = dataclasses.replace(TOKENIZER, **changes)
    state = torch_convert.part_to_torch(config, random_params(config))
    assert key in state
    sizes, params = torch_convert.tokenizer_from_torch(state, SCALES, dtype=config.param_dtype)
    assert sizes == config
    cast = jnp.dtype(config.param_dtype)
    assert_same(params, jax.tree.map(lambda x: x.astype(cast), random_params(config)))


@pytest.mark.parametrize(
    "changes", [{}, {"shared_adaln": True}, {"mlp_ratio": 2.5, "depth": 1}, {"qk_norm": False}]
)
def test_transformer_from_torch_reads_sizes_from_the_keys(changes):
    """A transformer's config follows from the names and shapes of its PyTorch weights. Two things
    leave no trace in them: the drop-path rate, and the number of heads without QK normalization."""
    config = dataclasses.replace(TRANSFORMER, **changes)
    heads = None if config.qk_norm else config.heads
    sizes, params = torch_convert.transformer_from_torch(
        transformer_state(config), TOKENIZER, heads
    )
    assert sizes == dataclasses.replace(config, drop_path=sizes.drop_path)
    assert_same(params, random_params(config))


def test_from_torch_names_missing_unknown_and_misshapen_keys_in_one_line():
    """One line names all keys that are missing, all that are unknown, and all that have a wrong
    shape with the right one."""
    state = transformer_state()
    del state["head.bias"], state["blocks.1.ffn.fc1.bias"]
    state["blocks.0.attn.k_bias"] = state["blocks.0.attn.q_bias"]
    state["blocks.0.attn.proj.weight"] = state["blocks.0.attn.proj.weight"][:, :-1]
    line = message(state, TOKENIZER)
    assert "misses blocks.1.ffn.fc1.bias, head.bias;" in line
    assert "has unknown blocks.0.attn.k_bias;" in line
    assert "blocks.0.attn.proj.weight (24, 23) for (24, 24)" in line


@pytest.mark.parametrize(
    "key",
    [
        "class_emb.weight",
        "lvl_embed.weight",
        "pos_1LC",
        "head.weight",
        "word_embed.weight",
        "blocks.0.ffn.fc1.weight",
        "blocks.0.attn.scale_mul_1H11",
    ],
)
def test_from_torch_names_a_missing_key_that_gives_sizes(key):
    """A key that sizes are read from is named when it is missing or flat, and no other error comes
    first."""
    state = transformer_state()
    heads = 3  # without the QK scale of the first block the weights seem to have no QK-norm
    bent = {**state, key: state[key].reshape(-1)}
    assert key in message(bent, TOKENIZER, heads)
    del state[key]
    expected = "has unknown blocks.1.attn.scale_mul_1H11" if "scale_mul" in key else f"misses {key}"
    assert expected in message(state, TOKENIZER, heads)


def test_from_torch_skips_buffers_that_fit():
    """A buffer of another shape belongs to other scales and is named."""
    state, total = transformer_state(), SCALES.total
    buffers = {
        "lvl_1L": np.zeros((1, total), int),
        "attn_bias_for_masking": np.zeros((1, 1, total, total)),
        "blocks.0.attn.zero_k_bias": np.zeros(24),
    }
    assert_same(
        torch_convert.transformer_from_torch({**state, **buffers}, TOKENIZER)[1],
        random_params(TRANSFORMER),
    )
    for key, array in buffers.items():
        assert key in message({**state, **buffers, key: array[..., 1:]}, TOKENIZER)


@pytest.mark.parametrize("scales", ["1,2,4", "1,2,3,3", "1,3"])
def test_from_torch_refuses_scales_of_another_number_of_tokens(scales):
    """Scales that disagree with the weights' number of tokens or of maps are refused, and the
    message has the scales."""
    line = message(transformer_state(), dataclasses.replace(TOKENIZER, scales=Scales.parse(scales)))
    assert scales in line and ("tokens" in line or "sizes" in line)


def test_tokenizer_from_torch_counts_scales_by_their_phis():
    """With one phi per scale, the weights say how many scales there are: two sizes for three phis
    are refused with the right number."""
    config = dataclasses.replace(TOKENIZER, phi=0)
    state = torch_convert.part_to_torch(config, random_params(config))
    with pytest.raises(UserError, match="scales is 1,3; it must be 3 sizes"):
        torch_convert.tokenizer_from_torch(state, Scales.parse("1,3"))


def test_from_torch_takes_norm_groups_as_given():
    """No weight's shape depends on them: the default is refused where it cannot be right."""
    config = dataclasses.replace(TOKENIZER, channels=16, norm_groups=8)
    state = torch_convert.part_to_torch(config, random_params(config))
    assert torch_convert.from_torch(state, scales=SCALES, norm_groups=8)[0] == ModelConfig(config)
    with pytest.raises(
        UserError, match="tokenizer.norm_groups is 32; it must be a divisor of every level's width"
    ):
        torch_convert.from_torch(state, scales=SCALES)


@pytest.mark.long
@pytest.mark.parametrize(
    ("tokenizer", "transformer"),
    [({}, None), ({}, {}), ({"norm_groups": 8}, {}), ({"codes": "cosine"}, {"qk_norm": False})],
)
def test_to_torch_names_the_flags_that_reload_a_model(tokenizer, transformer):
    """Loading with exactly these flags gives the same config."""
    config = ModelConfig(
        dataclasses.replace(TOKENIZER, **tokenizer),
        None
        if transformer is None
        else dataclasses.replace(TRANSFORMER, drop_path=-1, **transformer),
    )
    params = {"tokenizer": random_params(config.tokenizer)}
    if config.transformer:
        params["transformer"] = random_params(config.transformer)
    flags = torch_convert.flags_to_reload(config)
    converted, _ = torch_convert.from_torch(
        *torch_convert.to_torch(config, params), scales=Scales.parse(flags.pop("scales")), **flags
    )
    assert converted == config
    assert set(flags) == {
        "codes": {"cosine_codes", "num_heads"},
        "norm_groups": {"norm_groups"},
    }.get(next(iter(tokenizer), ""), set())


def test_from_torch_asks_for_num_heads_only_without_qk_norm():
    """The QK scales give the number of heads, and without them it cannot be known."""
    assert "num_heads" in message(transformer_state(), TOKENIZER, 4)
    without = transformer_state(dataclasses.replace(TRANSFORMER, qk_norm=False))
    assert "num_heads" in message(without, TOKENIZER)
    assert "divisor" in message(without, TOKENIZER, 5)


def test_from_torch_refuses_files_without_a_transformer_or_weights():
    """A tokenizer's file and an empty one are refused as a transformer's by the first key that they
    miss, and weights of integers by their type."""
    tokenizer = torch_convert.part_to_torch(TOKENIZER, random_params(TOKENIZER))
    assert "misses class_emb.weight" in message(tokenizer, TOKENIZER)
    assert "misses class_emb.weight" in message({}, TOKENIZER)
    state = transformer_state()
    assert "floats" in message({**state, "head.bias": state["head.bias"].astype(int)}, TOKENIZER)


def test_from_torch_refuses_a_dtype_that_no_model_is_stored_in():
    """Parameters cannot be stored as float16, so that this type is refused by its name."""
    assert "float16" in message(transformer_state(), TOKENIZER, dtype="float16")


def test_from_torch_takes_training_checkpoints_and_wrapped_models(tmp_path):
    """Prefixes of the published trainer and of PyTorch's wrappers are removed, and the optimizer's
    state is left out."""
    tokenizer = torch_convert.part_to_torch(TOKENIZER, random_params(TOKENIZER))
    nested = {f"trainer.vae_local.{key}": array for key, array in tokenizer.items()}
    nested |= {f"trainer.var_wo_ddp.{key}": array for key, array in transformer_state().items()}
    nested["trainer.var_opt.state.0.exp_avg"] = np.zeros(3, np.float32)
    torch_writer.save(tmp_path / "run.pth", nested)
    config, params = torch_convert.from_torch(
        tmp_path / "run.pth", tmp_path / "run.pth", scales=SCALES
    )
    assert config.tokenizer == TOKENIZER and config.transformer.depth == 2
    assert_same(
        params, {"tokenizer": random_params(TOKENIZER), "transformer": random_params(TRANSFORMER)}
    )
    wrapped = {f"module.{key}": array for key, array in tokenizer.items()}
    assert_same(torch_convert.tokenizer_from_torch(wrapped, SCALES)[1], params["tokenizer"])


def test_write_torch_writes_files_that_read_back(tmp_path):
    """Each part becomes one file of the published keys, and both files read back to the same
    parameters. A folder that is a file is refused."""
    params = {"tokenizer": random_params(TOKENIZER), "transformer": random_params(TRANSFORMER)}
    torch_convert.write_torch(
        tmp_path / "out", *torch_convert.to_torch(ModelConfig(TOKENIZER, TRANSFORMER), params)
    )
    paths = [tmp_path / "out" / f"{part}.safetensors" for part in params]
    assert sorted((tmp_path / "out").iterdir()) == paths
    assert "quantize.embedding.weight" in read_tensors(paths[0])
    assert_same(torch_convert.from_torch(*paths, scales=SCALES)[1], params)
    with pytest.raises(UserError, match="cannot write"):
        torch_convert.write_torch(paths[0], {})


def test_write_torch_leaves_files_that_the_umask_allows_others_to_read(tmp_path):
    """Weights are shared on a cluster: a file has the permissions that any new file has here, which
    are those of one that the test itself creates. The second call replaces a file."""
    (tmp_path / "any").touch()
    for _ in range(2):
        torch_convert.write_torch(tmp_path, {"weight": np.zeros(2, np.float32)})
        permissions = (tmp_path / "tokenizer.safetensors").stat().st_mode
        assert permissions == (tmp_path / "any").stat().st_mode


def test_transformer_from_torch_holds_the_target_and_one_tensor(tmp_path):
    """The peak of memory is the bfloat16 model and at most two float32 tensors."""
    config = dataclasses.replace(TRANSFORMER, depth=12, width=192, heads=3, param_dtype="bfloat16")
    state = torch_convert.part_to_torch(config, random_params(config))
    torch_writer.save(tmp_path / "x.pth", state)
    target = sum(array.size for array in state.values()) * 2
    largest = max(array.nbytes for array in state.values())
    load = functools.partial(
        torch_convert.transformer_from_torch, tmp_path / "x.pth", TOKENIZER, dtype="bfloat16"
    )
    load()  # compiles, imports
    tracemalloc.start()
    _, params = load()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    leaves = flatten_dict(params).values()
    assert all(leaf.dtype == ml_dtypes.bfloat16 for leaf in leaves)
    assert sum(leaf.nbytes for leaf in leaves) == target
    assert peak < target + 2 * largest + 2**21, (peak / target, largest / target)
    qkv = state["blocks.7.attn.mat_qkv.weight"].T.reshape(192, 3, 3, 64)
    np.testing.assert_array_equal(
        params["blocks"]["attn"]["qkv"][7], qkv.astype(ml_dtypes.bfloat16)
    )
