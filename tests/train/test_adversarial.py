"""Training with a discriminator and a codebook that is looked after: gradients against numpy,
resume, meshes, and what stops a run."""

import dataclasses
import json
import logging

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from helpers import small
from helpers.runs import losses
from var_jax.config.scales import Scales
from var_jax.config.tokenizer_training import AdversarialConfig, CodebookConfig, ProgressiveConfig
from var_jax.config.train import LossConfig, MeshConfig
from var_jax.devices.mesh import make_mesh
from var_jax.errors import UserError
from var_jax.io.checkpoint import Checkpoints
from var_jax.models.tokenizer import Tokenizer
from var_jax.objectives import frozen_networks, step, tokenizer_step
from var_jax.objectives.critic import Critic
from var_jax.objectives.frozen_networks import Features, Networks
from var_jax.objectives.phase import Phase, phase_of
from var_jax.ops import diffaugment
from var_jax.pretrained import efficientnet
from var_jax.pretrained.perceptual import Perceptual
from var_jax.train import evaluation, loop
from var_jax.train.loop import Diverged, train
from var_jax.train.metrics import MetricWriter
from var_jax.train.optimizer import Optimizers
from var_jax.train.program import Program
from var_jax.train.state import DiscriminatorState, TrainState

PATCH = AdversarialConfig(
    weight=0.4,
    start=1,
    warmup=2,
    channels=8,
    layers=1,
    lecam=0.1,
    lecam_decay=0.9,
    r1=0.1,
    r1_every=2,
)
HEALTH = CodebookConfig(init="sampled", revive_threshold=0.9, revive_decay=0.5)
# The distance sum of fourth powers over a fixed number, whose gradient is written down below.
QUARTIC = Perceptual(
    "quartic",
    {"over": jnp.float32(5.0)},
    lambda params, x, y: jnp.sum((x - y) ** 4, axis=(1, 2, 3)) / params["over"],
)


pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture(scope="module")
def batch():
    random = np.random.default_rng(0)
    return {"image": random.integers(0, 256, (8, *small.TOKENIZER.image_shape), dtype=np.uint8)}


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(jnp.asarray, small.pipeline().params["tokenizer"])


class Linear:
    """Flattened images times a matrix: a discriminator whose gradients are written down by hand."""

    def logits(self, params, spectral, frozen, images, key, blur):
        return images.reshape(images.shape[0], -1) @ params["matrix"], spectral


