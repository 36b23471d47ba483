"""Runs that tune a tokenizer's decoder on generated tokens by a Fréchet loss."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict

from helpers import generated, small
from helpers.batches import image_batch
from helpers.runs import assert_resumes_bit_for_bit, assert_same, losses, weights
from var_jax import Pipeline
from var_jax.cli.main import main
from var_jax.config.alignment_config import AlignmentConfig
from var_jax.config.model import ModelConfig
from var_jax.config.scales import Scales
from var_jax.config.train import DataConfig, MeshConfig
from var_jax.data import token_cache
from var_jax.devices.mesh import make_mesh
from var_jax.errors import UserError
from var_jax.io import model_directory
from var_jax.io.tokenizer_fingerprint import encoding_differences, encoding_fingerprint
from var_jax.objectives import frozen_networks
from var_jax.objectives.autoencoder import Autoencoder
from var_jax.objectives.frozen_networks import LossNetworks, PooledNetwork
from var_jax.train.batches import _tokenizer_fingerprint
from var_jax.train.loop import train
from var_jax.train.program import Program

pytestmark = pytest.mark.usefixtures("compiled_once")

CONTINUOUS = dataclasses.replace(small.TOKENIZER, codes="none", scales=Scales.parse("3x4"))
FEATURES = 5
PIXELS = int(np.prod(small.TOKENIZER.image_shape))
NETWORK = PooledNetwork(
    np.random.default_rng(2).standard_normal((PIXELS, FEATURES)).astype(np.float32) / 8,
    FEATURES,
    lambda kernel, images: jnp.tanh(images.reshape(len(images), -1) @ kernel),
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    directory = tmp_path_factory.mktemp("samples") / "tokens"
    generated.write_cache(directory)
    return directory


@pytest.fixture
def network(monkeypatch):
    """Features of a matrix in place of EfficientNet's, which would take long to compile."""
    monkeypatch.setattr(frozen_networks, "_pooled", lambda _: NETWORK)


def aligned(cache, **changes):
    """Returns a run of the small tokenizer's decoder on a cache's tokens."""
    settings = {"weight": 1.0, "tokens": str(cache), "decay": 0.5, "images": 16, "components": 4}
    settings |= changes.pop("alignment", {})
    data_dir = changes.pop("data_dir", "")
    return small.train_config(
        "tokenizer", data_dir, trainable="decoder", alignment=AlignmentConfig(**settings), **changes
    )


@pytest.mark.long
def test_alignment_tunes_the_decoder_alone_and_resumes(
    cache, digits_dir, model_dir, network, tmp_path, monkeypatch, unevaluated
):
    """Over a mesh, the distance falls; encoder, quantizer and codes stay to the last bit, and every
    array of the decoder moves. A stopped run goes on to the same losses, weights and moments. It
    does not go on with other samples, nor does a branch with those of another encoder."""
    config = aligned(
        cache,
        data_dir=digits_dir,
        init_from=str(model_dir),
        steps=6,
        mesh=MeshConfig(4, 2),
    )
    assert_resumes_bit_for_bit(config, tmp_path, monkeypatch)
    runs = [weights(tmp_path / name, "alignment") for name in ("whole", "stopped")]
    assert_same(*runs)
    rows = losses(tmp_path / "whole")
    distances = [row["frechet"] for row in rows if row["split"] == "train"]
    assert distances[-1] < 0.7 * distances[0], distances
    before: dict = flatten_dict(small.pipeline().params["tokenizer"], sep="/")
    after: dict = flatten_dict(weights(tmp_path / "whole"), sep="/")
    for path, leaf in after.items():
        assert np.array_equal(leaf, before[path]) != path.startswith("decoder/"), path
    with pytest.raises(UserError, match="generated tokens of sample set 77.*, then 5a"):
        other = tmp_path / "other"
        generated.write_cache(other, generated="77" * 8)
        alignment = dataclasses.replace(config.alignment, tokens=str(other))
        train(dataclasses.replace(config, alignment=alignment), tmp_path / "whole")
    encoder = tmp_path / "encoder"
    generated.write_cache(encoder, other_encoder()[0])
    alignment = dataclasses.replace(config.alignment, tokens=str(encoder))
    changed = dataclasses.replace(config, alignment=alignment)
    with pytest.raises(UserError, match="than that of the run's checkpoint: other weights of the"):
        train(changed, tmp_path / "whole")
    branch = dataclasses.replace(
        changed, init_from="", branch_from=str(tmp_path / "whole"), branch_step=4
    )
    with pytest.raises(
        UserError, match="than that of branch_from .*: other weights of the encoder"
    ):
        train(branch, tmp_path / "branch")
    assert not (tmp_path / "branch").exists()


