"""Counts of parameters and FLOPs: published numbers, numbers by hand, and those of the modules."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from var_jax.config.model import TokenizerConfig, TransformerConfig
from var_jax.config.scales import SCALES_512, Scales
from var_jax.devices import target
from var_jax.models import flops
from var_jax.models.tokenizer import Tokenizer
from var_jax.models.transformer import Cache, Transformer

SHARED_512 = TransformerConfig(depth=36, scales=Scales.parse(SCALES_512), shared_adaln=True)
SMALL = {"num_classes": 5, "vocab_size": 64, "z_channels": 8, "scales": Scales.parse("1,2,3x4")}


def test_param_count_has_the_published_counts():
    """The totals are those of the released checkpoints, d16 to d36; the body is 18 (64 depth)^2 per
    block, and 12 where the blocks share their AdaLN."""
    sums = {16: 310_283_520, 20: 600_917_136, 24: 1_033_399_360, 30: 2_010_020_356}
    for depth, total in sums.items():
        count = flops.param_count(TransformerConfig(depth=depth))
        assert count == {"total": total, "body": 73728 * depth**3}
    assert flops.param_count(SHARED_512) == {"total": 2_353_893_904, "body": 49152 * 36**3}


@pytest.mark.parametrize(
    "config",
    [
        TransformerConfig(depth=3, width=48, heads=4, mlp_ratio=2.5, **SMALL),
        TransformerConfig(depth=2, width=32, heads=2, shared_adaln=True, qk_norm=False, **SMALL),
    ],
)
def test_param_count_is_that_of_the_module(config):
    """The total is the number of values that the module initializes, and the body that of the
    matrices within its blocks, for odd ratios and shared AdaLN as well."""
    inputs = jnp.zeros((1, config.scales.total - config.scales.lengths[0], config.z_channels))
    shapes = jax.eval_shape(
        Transformer(config).init, jax.random.key(0), inputs, jnp.zeros(1, jnp.int32)
    )["params"]
    shapes = nn.meta.unbox(shapes)
    count = flops.param_count(config)
    assert count["total"] == sum(leaf.size for leaf in jax.tree.leaves(shapes))
    matrices = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes["blocks"])
        if path[-1].key in ("kernel", "qkv", "proj")
    ]
    assert count["body"] == sum(leaf.size for leaf in matrices)


def test_next_token_flops_by_hand():
    """Four tokens: the blocks and the head at each, AdaLN once, 1 + 2 + 3 + 4 attended pairs; the
    token table is looked up. Generation is a forward pass, twice with guidance."""
    config = TransformerConfig(
        objective="next_token", depth=3, width=8, heads=2, **{**SMALL, "scales": Scales.parse("2")}
    )
    block = 4 * 8 * 8 + 2 * 8 * 32
    forward = 2 * 4 * (3 * block + 8 * 64) + 2 * (6 * 3 + 2) * 8 * 8 + 4 * 3 * 8 * 10
    assert flops.train_flops_per_image(config) == 3 * forward
    assert flops.generation_flops(config, guided=False) == forward
    assert flops.generation_flops(config) == 2 * forward
    start = dataclasses.replace(config, class_conditioning="start_token")
    assert flops.train_flops_per_image(start) == 3 * (forward - 2 * (6 * 3 + 2) * 8 * 8)


def test_llamagen_sizes_of_next_token_prediction():
    """With LlamaGen's widths, and the class as a start token, the parameters are its published
    numbers once the one difference that counts is added: its SwiGLU has three matrices of 8 w / 3
    rounded up to 256 where the MLP has two of 4 w. (It has no biases and no table of places, which
    are a thousandth.)"""
    published = {(12, 768): 111e6, (24, 1024): 343e6, (36, 1280): 775e6, (48, 1536): 1.4e9}
    for (depth, width), total in published.items():
        config = TransformerConfig(
            objective="next_token",
            class_conditioning="start_token",
            depth=depth,
            heads=width // 64,
            width=width,
            vocab_size=16384,
            scales=Scales.parse("16"),
        )
        hidden = -(-8 * width // 3 // 256) * 256
        rounding = depth * (3 * width * hidden - 8 * width**2)
        count = flops.param_count(config)["total"] + rounding
        assert count == pytest.approx(total, rel=2e-3 if total < 1e9 else 1e-2)


def test_train_flops_per_image_of_d16_and_d30():
    """The exact counts of the smallest and the largest published model at 256 pixels."""
    assert flops.train_flops_per_image(TransformerConfig(depth=16)) == pytest.approx(
        8.956e11, rel=1e-3
    )
    assert flops.train_flops_per_image(TransformerConfig(depth=30)) == pytest.approx(
        5.649e12, rel=1e-3
    )


def test_shared_adaln_has_one_linear_instead_of_one_per_block():
    """Four blocks with their own AdaLN cost three linear layers of 6 width^2 more, each three times
    in training."""
    config = {"depth": 4, "width": 64, "heads": 4, **SMALL}
    own, shared = (
        flops.train_flops_per_image(TransformerConfig(shared_adaln=s, **config))
        for s in (False, True)
    )
    assert own - shared == 3 * 2 * 6 * 64**2 * (4 - 1)


def test_flops_of_other_definitions_overstate_compute():
    """6ND counts AdaLN, which runs once per image, for every token: it gives 1.13 and 1.44 times
    the exact count; dense attention adds exactly the pairs that the mask hides."""
    overstated = {
        d: flops.six_nd_train_flops(TransformerConfig(depth=d))
        / flops.train_flops_per_image(TransformerConfig(depth=d))
        for d in (6, 30)
    }
    assert overstated[6] == pytest.approx(1.13, abs=0.005)
    assert overstated[30] == pytest.approx(1.44, abs=0.005)
    config = TransformerConfig(depth=16)
    dense = flops.dense_attention_train_flops(config) - flops.train_flops_per_image(config)
    assert dense == 3 * 4 * 16 * 1024 * (680**2 - 286_434)


def xla_flops(function, *shapes):
    return jax.jit(function).lower(*shapes).cost_analysis()["flops"]


def shapes_of(init, *args):
    return nn.meta.unbox(jax.eval_shape(init, *args))


# One block, because XLA's analysis counts the body of a loop over layers once; wide, so that
# products dominate.
WIDE = TransformerConfig(
    depth=1,
    width=512,
    heads=2,
    num_classes=5,
    vocab_size=512,
    z_channels=32,
    scales=Scales.parse("1,2,4,8"),
)


@pytest.mark.long
@pytest.mark.parametrize("shared", [False, True])
def test_transformer_agrees_with_xla(shared):
    """Counted FLOPs are within 3 % of XLA's cost analysis.

    They are those of the forward pass, of training and of generation. XLA counts the compiled
    programs themselves, so that a forgotten product would show.
    """
    config = TransformerConfig(
        **{
            f: getattr(WIDE, f)
            for f in (
                "depth",
                "width",
                "heads",
                "num_classes",
                "vocab_size",
                "z_channels",
                "scales",
            )
        },
        shared_adaln=shared,
    )
    model, batch, length = Transformer(config), 4, config.scales.total
    inputs = jax.ShapeDtypeStruct((batch, length - 1, config.z_channels), jnp.float32)
    labels = jax.ShapeDtypeStruct((batch,), jnp.int32)
    params = shapes_of(model.init, jax.random.key(0), inputs, labels)
    forward = xla_flops(model.apply, params, inputs, labels)
    assert flops.forward_flops(config) * batch == pytest.approx(forward, rel=0.03)

    def loss(params, inputs, labels):
        return nn.log_softmax(model.apply(params, inputs, labels))[..., 0].mean()

    train = xla_flops(jax.grad(loss), params, inputs, labels)
    assert flops.train_flops_per_image(config) * batch == pytest.approx(train, rel=0.03)

    def sequence(params, inputs, labels):
        cache, outputs = Cache(), []
        for k in range(len(config.scales)):
            logits, cache = model.apply(
                params, k, inputs[:, : config.scales.lengths[k]], labels, cache, method="next_scale"
            )
            outputs.append(logits)
        return outputs

    cached = xla_flops(sequence, params, inputs, labels)
    assert flops.generation_flops(config, guided=False) * batch == pytest.approx(cached, rel=0.03)
    assert flops.generation_flops(config) == 2 * flops.generation_flops(config, guided=False)


@pytest.mark.parametrize("shared", [False, True])
def test_generation_computes_the_blocks_adaln_once_and_the_heads_at_every_scale(shared):
    """The count is written out for two blocks of width 16 with an MLP of 64, 16 codes of 4
    channels, and maps of 1, 4 and 12 tokens."""
    config = TransformerConfig(
        depth=2,
        width=16,
        heads=2,
        vocab_size=16,
        z_channels=4,
        num_classes=10,
        scales=Scales.parse("1,2,3x4"),
        shared_adaln=shared,
    )
    tokens = 2 * 17 * (2 * (4 * 16 * 16 + 2 * 16 * 64) + 16 * 16 + 4 * 16)
    attention = 2 * 4 * 16 * (1 * 1 + 4 * 5 + 12 * 17)
    adaln = 2 * 16 * 16 * ((6 if shared else 12) + 3 * 2)
    assert flops.generation_flops(config, guided=False) == tokens + attention + adaln


def test_tokenizer_agrees_with_xla():
    """Counted FLOPs of encoder and decoder are within 3 % of XLA's cost analysis of the program of
    accelerators; a single CPU's decoder takes fewer."""
    config = TokenizerConfig(
        scales=Scales.parse("1,2,4,8x6"),
        channels=64,
        multipliers=(1, 2, 3),
        norm_groups=8,
        blocks=1,
        z_channels=16,
        vocab_size=256,
        phi=2,
    )
    model, batch = Tokenizer(config), 2
    images = jax.ShapeDtypeStruct((batch, *config.image_shape), jnp.float32)
    tokens = jax.ShapeDtypeStruct((batch, config.scales.total), jnp.int32)
    params = shapes_of(model.init, jax.random.key(0), images)
    encode = xla_flops(lambda p, x: model.apply(p, x, method="encode"), params, images)
    assert flops.encode_flops(config) * batch == pytest.approx(encode, rel=0.03)

    def decode():
        return xla_flops(lambda p, t: model.apply(p, t, method="decode"), params, tokens)

    with target.tracing_for_other_devices():
        assert flops.decode_flops(config) * batch == pytest.approx(decode(), rel=0.03)
    assert decode() < 0.95 * flops.decode_flops(config) * batch


def test_flops_grow_with_the_image():
    """Twice the side costs about four times as much, as convolutions dominate."""
    small, large = (
        flops.decode_flops(TokenizerConfig(scales=Scales.parse(s), phi=1)) for s in ("1,16", "1,32")
    )
    assert 3.9 < large / small < 4.6  # convolutions by four, attention by sixteen