def at_last_kernel(hidden, cotangent):
    """The gradient of a 3x3 convolution's kernel, tap by tap, in float64."""
    h, w = hidden.shape[1:3]
    padded = np.pad(hidden.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    return np.array(
        [
            [
                np.einsum("bhwc,bhwo->co", padded[:, i : i + h, j : j + w], cotangent)
                for j in range(3)
            ]
            for i in range(3)
        ]
    )


@pytest.mark.parametrize("lowest", [0.015, 30.0])
def test_gradients_with_a_linear_discriminator(params, batch, lowest):
    """Every term, the adaptive weight, and both networks' gradients where they can be written
    down."""
    weights = LossConfig(l1=0.3, l2=0.7, vq=2.0, perceptual=0.5)
    adversarial = dataclasses.replace(PATCH, r1=0.0, adaptive_lowest=lowest, start=1, warmup=4)
    config = small.train_config("tokenizer", "", loss=weights, adversarial=adversarial)
    images = batch["image"].astype(np.float32) / 127.5 - 1
    random = np.random.default_rng(1)
    matrix = (0.05 * random.normal(size=(images[0].size, 7))).astype(np.float32)
    averages = np.array([0.4, -0.2], np.float32)
    critic = DiscriminatorState({"matrix": matrix}, None, {}, averages, jnp.int32(3))
    gradients = jax.jit(
        tokenizer_step.make_gradients(config, Networks(QUARTIC), Linear(), Phase(adversarial=True))
    )
    found, _ = gradients(
        TrainState(jnp.int32(2), params, None, None, critic),
        {"perceptual": QUARTIC.params},
        batch,
        jax.random.key(0),
    )

    model = Tokenizer(small.TOKENIZER)
    (rec, _, vq), kept = jax.jit(
        lambda p: model.apply(
            {"params": p}, images, capture_intermediates=lambda module, _: module.name == "norm_out"
        )
    )(params)
    rec, hidden = (
        np.asarray(rec, np.float64),
        np.asarray(kept["intermediates"]["decoder"]["norm_out"]["__call__"][0], np.float64),
    )
    hidden, apart = hidden / (1 + np.exp(-hidden)), rec - images
    count, rows, places = apart.size, len(images), matrix.shape[1]
    similar = (
        0.3 * np.abs(apart).mean() + 0.7 * (apart**2).mean() + 0.5 * (apart**4).sum() / 5 / rows
    )
    d_similar = (0.3 * np.sign(apart) + 0.7 * 2 * apart) / count + 0.5 * 4 * apart**3 / 5 / rows
    real, fake = (x.reshape(rows, -1) @ matrix.astype(np.float64) for x in (images, rec))
    d_generator = np.broadcast_to(-matrix.mean(axis=1) / rows, (rows, len(matrix))).reshape(
        rec.shape
    )
    ratio = np.linalg.norm(at_last_kernel(hidden, d_similar).ravel()) / np.linalg.norm(
        at_last_kernel(hidden, d_generator).ravel()
    )
    adaptive = max(ratio, lowest)
    weight = 0.4 * 0.5 * adaptive  # the second of four warm-up steps
    metrics = found.metrics
    np.testing.assert_allclose(metrics["adaptive_weight"], adaptive, rtol=1e-3)
    np.testing.assert_allclose(metrics["generator_weight"], weight, rtol=1e-3)
    np.testing.assert_allclose(metrics["generator"], -fake.mean(), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(
        metrics["loss"], similar + 2 * float(vq) - weight * fake.mean(), rtol=1e-3
    )
    ours = np.asarray(found.params["decoder"]["conv_out"]["kernel"])
    expected = at_last_kernel(hidden, d_similar + weight * d_generator)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-3 * np.abs(expected).max())

    gap_real, gap_fake = np.maximum(real + 0.2, 0), np.maximum(0.4 - fake, 0)
    hinge = (np.maximum(1 - real, 0).mean() + np.maximum(1 + fake, 0).mean()) / 2
    lecam = (gap_real**2).mean() + (gap_fake**2).mean()
    np.testing.assert_allclose(metrics["discriminator_loss"], hinge + 0.1 * lecam, rtol=1e-3)
    np.testing.assert_allclose(
        [metrics["logits_real"], metrics["logits_fake"]],
        [real.mean(), fake.mean()],
        rtol=1e-3,
        atol=1e-5,
    )
    by_hand = (
        rec.reshape(rows, -1).T @ ((fake > -1) / 2 - 0.1 * 2 * gap_fake)
        - images.reshape(rows, -1).T @ ((real < 1) / 2 - 0.1 * 2 * gap_real)
    ) / (rows * places)
    np.testing.assert_allclose(
        found.discriminator["matrix"], by_hand, rtol=0, atol=2e-3 * np.abs(by_hand).max()
    )


class TwoViews(Linear):
    """A linear discriminator that sees images upside down the second time, and dimmed by the
    blur."""

    def logits(self, params, spectral, frozen, images, key, blur):
        return super().logits(params, spectral, frozen, images * (1 - blur / 2), key, blur)

    def logits_again(self, params, spectral, frozen, images, key):
        return super().logits(params, spectral, frozen, images[:, ::-1], key, 0.0)[0]


def test_gradients_with_consistency_and_the_sum_of_hinges(params, batch):
    """The discriminator's loss and gradient are the sum of both hinges and 4 times the consistency,
    written out for a linear discriminator of two views; the generator sees the first view alone, at
    the blur's strength of the step."""
    changes = {
        "r1": 0.0,
        "lecam": 0.0,
        "start": 1,
        "warmup": 4,
        "blur_fade": 5,
        "hinge": "sum",
        "bcr": 4.0,
    }
    config = small.train_config(
        "tokenizer", "", adversarial=dataclasses.replace(PATCH, adaptive=False, **changes)
    )
    images = batch["image"].astype(np.float32) / 127.5 - 1
    random = np.random.default_rng(1)
    matrix = (0.05 * random.normal(size=(images[0].size, 7))).astype(np.float32)
    critic = DiscriminatorState({"matrix": matrix}, None, {}, jnp.zeros(2), jnp.int32(3))
    gradients = jax.jit(
        tokenizer_step.make_gradients(config, Networks(), TwoViews(), Phase(adversarial=True))
    )
    found, _ = gradients(
        TrainState(jnp.int32(2), params, None, None, critic), None, batch, jax.random.key(0)
    )

    model = Tokenizer(small.TOKENIZER)
    rec = np.asarray(jax.jit(lambda p: model.apply({"params": p}, images))(params)[0], np.float64)
    seen = 1 - 0.8 / 2  # one of five steps of fading is over
    rows, places = len(images), matrix.shape[1]
    first = [(x * seen).reshape(rows, -1) for x in (images.astype(np.float64), rec)]
    second = [x[:, ::-1].reshape(rows, -1) for x in (images.astype(np.float64), rec)]
    real, fake = (x @ matrix for x in first)
    apart = [two - one for one, two in zip(first, second, strict=True)]
    hinge = np.maximum(1 - real, 0).mean() + np.maximum(1 + fake, 0).mean()
    consistency = sum(((x @ matrix) ** 2).mean() for x in apart)
    metrics = found.metrics
    np.testing.assert_allclose([metrics["hinge"], metrics["bcr"]], [hinge, consistency], rtol=1e-3)
    np.testing.assert_allclose(metrics["discriminator_loss"], hinge + 4 * consistency, rtol=1e-3)
    np.testing.assert_allclose(metrics["generator"], -fake.mean(), rtol=1e-3, atol=1e-5)
    by_hand = (first[1].T @ (fake > -1) - first[0].T @ (real < 1)) / (rows * places)
    by_hand += 4 * sum(2 * x.T @ (x @ matrix) for x in apart) / (rows * places)
    np.testing.assert_allclose(
        found.discriminator["matrix"], by_hand, rtol=0, atol=2e-3 * np.abs(by_hand).max()
    )


def test_logits_of_both_views_are_of_their_own_augmentations(params, batch):
    """The first view is blurred and then augmented by its policy; the second is not blurred, and
    has its own."""
    whole = dataclasses.replace(
        PATCH, diffaugment="", blur_fade=0.5, bcr=1.0, bcr_diffaugment="cutout", bcr_cutout=1.0
    )
    config = small.train_config("tokenizer", "", adversarial=whole)
    critic = Critic(config, Networks())
    made = nn.meta.unbox(critic.init(jax.random.key(0)))
    images = batch["image"].astype(np.float32) / 127.5 - 1

    def logits(images, blur):
        return critic.logits(
            made["params"], {}, None, images, jax.random.key(1), jnp.float32(blur)
        )[0]

    np.testing.assert_allclose(
        logits(images, 0.7), logits(diffaugment.fading_blur(images, jnp.float32(0.7)), 0), atol=1e-6
    )
    assert float(jnp.abs(logits(images, 0.7) - logits(images, 0)).max()) > 1e-4
    again = critic.logits_again(made["params"], {}, None, images, jax.random.key(1))
    many = [
        critic.logits_again(made["params"], {}, None, images, jax.random.key(k)) for k in range(8)
    ]
    # A hole as large as the image leaves nothing where its center is that of the image.
    assert (
        not np.allclose(again, logits(images, 0.0))
        and len({x.tobytes() for x in map(np.asarray, many)}) > 1
    )


def test_features_are_seen_in_frames_of_their_network(batch):
    """A network for 4 pixels gets images of 4 by 4, whatever the tokenizer's, and its heads as many
    places."""
    adversarial = dataclasses.replace(
        PATCH, discriminator="features", feature_size=4, feature_crops=0.5
    )
    config = small.train_config("tokenizer", "", adversarial=adversarial)
    seen = []

    def levels(weights, images):
        seen.append(images.shape)
        return [images * weights]

    critic = Critic(config, Networks(features=Features(jnp.ones(()), levels)))
    made = nn.meta.unbox(critic.init(jax.random.key(0)))
    images = batch["image"].astype(np.float32) / 127.5 - 1
    logits, _ = critic.logits(
        made["params"],
        made["spectral"],
        {"features": jnp.ones(())},
        images,
        jax.random.key(0),
        jnp.zeros(()),
    )
    assert seen == [(1, 4, 4, 1), (8, 4, 4, 1)] and logits.shape == (8, 16)


def config_with_everything(digits_dir, **changes):
    """Returns a run with every term, a second pass of the discriminator, blur, and dropout."""
    everything = {
        "adversarial": dataclasses.replace(PATCH, bcr=0.5, blur_fade=3, cutout=0.2, hinge="sum"),
        "codebook": dataclasses.replace(HEALTH, weight_decay=False),
        "tokenizer": dataclasses.replace(small.TOKENIZER, dropout=0.1, init_gain=0.5),
        "ema_warmup": 2,
    }
    return small.train_config("tokenizer", digits_dir, **{**everything, **changes})


@pytest.mark.slow
def test_a_resumed_adversarial_run_is_the_uninterrupted_one(
    digits_dir, unevaluated, tmp_path, monkeypatch
):
    """Both networks, their optimizers, power iteration, LeCam's averages and the codes' usage, bit
    for bit; the start of adversarial training lies between the interruption's checkpoint and the
    end."""
    config = config_with_everything(digits_dir)
    train(config, str(tmp_path / "whole"))

    def interrupted(self, number, split, values):
        if number == 2:
            raise KeyboardInterrupt
        write(self, number, split, values)

    write = MetricWriter.write
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(MetricWriter, "write", interrupted)
        train(config, str(tmp_path / "resumed"))
    checkpoints = [
        Checkpoints(tmp_path / name / "checkpoints", keep=3) for name in ("whole", "resumed")
    ]
    assert checkpoints[1].latest_step() == 1
    train(config, str(tmp_path / "resumed"))
    assert losses(tmp_path / "resumed") == losses(tmp_path / "whole")
    for part in ("params", "ema", "opt_state", "discriminator", "usage"):
        whole, resumed = (one.restore_part(part, 3) for one in checkpoints)
        jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    first, second, third = losses(tmp_path / "whole")[:3]
    assert not {"hinge", "adaptive_weight", "discriminator_lr"} & first.keys()
    for record in (second, third):
        assert {
            "hinge",
            "lecam",
            "adaptive_weight",
            "logits_real",
            "discriminator_grad_norm",
        } <= record.keys()
        assert len(record["code_usage"]) == len(record["perplexity"]) == 3
    assert "r1" not in first and second["r1"] > 0 and third["r1"] == 0  # every second step
    started = [checkpoints[0].restore_part("discriminator", number) for number in (1, 2, 3)]
    assert [int(one["updates"]) for one in started] == [0, 1, 2]
    np.testing.assert_allclose(
        started[1]["averages"], [second["logits_real"], second["logits_fake"]], rtol=1e-5
    )
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), *(one["params"] for one in started[1:]))
    assert all(jax.tree.leaves(moved))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("loss", "the generator's loss"),
        ("grad_norm", "the generator's grad_norm"),
        ("discriminator_loss", "the discriminator's loss"),
        ("discriminator_grad_norm", "the discriminator's grad_norm"),
    ],
)
def test_what_is_not_finite_in_either_network_stops_the_run_by_its_name(
    digits_dir, unevaluated, tmp_path, monkeypatch, name, told
):
    names = ("loss", "grad_norm", "discriminator_loss", "discriminator_grad_norm")

    def make(*_):
        def fake_step(run, batch, frozen):
            metrics = {
                key: jnp.where((run.step > 0) & (key == name), jnp.nan, 1.0) for key in names
            }
            return run.replace(step=run.step + 1), metrics

        return fake_step

    monkeypatch.setattr(step, "make_train_step", make)
    with pytest.raises(
        Diverged, match=f"{told} of step 2 is nan; the last checkpoint is of step 1"
    ):
        train(config_with_everything(digits_dir, codebook=CodebookConfig()), str(tmp_path))
    assert Checkpoints(tmp_path / "checkpoints", keep=3).steps() == [1]
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "failed"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("broken", "told"), [("discriminator", "the discriminator's"), ("decoder", "the generator's")]
)
def test_weights_that_are_no_numbers_stop_a_real_run_and_the_last_checkpoint_is_whole(
    digits_dir, unevaluated, tmp_path, monkeypatch, broken, told
):
    make_train_step = step.make_train_step

    def make(*args, **kwargs):
        real = make_train_step(*args, **kwargs)

        def breaking(run, batch, frozen):
            def spoilt(tree):
                return jax.tree.map(lambda x: jnp.where(run.step == 1, jnp.nan, x), tree)

            if broken == "decoder":
                run = run.replace(params={**run.params, "decoder": spoilt(run.params["decoder"])})
            else:
                run = run.replace(
                    discriminator=run.discriminator.replace(params=spoilt(run.discriminator.params))
                )
            return real(run, batch, frozen)

        return breaking

    config = config_with_everything(digits_dir)
    with (
        monkeypatch.context() as patch,
        pytest.raises(Diverged, match=f"{told} .* of step 2 is nan; the last check"),
    ):
        patch.setattr(step, "make_train_step", make)
        train(config, str(tmp_path))
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=3)
    assert checkpoints.steps() == [1]
    for part in ("params", "ema", "discriminator"):
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(checkpoints.restore_part(part, 1)))
    train(config, str(tmp_path))  # and goes on from there
    assert [record["step"] for record in losses(tmp_path) if record["split"] == "train"] == [
        1,
        2,
        3,
    ]