@pytest.mark.long
def test_alignment_is_the_same_on_eight_devices(params, batch):
    """The moments at the start and after a step, the loss and the decoder are those of one device,
    to rounding: moments are of all rows, wherever they are."""
    config = aligned("samples", init_from="model")
    objective, results = Autoencoder(config, LossNetworks(alignment=NETWORK)), []
    random = np.random.default_rng(3)
    batches = [
        {
            **image_batch(8),
            "generated": random.integers(16, size=(8, small.SCALES.total)).astype(np.int32),
        }
        for _ in range(2)
    ]
    for data, model in ((1, 1), (4, 2)):
        mesh = make_mesh(MeshConfig(data, model), jax.devices()[: data * model])
        with jax.set_mesh(mesh):
            program = Program(objective, mesh)
            rows = [jax.device_put(batch, program.rows) for batch in batches]
            run = program.first_state(jax.tree.map(np.asarray, params))
            run = objective.initialize_from_data(
                run, lambda rows=rows: (row for row in rows), program.shardings, program.replicated
            )
            frozen = jax.device_put(objective.frozen, program.replicated)
            first = jax.tree.map(np.asarray, run.alignment)
            run, metrics = program.step()(run, rows[0], frozen)
            results.append(jax.tree.map(np.asarray, (first, run.alignment, metrics, run.params)))
    one, eight = results
    signs = np.sign(np.sum(one[0].axes * eight[0].axes, axis=0))  # of axes, which are arbitrary
    np.testing.assert_allclose(eight[0].variances, one[0].variances, rtol=1e-4)
    np.testing.assert_allclose(eight[0].axes * signs, one[0].axes, atol=1e-4)
    for state in (0, 1):
        mean = eight[state].generated.mean * signs
        np.testing.assert_allclose(mean, one[state].generated.mean, atol=1e-4)
    for name in ("frechet", "loss", "grad_norm"):
        np.testing.assert_allclose(eight[2][name], one[2][name], rtol=1e-3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), eight[3], one[3])


def swapped(directory):
    """Writes a cache whose tokenizer was replaced by one with another encoder."""
    generated.write_cache(directory)
    tokenizer = {"tokenizer": other_encoder()[0]}
    model_directory.save(
        epath.Path(directory) / "tokenizer", ModelConfig(small.TOKENIZER), tokenizer
    )


def other_encoder():
    """Returns the small tokenizer's parameters with another encoder, and with another decoder."""
    params = small.pipeline().params["tokenizer"]
    return [
        {**params, part: jax.tree.map(lambda x: x + 1e-3, params[part])}
        for part in ("encoder", "decoder")
    ]


