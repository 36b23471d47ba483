"""The numbers of the published PyTorch implementation, for seeded weights:
tests/reference/CASE.json and CASE.npz."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reference.seeded_weights import seeded_state_dict
from var_jax.config.scales import Scales
from var_jax.io import torch_convert
from var_jax.models.tokenizer import Tokenizer
from var_jax.models.transformer import Transformer
from var_jax.ops import vq

REFERENCE = Path(__file__).parent / "reference"
CASES = ("small_l2norm", "small_shared_adaln")
TOLERANCE = 1e-4  # of an array's largest magnitude


class Case:
    """A reference case: its arrays, the states that the weights are in, and our model with them."""

    def __init__(self, name: str):
        described = json.loads((REFERENCE / f"{name}.json").read_text())
        settings = described["config"]
        with np.load(REFERENCE / f"{name}.npz") as arrays:
            self.arrays = dict(arrays)
        self.states = [
            seeded_state_dict(described[part], settings["seed"])
            for part in ("vae_shapes", "var_shapes")
        ]
        self.config, self.params = torch_convert.from_torch(
            *self.states,
            scales=Scales.parse(settings["patch_nums"]),
            num_heads=None if settings["attn_l2_norm"] else settings["heads"],
        )
        self.images = np.moveaxis(self.arrays["image_nchw"], 1, -1)

    def tokenizer(self, method: str, *args):
        apply = functools.partial(Tokenizer(self.config.tokenizer).apply, method=method)
        return jax.jit(apply)({"params": self.params["tokenizer"]}, *args)

    def cross_entropy(self, params):
        tokens = jnp.asarray(self.arrays["tokens"])
        logits = Transformer(self.config.transformer).apply(
            {"params": params}, self.arrays["teacher_input"], self.arrays["label"].astype(np.int32)
        )
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], axis=-1)
        return -chosen.mean(), logits

    def tokenizer_loss(self, params):
        rec, _, vq_loss = Tokenizer(self.config.tokenizer).apply({"params": params}, self.images)
        return jnp.mean((rec - self.images) ** 2) + vq_loss, (rec, vq_loss)


@functools.cache
def load(name: str) -> Case:
    return Case(name)


@pytest.fixture(params=CASES)
def case(request):
    with jax.default_matmul_precision("highest"):
        yield load(request.param)


def relative_error(actual, reference) -> float:
    actual = np.asarray(actual)
    assert actual.shape == reference.shape
    return float(np.abs(actual - reference).max() / np.abs(reference).max())


def assert_close(actual, reference):
    assert relative_error(actual, reference) <= TOLERANCE


def nchw(x) -> np.ndarray:
    return np.moveaxis(np.asarray(x), -1, 1)


def test_tokenizer_gives_the_same_features_tokens_and_image(case):
    """Tokens are equal, and features, the sums of code vectors after the first and the last scale,
    and the image agree to rounding."""
    assert_close(nchw(case.tokenizer("features", case.images)), case.arrays["features_nchw"])
    tokens = case.tokenizer("encode", case.images)
    np.testing.assert_array_equal(tokens, case.arrays["tokens"])
    f_hats = jax.jit(vq.decode)(case.tokenizer("quantizer"), tokens)
    assert_close(nchw(f_hats[0]), case.arrays["fhat_first_nchw"])
    assert_close(nchw(f_hats[-1]), case.arrays["fhat_last_nchw"])
    assert_close(nchw(case.tokenizer("decode", tokens)), case.arrays["recon_nchw"])


def test_transformer_gives_the_same_logits_and_cross_entropy(case):
    """Inputs, logits and the loss of teacher forcing agree to rounding."""
    assert_close(
        case.tokenizer("teacher_input", case.arrays["tokens"]), case.arrays["teacher_input"]
    )
    loss, logits = jax.jit(case.cross_entropy)(case.params["transformer"])
    assert_close(logits, case.arrays["logits"])
    assert_close(loss, case.arrays["ce_mean"])


def test_tokenizer_gives_the_same_training_forward_and_gradients(case):
    """The reconstruction, both losses, and the gradient of every parameter, converted to PyTorch's
    keys, agree to rounding."""
    params = case.params["tokenizer"]
    (loss, (rec, vq_loss)), gradients = jax.jit(
        jax.value_and_grad(case.tokenizer_loss, has_aux=True)
    )(params)
    assert_close(nchw(rec), case.arrays["vae_rec_train_nchw"])
    assert_close(vq_loss, case.arrays["vq_loss"])
    assert_close(loss, case.arrays["vae_loss"])
    assert_gradients(
        torch_convert.part_to_torch(case.config.tokenizer, gradients), "vae_grad/", case
    )


def test_transformer_gives_the_same_gradients(case):
    """The gradient of every parameter, converted to PyTorch's keys, agrees to rounding."""
    gradients = jax.jit(jax.grad(case.cross_entropy, has_aux=True))(case.params["transformer"])[0]
    assert_gradients(
        torch_convert.part_to_torch(case.config.transformer, gradients), "var_grad/", case
    )


def assert_gradients(actual, prefix: str, case: Case):
    expected = {
        key.removeprefix(prefix): value
        for key, value in case.arrays.items()
        if key.startswith(prefix)
    }
    assert expected
    errors = {key: relative_error(actual[key], value) for key, value in expected.items()}
    assert {key: error for key, error in errors.items() if error > TOLERANCE} == {}