@pytest.mark.slow
def test_the_network_that_diverged_is_the_one_that_is_named(params, batch):
    """Both networks' losses are NaN where either's weights are: the terms that the generator has
    alone tell whose."""
    config = small.train_config("tokenizer", "", adversarial=PATCH)
    gradients = jax.jit(
        tokenizer_step.make_gradients(config, Networks(), Linear(), Phase(adversarial=True))
    )
    matrix = jnp.ones((int(np.prod(small.TOKENIZER.image_shape)), 2))

    def named(params, matrix):
        critic = DiscriminatorState({"matrix": matrix}, None, {}, jnp.zeros(2), jnp.int32(0))
        run = TrainState(jnp.int32(2), params, None, None, critic)
        found, _ = gradients(run, None, batch, jax.random.key(0))
        norms = {"grad_norm": found.params, "discriminator_grad_norm": found.discriminator}
        return loop.not_finite(
            {**found.metrics, **{name: optax.tree_utils.tree_norm(g) for name, g in norms.items()}}
        )

    assert named(params, matrix) is None
    assert named(params, matrix * jnp.nan)[0] == "the discriminator's loss"
    decoder = jax.tree.map(lambda x: x * jnp.nan, params["decoder"])
    assert named({**params, "decoder": decoder}, matrix)[0] == "the generator's loss"