@pytest.mark.long
def test_alignment_refuses_tokens_that_do_not_fit(
    cache, digits_dir, model_dir, network, tmp_path, unevaluated
):
    """Each mistake has one line, and leaves no workdir: no cache, one of real images, one of
    another encoder, one with another tokenizer in place of its own, and too few samples."""
    generated.write_cache(tmp_path / "encoder", other_encoder()[0])
    generated.write_cache(tmp_path / "real", generated="")
    swapped(tmp_path / "swapped")
    start = {"data_dir": digits_dir, "init_from": str(model_dir)}
    mistakes = [
        (aligned(tmp_path / "none", **start), "none is no token cache: it has no manifest.json"),
        (aligned(tmp_path / "real", **start), "alignment.tokens is .*these are of real images"),
        (aligned(tmp_path / "encoder", **start), "the tokenizer of alignment.tokens .* init_from"),
        (aligned(tmp_path / "swapped", **start), "swapped/tokenizer has the fingerprint"),
        (
            aligned(cache, alignment={"images": 25}, **start),
            "alignment.images is 25; it must be at most 24, the number of samples in",
        ),
    ]
    for config, message in mistakes:
        with pytest.raises(UserError, match=message):
            train(config, tmp_path / "run")
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trainable": ""}, "trainable is ''; it must be 'decoder' or 'post_quant_conv'"),
        ({"trainable": "decoder,quantize"}, "trainable is 'decoder,quantize'"),
        ({"alignment": AlignmentConfig(1.0)}, "alignment.tokens is ''; it must be the token cache"),
        ({"init_from": ""}, "init_from is ''; it must be the tokenizer whose decoder is aligned"),
        ({"microbatches": 2}, "microbatches is 2; it must be 1 with alignment.weight"),
        (
            {
                "tokenizer": dataclasses.replace(
                    small.TOKENIZER, codes="none", scales=Scales.parse("3x4")
                )
            },
            "alignment.weight is 1.0; it must be 0 with tokenizer.codes 'none'",
        ),
    ],
)
def test_alignment_refuses_settings_without_a_meaning(changes, message):
    """Tokens that change during the run, no tokens, a tokenizer that has none, none to start from,
    and parts of a batch, over which the distance is no mean."""
    config = aligned("samples", init_from="model")
    with pytest.raises(UserError, match=message):
        dataclasses.replace(config, **changes)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("weight", -1.0),
        ("decay", 1.0),
        ("images", 1),
        ("images", AlignmentConfig.components),
        ("components", 0),
        ("feature_size", 0),
    ],
)
def test_alignment_config_is_checked(key, value):
    """A value out of range is refused by the key's name: d images have no variance along the d-th
    axis."""
    with pytest.raises(UserError, match=rf"alignment\.{key} is"):
        AlignmentConfig(**{key: value})


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """Tokenizers alone: the small one with another encoder, and with another decoder."""
    directory = tmp_path_factory.mktemp("tokenizers")
    for name, params in zip(("encoder", "decoder"), other_encoder(), strict=True):
        model_directory.save(
            epath.Path(directory / name), ModelConfig(small.TOKENIZER), {"tokenizer": params}
        )
    return directory


def merge(model_dir, tuned, out, weight: str = "1") -> int:
    options = ["--base", str(model_dir), "--tuned", str(tuned), "--weight", weight]
    return main(["merge", *options, "--out", str(out)])


def test_merge_gives_a_model_the_decoder_of_a_tokenizer(tokenizers, model_dir, tmp_path, capsys):
    """The whole model has the tuned decoder and the rest of the base, to the last bit, and between
    both at a weight of 0.5. A tokenizer with another encoder is refused in one line, with exit code
    2, and nothing is written."""
    base, out = small.pipeline().params, tmp_path / "out"
    assert merge(model_dir, tokenizers / "decoder", out) == 0
    merged = Pipeline.from_pretrained(out).params
    assert_same(merged, {**base, "tokenizer": other_encoder()[1]})
    assert merge(model_dir, tokenizers / "decoder", tmp_path / "half", "0.5") == 0
    half = Pipeline.from_pretrained(tmp_path / "half").params
    assert_same(half["transformer"], base["transformer"])
    for name in ("encoder", "quantize"):
        assert_same(half["tokenizer"][name], base["tokenizer"][name])
    kernel = [one["tokenizer"]["decoder"]["conv_in"]["kernel"] for one in (base, half, merged)]
    np.testing.assert_allclose(kernel[1], (kernel[0] + kernel[2]) / 2, atol=1e-6)
    capsys.readouterr()
    assert merge(model_dir, tokenizers / "encoder", tmp_path / "none") == 2
    error = capsys.readouterr().err
    assert "others: other weights of the encoder; give one with its encoder and codes" in error
    assert error.count("\n") == 1 and not (tmp_path / "none").exists()


