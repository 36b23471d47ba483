"""Codes that are revived, steps on smaller images, and what a run of a tokenizer needs."""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from helpers import small
from helpers.adversarial import HEALTH, PATCH
from var_jax.config.scales import Scales
from var_jax.config.tokenizer_training import AdversarialConfig, ProgressiveConfig
from var_jax.config.train import LossConfig, MeshConfig
from var_jax.devices.mesh import make_mesh
from var_jax.errors import UserError
from var_jax.models.tokenizer import Tokenizer
from var_jax.objectives import adversarial, frozen_networks, image_losses, registry
from var_jax.objectives.autoencoder_loss import AutoencoderState, AutoencoderVariant
from var_jax.objectives.frozen_networks import NetworkWeights
from var_jax.objectives.step_types import TRAINED
from var_jax.pretrained import efficientnet
from var_jax.train import step
from var_jax.train.program import Program

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.mark.slow
def test_train_step_revives_a_codebook_of_equal_codes(params, batch):
    """Equal codes are revived within a few steps, and revived codes have no memory: neither moments
    nor an average of the codes before."""
    config = small.train_config("tokenizer", "", codebook=HEALTH)
    optimizer = optax.adam(0.0)
    objective = registry.with_frozen_shapes(config)
    train_step = jax.jit(step.make_train_step(objective, {TRAINED: optimizer}))
    equal = {**params, "quantize": {**params["quantize"], "codebook": jnp.ones((16, 4))}}
    run = AutoencoderState(
        jnp.int32(0), equal, equal, optimizer.init(equal), None, jnp.full((3, 16), 1 / 16)
    )
    run, metrics = train_step(run, batch, NetworkWeights())
    assert (
        float(np.max(metrics["code_usage"])) == 1 / 16
    )  # every search goes to one of the equal codes
    assert int(metrics["revived"]) == 15  # threshold 0.9: one step at decay 0.5 is enough
    moments, ema = optax.tree_utils.tree_get(run.opt_state, "mu"), run.ema
    remaining = np.asarray(moments["quantize"]["codebook"]).any(axis=1)
    assert remaining.sum() == 1
    codes, averaged = (np.asarray(tree["quantize"]["codebook"]) for tree in (run.params, ema))
    np.testing.assert_array_equal(averaged[~remaining], codes[~remaining])
    assert len(np.unique(codes, axis=0)) == 16
    for _ in range(4):
        run, metrics = train_step(run, batch, NetworkWeights())
    assert float(metrics["code_usage"][-1]) > 0.5


def test_warn_of_collapse_names_the_scale(caplog):
    """Counts spread evenly give no warning; one code for all of a scale's tokens gives one line."""
    config = small.train_config("tokenizer", "")
    counts = np.ones((3, 16), int)
    with caplog.at_level(logging.WARNING):
        image_losses.warn_of_collapse(config, counts)
        assert not caplog.records
        counts[2] = 0
        counts[2, 5] = 500
        image_losses.warn_of_collapse(config, counts)
    assert [r.message for r in caplog.records] == [
        "scale 3x4 has collapsed: 1 of 16 codes are used, with a perplexity of 1.0"
    ]


def test_variant_of_a_run_with_both_schedules():
    """The discriminator starts at step 4 and all scales at step 6, and each variant is that of its
    step."""
    config = small.train_config(
        "tokenizer",
        "",
        steps=10,
        adversarial=dataclasses.replace(PATCH, start=0.4),
        progressive=ProgressiveConfig("1,2", 6),
    )
    small_scales = Scales.parse("1,2")
    objective = registry.with_frozen_shapes(config)
    assert [objective.variant(done) for done in (0, 3, 4, 5, 6, 9)] == [
        AutoencoderVariant(False, small_scales),
        AutoencoderVariant(False, small_scales),
        AutoencoderVariant(True, small_scales),
        AutoencoderVariant(True, small_scales),
        AutoencoderVariant(True),
        AutoencoderVariant(True),
    ]
    assert adversarial.first_step(config) == 4
    without = dataclasses.replace(config, adversarial=AdversarialConfig(weight=0.0))
    assert adversarial.first_step(without) is None