FEATURES = Features(
    {"mix": jnp.asarray(np.random.default_rng(4).normal(size=(1, 6)), jnp.float32)},
    lambda p, x: [
        jnp.tanh(x @ p["mix"]),
        (x[:, ::2, ::2] @ p["mix"] ** 2).reshape(x.shape[0], -1, 6),
    ],
)


@pytest.fixture(scope="module")
def on_meshes(batch):
    """{(data, model): (state after two steps, metrics, shardings)} against heads on features, with
    a perceptual term and revival."""
    adversarial = AdversarialConfig(
        weight=0.4,
        start=0,
        warmup=0,
        channels=8,
        discriminator="features",
        diffaugment="color,translation",
        lecam=0.1,
        bcr=0.5,
        bcr_diffaugment="translation",
        blur_fade=4,
        feature_size=4,
        feature_crops=0.5,
    )
    config = small.train_config(
        "tokenizer",
        "",
        adversarial=adversarial,
        codebook=dataclasses.replace(HEALTH, init="normal"),
        loss=LossConfig(perceptual=0.1),
        tokenizer=dataclasses.replace(small.TOKENIZER, dropout=0.1),
    )
    loaded, results = Networks(QUARTIC, FEATURES), {}
    for sizes in ((1, 1), (8, 1), (4, 2)):
        mesh = make_mesh(MeshConfig(*sizes), jax.devices()[: sizes[0] * sizes[1]])
        with jax.set_mesh(mesh):
            program = Program(config, mesh, loaded)
            run, rows = program.first_state(), jax.device_put(batch, program.rows)
            frozen = jax.device_put(loaded.params, program.replicated)
            for _ in range(2):
                run, metrics = program.step()(run, rows, frozen)
        results[sizes] = *jax.tree.map(np.asarray, (run, metrics)), program.shardings
    return results


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(8, 1), (4, 2)])
def test_eight_devices_take_the_step_of_one(on_meshes, sizes):
    (one, one_metrics, _), (eight, eight_metrics, _) = on_meshes[1, 1], on_meshes[sizes]
    for name, value in one_metrics.items():
        np.testing.assert_allclose(eight_metrics[name], value, rtol=1e-3, atol=1e-5, err_msg=name)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(
            (eight.params, eight.discriminator.params, eight.discriminator.spectral, eight.usage)
        ),
        jax.tree.leaves(
            (one.params, one.discriminator.params, one.discriminator.spectral, one.usage)
        ),
        strict=True,
    ):
        np.testing.assert_allclose(
            a, b, rtol=0, atol=1e-3 * np.abs(b).max() + 1e-6, err_msg=jax.tree_util.keystr(path)
        )


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(8, 1), (4, 2)])
def test_both_networks_and_their_moments_lie_split(on_meshes, sizes):
    run, _, shardings = on_meshes[sizes]
    pairs = [
        (run.params, shardings.params),
        (run.discriminator.params, shardings.discriminator.params),
    ]
    pairs += [
        tuple(optax.tree_utils.tree_get(part.opt_state, "mu") for part in both)
        for both in ((run, shardings), (run.discriminator, shardings.discriminator))
    ]
    for tree, placed in pairs:
        sizes_held = [
            (x.size, int(np.prod(place.shard_shape(x.shape))))
            for x, place in zip(jax.tree.leaves(tree), jax.tree.leaves(placed), strict=True)
        ]
        whole, held = np.sum(sizes_held, axis=0)
        assert held < whole / 3, (whole, held)