def test_merge_of_a_decoder_keeps_every_other_bit_and_the_bases_classes(tmp_path):
    """A zero of the encoder keeps its sign at any weight, which a sum would lose. The classes are
    those of the base, whatever the classes of the images that tuned the decoder."""
    base = small.pipeline().params
    params: dict = flatten_dict(base["tokenizer"], sep="/")
    name = next(name for name in params if name.startswith("encoder/"))
    params[name] = np.full_like(params[name], -0.0)
    zeros = unflatten_dict(params, sep="/")
    model = {**base, "tokenizer": zeros}
    decoder = {**zeros, "decoder": jax.tree.map(lambda x: x + 1, zeros["decoder"])}
    model_directory.save(epath.Path(tmp_path / "base"), small.MODEL, model, tuple("abcdefghij"))
    tokenizer = ModelConfig(dataclasses.replace(small.TOKENIZER, gradient_dtype="bfloat16"))
    tuned = epath.Path(tmp_path / "tuned")
    model_directory.save(tuned, tokenizer, {"tokenizer": decoder}, ("x", "y"))
    assert merge(tmp_path / "base", tmp_path / "tuned", tmp_path / "out", "0.5") == 0
    merged = Pipeline.from_pretrained(tmp_path / "out")
    after: dict = flatten_dict(merged.params["tokenizer"], sep="/")
    for path, leaf in params.items():
        if not path.startswith("decoder/"):
            assert np.asarray(after[path]).tobytes() == leaf.tobytes(), path
    assert merged.class_names == tuple("abcdefghij")


def test_differences_of_encodings_name_settings_or_weights():
    """The dtype of the computation decides tokens, that of gradients decides none; equal encoders
    have no difference, and equal fingerprints."""
    params = small.pipeline().params["tokenizer"]
    encoder, decoder = other_encoder()
    own = small.TOKENIZER, params
    changes = {
        key: (dataclasses.replace(small.TOKENIZER, **{key: "bfloat16"}), params)
        for key in ("dtype", "gradient_dtype")
    }
    expected = [
        (changes["dtype"], ["tokenizer.dtype: float32 here, bfloat16 there"]),
        (changes["gradient_dtype"], []),
        ((small.TOKENIZER, encoder), ["other weights of the encoder"]),
        ((small.TOKENIZER, decoder), []),
    ]
    for other, words in expected:
        assert encoding_differences(own, other) == words
        assert (encoding_fingerprint(*own) != encoding_fingerprint(*other)) == bool(words)


def test_token_cache_serves_a_tokenizer_with_another_decoder(cache, tokenizers, tmp_path):
    """Tokens of the small tokenizer are those of one that differs in its decoder alone, and not
    those of one with another encoder: not even where the cache's copy is replaced by that one."""
    opened, data = token_cache.open_cache(cache), DataConfig("digits")
    swapped(tmp_path / "swapped")
    for name in ("decoder", "encoder"):
        config, params = model_directory.load_tokenizer(epath.Path(tokenizers / name))
        objective = SimpleNamespace(
            carried_model=lambda config=config, params=params: (
                ModelConfig(config),
                {"tokenizer": params},
            )
        )
        noted = _tokenizer_fingerprint(objective, opened)
        if name == "decoder":
            opened.check(data, config, noted)
            continue
        with pytest.raises(UserError, match="tokenizer fingerprint"):
            opened.check(data, config, noted)
        with pytest.raises(UserError, match="put that tokenizer back"):
            _tokenizer_fingerprint(objective, token_cache.open_cache(tmp_path / "swapped"))