@pytest.mark.slow
def test_train_step_of_a_small_phase_averages_images_down(params, batch):
    """The step of a smaller phase is the step of a run at that size, on images averaged down."""
    config = small.train_config("tokenizer", "", progressive=ProgressiveConfig("1,2", 0.5))
    optimizer = optax.sgd(1.0)
    run = AutoencoderState(jnp.int32(0), params, None, optimizer.init(params))
    objective = registry.with_frozen_shapes(dataclasses.replace(config, ema=0.0))
    train_step = step.make_train_step(objective, {TRAINED: optimizer}, objective.variant(0))
    after, metrics = jax.jit(train_step)(run, batch, NetworkWeights())
    smaller = dataclasses.replace(small.TOKENIZER, scales=Scales.parse("1,2"))
    h, w, _ = smaller.image_shape
    images = batch["image"].astype(np.float64)
    # 6 x 8 pixels down to 4 x 4: rows by overlapping pairs as PyTorch's area mean has it, columns
    # in pairs
    rows = np.stack(
        [images[:, i * 6 // h : -(-(i + 1) * 6 // h)].mean(axis=1) for i in range(h)], axis=1
    )
    down = np.stack(
        [rows[:, :, i * 8 // w : -(-(i + 1) * 8 // w)].mean(axis=2) for i in range(w)], axis=2
    )
    images = jnp.asarray(down / 127.5 - 1, jnp.float32)
    rec, _, vq = jax.jit(lambda p: Tokenizer(smaller).apply({"params": p}, images))(params)
    expected = 0.2 * np.abs(rec - images).mean() + ((rec - images) ** 2).mean() + vq
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-4)
    assert metrics["code_usage"].shape == (2,)
    assert jax.tree.map(jnp.shape, after.params) == jax.tree.map(jnp.shape, params)


def test_load_drops_terms_whose_optional_weights_are_missing(monkeypatch, caplog):
    """Terms whose weights come with a package are left out, and a warning per term names its key
    and the package."""

    def none(path=""):
        raise UserError("there are no weights of EfficientNet-Lite0")

    config = small.train_config(
        "tokenizer",
        "",
        loss=LossConfig(perceptual=1.0),
        adversarial=AdversarialConfig(weight=0.4, discriminator="features"),
    )
    monkeypatch.setattr(efficientnet, "find_weights", none)
    with caplog.at_level(logging.WARNING):
        resolved, loaded = frozen_networks.load(config)
    assert (resolved.loss.perceptual, resolved.adversarial.weight, loaded.weights) == (
        0.0,
        0.0,
        NetworkWeights(),
    )
    assert ["loss.perceptual" in caplog.text, "adversarial.weight" in caplog.text] == [True, True]
    assert all(
        "pip install" in record.message and "\n" not in record.message for record in caplog.records
    )


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("loss", {"perceptual": 1.0, "perceptual_weights": "/none.pth"}, "/none.pth"),
        (
            "loss",
            {"perceptual": 1.0, "perceptual_network": "lpips"},
            "loss.perceptual_weights is ''",
        ),
        (
            "adversarial",
            {"weight": 0.4, "discriminator": "features", "feature_weights": "/none.pth"},
            "/none.pth",
        ),
        (
            "adversarial",
            {"weight": 0.4, "discriminator": "features", "feature_network": "dino"},
            "adversarial.feature_weights is ''",
        ),
    ],
)
def test_load_refuses_named_weights_that_are_missing(section, changes, message):
    """A file that the config names must be there: its absence is an error, and the error has the
    key or the file."""
    config = small.train_config("tokenizer", "")
    config = dataclasses.replace(
        config, **{section: dataclasses.replace(getattr(config, section), **changes)}
    )
    with pytest.raises(UserError, match=message):
        frozen_networks.load(config)


def test_program_refuses_images_too_small_for_the_discriminator():
    """The error has the key and the most layers that fit; smaller images of a progressive start
    count only once the discriminator runs."""
    config = small.train_config("tokenizer", "", adversarial=dataclasses.replace(PATCH, layers=3))
    with pytest.raises(
        UserError, match="adversarial.layers is 3; it must be at most 2 for images of 6 pixels"
    ):
        Program(registry.with_frozen_shapes(config), make_mesh(MeshConfig(8, 1)))
    fits = dataclasses.replace(config, adversarial=dataclasses.replace(PATCH, start=0, layers=2))
    smaller = dataclasses.replace(fits, progressive=ProgressiveConfig("1", 0.5))
    with pytest.raises(
        UserError, match="adversarial.layers is 2; it must be at most 1 for images of 2 pixels"
    ):
        Program(registry.with_frozen_shapes(smaller), make_mesh(MeshConfig(8, 1)))
    late = dataclasses.replace(PATCH, start=0.5, layers=2)
    later = registry.with_frozen_shapes(dataclasses.replace(smaller, adversarial=late))
    Program(later, make_mesh(MeshConfig(8, 1)))