@pytest.mark.slow
def test_every_part_of_the_discriminator_moves(on_meshes):
    run, metrics, _ = on_meshes[1, 1]
    assert metrics["perceptual"] > 0
    assert int(run.discriminator.updates) == 2
    moments = jax.tree.leaves(optax.tree_utils.tree_get(run.discriminator.opt_state, "mu"))
    assert all(np.any(np.asarray(m) != 0) for m in moments)


@pytest.mark.slow
def test_microbatches_are_the_batch_for_the_discriminator_too(params, batch):
    """Of a weight that is not adaptive and images that are not augmented, which are drawn an
    image."""
    adversarial = dataclasses.replace(PATCH, start=0, adaptive=False, diffaugment="", r1=0.0)
    results = []
    for parts in (1, 2):
        config = small.train_config(
            "tokenizer", "", adversarial=adversarial, microbatches=parts, ema=0.0
        )
        mesh = make_mesh(MeshConfig(1, 1), jax.devices()[:1])
        with jax.set_mesh(mesh):
            program = Program(config, mesh)
            run, metrics = program.step()(
                program.first_state(params), jax.device_put(batch, program.rows), None
            )
        results.append(jax.tree.map(np.asarray, (run.discriminator.params, run.params, metrics)))
    (whole, whole_params, whole_metrics), (halves, halves_params, halves_metrics) = results
    for ours, theirs in ((halves, whole), (halves_params, whole_params)):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(
                a, b, rtol=0, atol=1e-3 * np.abs(b).max() + 1e-6
            ),
            ours,
            theirs,
        )
    for name, value in whole_metrics.items():
        np.testing.assert_allclose(halves_metrics[name], value, rtol=1e-3, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_a_codebook_of_equal_codes_recovers(params, batch):
    """Within a few steps, and revived codes have no memory: neither moments nor an average of the
    codes before."""
    config = small.train_config("tokenizer", "", codebook=HEALTH)
    optimizer = Optimizers(optax.adam(0.0))
    train_step = jax.jit(step.make_train_step(config, optimizer))
    equal = {**params, "quantize": {**params["quantize"], "codebook": jnp.ones((16, 4))}}
    run = TrainState(
        jnp.int32(0), equal, equal, optimizer.trained.init(equal), None, jnp.full((3, 16), 1 / 16)
    )
    run, metrics = train_step(run, batch, None)
    assert (
        float(np.max(metrics["code_usage"])) == 1 / 16
    )  # every search goes to one of the equal codes
    assert int(metrics["revived"]) == 15  # threshold 0.9: one step at decay 0.5 is enough
    moments, ema = optax.tree_utils.tree_get(run.opt_state, "mu"), run.ema
    kept = np.asarray(moments["quantize"]["codebook"]).any(axis=1)
    assert kept.sum() == 1
    codes, averaged = (np.asarray(tree["quantize"]["codebook"]) for tree in (run.params, ema))
    np.testing.assert_array_equal(averaged[~kept], codes[~kept])
    assert len(np.unique(codes, axis=0)) == 16
    for _ in range(4):
        run, metrics = train_step(run, batch, None)
    assert float(metrics["code_usage"][-1]) > 0.5


def test_a_collapsed_scale_is_named(caplog):
    config = small.train_config("tokenizer", "")
    counts = np.ones((3, 16), int)
    with caplog.at_level(logging.WARNING):
        evaluation._warn_of_collapse(config, counts)
        assert not caplog.records
        counts[2] = 0
        counts[2, 5] = 500
        evaluation._warn_of_collapse(config, counts)
    assert [r.message for r in caplog.records] == [
        "scale 3x4 has collapsed: 1 of 16 codes are used, with a perplexity of 1.0"
    ]


@flax.struct.dataclass
class PlainState:
    """A state as runs wrote it before there were discriminators."""

    step: jax.Array
    params: dict
    ema: dict | None
    opt_state: dict


@pytest.mark.slow
def test_checkpoints_of_plain_runs_from_before_load(tmp_path):
    config = small.train_config("tokenizer", "")
    mesh = make_mesh(MeshConfig(8, 1))
    program = Program(config, mesh)
    run = program.first_state()
    assert run.discriminator is None and run.usage is None
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, PlainState(run.step, run.params, run.ema, run.opt_state), {}, wait=True)
    checkpoints.close()
    restored, _ = Checkpoints(tmp_path, keep=1).restore(program.abstract_state())
    jax.tree.map(np.testing.assert_array_equal, restored, run)
    assert restored.discriminator is None


