"""The tokenizer: shapes, published sizes, gradients, precision, and quantizers of every kind."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from helpers import small
from var_jax.config.model import TokenizerConfig
from var_jax.errors import UserError
from var_jax.io.torch_keys import abstract
from var_jax.models.cnn import DROPOUT, ResBlock
from var_jax.models.tokenizer import Tokenizer
from var_jax.ops import vq


@pytest.fixture(scope="module")
def params():
    return small.pipeline().params["tokenizer"]


@pytest.fixture(scope="module")
def images():
    return (
        np.random.default_rng(0)
        .uniform(-1, 1, (3, *small.TOKENIZER.image_shape))
        .astype(np.float32)
    )


def apply(params, *args, method=None, config=small.TOKENIZER):
    return jax.jit(lambda p, *a: Tokenizer(config).apply({"params": p}, *a, method=method))(
        params, *args
    )


def test_tokenizer_shapes_of_a_gray_model_that_is_not_square(params, images):
    """Height and width differ, so that a swap of the two would show in one of the shapes."""
    assert small.TOKENIZER.image_shape == (6, 8, 1) == images.shape[1:]
    rec, tokens, loss = apply(params, images)
    assert (rec.shape, rec.dtype) == (images.shape, jnp.float32)
    assert (tokens.shape, tokens.dtype) == ((3, 17), jnp.int32) and loss.shape == ()
    assert apply(params, images, method="features").shape == (3, 3, 4, 4)
    np.testing.assert_array_equal(apply(params, images, method="encode"), tokens)
    assert apply(params, tokens, method="teacher_input").shape == (3, 16, 4)


def test_tokenizer_has_the_published_parameters_and_shapes():
    """The default config has the 108,948,355 parameters of the released tokenizer and 680 tokens
    per image of 256 x 256 pixels."""
    config = TokenizerConfig()
    leaves = abstract(config)
    assert sum(int(np.prod(leaf.shape)) for leaf in leaves.values()) == 108_948_355
    assert config.image_shape == (256, 256, 3)
    out = jax.eval_shape(
        lambda: Tokenizer(config).init_with_output(jax.random.key(0), jnp.zeros((1, 256, 256, 3)))[
            0
        ]
    )
    assert [x.shape for x in out] == [(1, 256, 256, 3), (1, 680), ()]


@pytest.mark.long
def test_gradients_pass_straight_through_the_codes_into_the_encoder(params, images):
    """The encoder gets gradients as if quantization were the identity.

    The codes get none. The check is the bias of the last layer before the codes, whose gradient
    must be the sum of the decoder's gradient at the quantized map.
    """

    def loss(params):
        rec, _, _ = Tokenizer(small.TOKENIZER).apply({"params": params}, images)
        return jnp.mean((rec - images) ** 2)

    gradients = jax.jit(jax.grad(loss))(params)
    assert all(
        float(jnp.abs(g).max()) > 0 for g in jax.tree.leaves(gradients["encoder"]) if g.ndim > 1
    )
    # Without the VQ loss the codes get nothing: the reconstruction passes over them.
    assert not any(float(jnp.abs(g).max()) for g in jax.tree.leaves(gradients["quantize"]))

    # The feature's gradient is the decoder's at the quantized map: so is that of quant_conv's bias,
    # summed up.
    quantizer = apply(params, method="quantizer")
    f_hat = vq.quantize(quantizer, apply(params, images, method="features")).f_hats[-1]

    def decoded(f_hat):
        rec = Tokenizer(small.TOKENIZER).apply({"params": params}, f_hat, method="reconstruct")
        return jnp.mean((rec - images) ** 2)

    np.testing.assert_allclose(
        gradients["quant_conv"]["bias"],
        jax.jit(jax.grad(decoded))(f_hat).sum(axis=(0, 1, 2)),
        rtol=1e-4,
        atol=1e-6,
    )


@pytest.mark.long
def test_vq_loss_teaches_encoder_and_codes(params, images):
    """Only the codes that were chosen have a gradient, and so does the encoder; the decoder, on
    which this loss does not depend, has none."""
    gradients = jax.jit(
        jax.grad(lambda p: Tokenizer(small.TOKENIZER).apply({"params": p}, images)[2])
    )(params)
    used = np.unique(apply(params, images)[1])
    by_code = jnp.abs(gradients["quantize"]["codebook"]).max(axis=1)
    np.testing.assert_array_equal(np.nonzero(by_code)[0], used)
    assert float(jnp.abs(gradients["encoder"]["conv_in"]["kernel"]).max()) > 0
    assert not any(float(jnp.abs(g).max()) for g in jax.tree.leaves(gradients["decoder"]))


def test_decoded_images_are_clamped_and_training_ones_are_not(params, images):
    """With a last layer 50 times as strong, training sees values beyond 1, and decoding cuts them
    at -1 and 1."""
    loud = jax.tree.map(lambda x: x, params)
    loud["decoder"] = {
        **params["decoder"],
        "conv_out": jax.tree.map(lambda x: x * 50, params["decoder"]["conv_out"]),
    }
    rec, tokens, _ = apply(loud, images)
    decoded = apply(loud, tokens, method="decode")
    assert np.abs(rec).max() > 1 and np.abs(decoded).max() == 1
    np.testing.assert_allclose(decoded, np.clip(rec, -1, 1), atol=1e-4)


@pytest.mark.long
def test_cosine_codes_are_chosen_by_angle_and_added_as_they_are(params, images):
    """The search by cosine ignores the codes' lengths, and decoding does not.

    Codes of different lengths tell both apart from the Euclidean search.
    """
    cosine = dataclasses.replace(small.TOKENIZER, codes="cosine")
    longer = jax.tree.map(lambda x: x, params)
    lengths = np.linspace(0.5, 2, 16, dtype=np.float32)[:, None]
    longer["quantize"] = {
        **params["quantize"],
        "codebook": params["quantize"]["codebook"] * lengths,
    }
    feature = np.asarray(apply(params, images, method="features"))
    mean = feature.reshape(3, -1, 4).mean(axis=1)  # what the first scale, of one token, sees

    def first(params, config):
        return np.asarray(apply(params, images, method="encode", config=config))[:, 0]

    codes = np.asarray(longer["quantize"]["codebook"])
    unit = codes / np.linalg.norm(codes, axis=1, keepdims=True)
    np.testing.assert_array_equal(first(longer, cosine), (mean @ unit.T).argmax(axis=1))
    np.testing.assert_array_equal(
        first(longer, cosine), first(params, cosine)
    )  # lengths do not count
    distance = ((mean[:, None] - codes) ** 2).sum(axis=-1)
    np.testing.assert_array_equal(first(longer, small.TOKENIZER), distance.argmin(axis=1))
    tokens = np.asarray(apply(longer, images, method="encode", config=cosine))
    np.testing.assert_array_equal(
        apply(longer, tokens, method="decode", config=cosine),
        apply(longer, tokens, method="decode"),
    )


def test_bfloat16_keeps_codes_and_images_in_float32(params, images):
    """Images, features and the loss stay float32 when the network computes in bfloat16."""
    config = dataclasses.replace(small.TOKENIZER, dtype="bfloat16")
    rec, _, loss = apply(params, images, config=config)
    assert rec.dtype == loss.dtype == jnp.float32
    assert apply(params, images, method="features", config=config).dtype == jnp.float32


@pytest.mark.long
@pytest.mark.parametrize("remat", ["none", "full"])
def test_dropout_acts_in_training_alone(params, images, remat):
    """With a key the output changes, differently for another key; without one it is that of a model
    without dropout. Dropout has no parameters, so that any tokenizer may be trained further with
    it."""
    config = dataclasses.replace(small.TOKENIZER, dropout=0.5, remat=remat)
    assert abstract(config).keys() == abstract(small.TOKENIZER).keys()

    @jax.jit
    def trained(params, seed):
        rngs = {DROPOUT: jax.random.key(seed)}
        return (
            Tokenizer(config)
            .apply({"params": params}, images, method="forward", rngs=rngs)
            .reconstruction
        )

    plain = apply(params, images)[0]
    np.testing.assert_array_equal(apply(params, images, config=config)[0], plain)
    first, again, other = trained(params, 0), trained(params, 0), trained(params, 1)
    np.testing.assert_array_equal(first, again)
    assert float(jnp.abs(first - plain).max()) > 1e-3 and float(jnp.abs(first - other).max()) > 1e-3


def test_dropout_keeps_the_mean_of_what_the_second_convolution_sees():
    """A residual block whose second convolution sums one channel up: its mean over many images is
    the value without dropout, because what is kept is scaled up, and every value is a sum of kept
    ones."""
    config = dataclasses.replace(small.TOKENIZER, dropout=0.25, norm_groups=1)
    block = ResBlock(4, config)
    x = jnp.broadcast_to(
        jnp.asarray(np.random.default_rng(0).normal(size=(1, 2, 2, 4)), jnp.float32),
        (4000, 2, 2, 4),
    )
    params = block.init(jax.random.key(0), x[:1])
    exact = block.apply(params, x[:1])
    dropped = block.apply(params, x, rngs={DROPOUT: jax.random.key(1)})
    spread = np.asarray(dropped).std(axis=0)
    assert spread.min() > 0
    np.testing.assert_array_less(
        np.abs(np.asarray(dropped).mean(axis=0) - exact[0]), 5 * spread / 4000**0.5
    )


@pytest.mark.long
def test_xavier_initialization_has_the_published_deviation():
    """Every convolution, the quantizer's residual ones among them, starts with the deviation gain
    sqrt(2 / (fan_in + fan_out))."""
    config = dataclasses.replace(small.TOKENIZER, channels=32, z_channels=16, init_gain=0.5)
    init = jax.jit(Tokenizer(config).init)(jax.random.key(0), jnp.zeros((1, *config.image_shape)))[
        "params"
    ]
    kernels = {
        path: leaf
        for path, leaf in flatten_dict(nn.meta.unbox(init), sep="/").items()
        if path.endswith("kernel") and leaf.size > 500
    }
    assert len(kernels) > 10 and "quantize/phi_kernel" in kernels
    for path, kernel in kernels.items():
        *taps, fan_in, fan_out = kernel.shape[-4:]
        deviation = 0.5 * (2 / (np.prod(taps) * (fan_in + fan_out))) ** 0.5
        np.testing.assert_allclose(
            kernel.std(), deviation, rtol=5 / (2 * kernel.size) ** 0.5, err_msg=path
        )
        assert float(jnp.abs(kernel).max()) > 2.5 * deviation, (
            path
        )  # no uniform distribution reaches that


def test_quantizer_dropout_decodes_what_is_left(params, images):
    """Where images end at the first scale, only its map is decoded, and the loss is its error
    alone."""
    config = dataclasses.replace(small.TOKENIZER, quantizer_dropout=1.0, quantizer_dropout_from=0)
    model = Tokenizer(config)

    @jax.jit
    def forward(params):
        out = model.apply({"params": params}, images, jax.random.key(7), method="forward")
        feature = model.apply({"params": params}, images, method="features")
        quantizer = model.apply({"params": params}, method="quantizer")
        f_hats = vq.quantize(quantizer, feature).f_hats
        ends = [model.apply({"params": params}, f_hat, method="reconstruct") for f_hat in f_hats]
        squares = [jnp.mean((f_hat - feature) ** 2, axis=(1, 2, 3)) for f_hat in f_hats]
        return out, jnp.stack(ends), jnp.stack(squares)

    out, ends, squares = jax.tree.map(np.asarray, forward(params))
    lasts = small.SCALES.level_ids[out.counted.sum(axis=1) - 1]
    assert len(set(lasts)) > 1  # this key ends images at different scales
    np.testing.assert_allclose(
        out.reconstruction, [ends[k, row] for row, k in enumerate(lasts)], atol=1e-5
    )
    by_image = [1.25 * squares[: k + 1, row].mean() for row, k in enumerate(lasts)]
    np.testing.assert_allclose(out.vq_loss, np.mean(by_image), rtol=1e-5)


def test_quantizer_dropout_is_off_without_a_key(params, images):
    """A model that always drops scales counts all of them when no key is given, and its outputs are
    those of a model without dropout, bit for bit."""
    config = dataclasses.replace(small.TOKENIZER, quantizer_dropout=1.0, quantizer_dropout_from=0)
    with_dropout = apply(params, images, method="forward", config=config)
    assert np.all(with_dropout.counted) and with_dropout.residuals.shape == (3, 17, 4)
    for output, plain in zip(with_dropout, apply(params, images), strict=False):
        np.testing.assert_array_equal(output, plain)


def test_binary_codes_have_no_codebook_and_leave_the_rest_as_it_is():
    """The binary tokenizer's parameters are the other's without the codebook; a size that binary
    codes cannot have is named with its key."""
    binary = dataclasses.replace(small.TOKENIZER, codes="bsq")
    shapes, table = abstract(binary), abstract(small.TOKENIZER)
    assert (
        table.keys() - shapes.keys() == {"quantize/codebook"} and not shapes.keys() - table.keys()
    )
    assert (binary.codebook_parameters, small.TOKENIZER.codebook_parameters) == (0, 64)
    for changes, message in (
        ({"vocab_size": 4096}, r"vocab_size is 4096; it must be 2 \*\* z_channels = 16"),
        ({"z_channels": 31, "vocab_size": 2**31}, "z_channels is 31; it must be at most 30"),
    ):
        with pytest.raises(UserError, match=message):
            dataclasses.replace(binary, **changes)
    with pytest.raises(UserError, match="quantizer_dropout_from is 3; .* at most 2"):
        dataclasses.replace(small.TOKENIZER, quantizer_dropout=0.1)