def test_phases_of_a_run():
    config = small.train_config(
        "tokenizer",
        "",
        steps=10,
        adversarial=dataclasses.replace(PATCH, start=0.4),
        progressive=ProgressiveConfig("1,2", 6),
    )
    small_scales = Scales.parse("1,2")
    assert [phase_of(config, done) for done in (0, 3, 4, 5, 6, 9)] == [
        Phase(False, small_scales),
        Phase(False, small_scales),
        Phase(True, small_scales),
        Phase(True, small_scales),
        Phase(True),
        Phase(True),
    ]
    assert (
        config.adversarial_from == 4
        and small.train_config("transformer", "").adversarial_from is None
    )


@pytest.mark.slow
def test_smaller_images_first(params, batch):
    """The step of a smaller phase is the step of a run at that size, on images averaged down."""
    config = small.train_config("tokenizer", "", progressive=ProgressiveConfig("1,2", 0.5))
    optimizers = Optimizers(optax.sgd(1.0))
    run = TrainState(jnp.int32(0), params, None, optimizers.trained.init(params))
    still = dataclasses.replace(config, ema=0.0)
    after, metrics = jax.jit(step.make_train_step(still, optimizers, phase=phase_of(config, 0)))(
        run, batch, None
    )
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
    signal = jnp.asarray(down / 127.5 - 1, jnp.float32)
    rec, _, vq = jax.jit(lambda p: Tokenizer(smaller).apply({"params": p}, signal))(params)
    expected = 0.2 * np.abs(rec - signal).mean() + ((rec - signal) ** 2).mean() + vq
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-4)
    assert metrics["code_usage"].shape == (2,)
    assert jax.tree.map(jnp.shape, after.params) == jax.tree.map(jnp.shape, params)


def test_without_the_optional_weights_a_run_goes_on_without_the_terms(monkeypatch, caplog):
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
    assert (resolved.loss.perceptual, resolved.adversarial.weight, loaded.params) == (
        0.0,
        0.0,
        None,
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
def test_weights_that_a_config_names_must_be_there(section, changes, message):
    config = small.train_config("tokenizer", "")
    config = dataclasses.replace(
        config, **{section: dataclasses.replace(getattr(config, section), **changes)}
    )
    with pytest.raises(UserError, match=message):
        frozen_networks.load(config)


def test_images_too_small_for_the_discriminator_are_refused():
    config = small.train_config("tokenizer", "", adversarial=dataclasses.replace(PATCH, layers=3))
    with pytest.raises(
        UserError, match="adversarial.layers is 3; it must be at most 2 for images of 6 pixels"
    ):
        Program(config, make_mesh(MeshConfig(8, 1)))
    fits = dataclasses.replace(config, adversarial=dataclasses.replace(PATCH, start=0, layers=2))
    smaller = dataclasses.replace(fits, progressive=ProgressiveConfig("1", 0.5))
    with pytest.raises(
        UserError, match="adversarial.layers is 2; it must be at most 1 for images of 2 pixels"
    ):
        Program(smaller, make_mesh(MeshConfig(8, 1)))
    Program(
        dataclasses.replace(smaller, adversarial=dataclasses.replace(PATCH, start=0.5, layers=2)),
        make_mesh(MeshConfig(8, 1)),
    )
