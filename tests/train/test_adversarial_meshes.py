"""The adversarial step over devices and in microbatches."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from helpers import small
from helpers.adversarial import HEALTH, PATCH
from var_jax.config.tokenizer_training import AdversarialConfig
from var_jax.config.train import LossConfig, MeshConfig
from var_jax.devices.mesh import make_mesh
from var_jax.objectives import registry
from var_jax.objectives.autoencoder import Autoencoder
from var_jax.objectives.frozen_networks import FrozenBackbone, LossNetworks, NetworkWeights
from var_jax.pretrained.perceptual import Perceptual
from var_jax.train.program import Program

# The distance sum of fourth powers over a fixed number, whose gradient is written down below.
QUARTIC = Perceptual(
    "quartic",
    {"over": jnp.float32(5.0)},
    lambda params, x, y: jnp.sum((x - y) ** 4, axis=(1, 2, 3)) / params["over"],
)

FEATURES = FrozenBackbone(
    {"mix": jnp.asarray(np.random.default_rng(4).normal(size=(1, 6)), jnp.float32)},
    lambda p, x: [
        jnp.tanh(x @ p["mix"]),
        (x[:, ::2, ::2] @ p["mix"] ** 2).reshape(x.shape[0], -1, 6),
    ],
)

pytestmark = pytest.mark.usefixtures("compiled_once")


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
    objective, results = Autoencoder(config, LossNetworks(QUARTIC, FEATURES)), {}
    for sizes in ((1, 1), (8, 1), (4, 2)):
        mesh = make_mesh(MeshConfig(*sizes), jax.devices()[: sizes[0] * sizes[1]])
        with jax.set_mesh(mesh):
            program = Program(objective, mesh)
            run, rows = program.first_state(), jax.device_put(batch, program.rows)
            frozen = jax.device_put(objective.frozen, program.replicated)
            for _ in range(2):
                run, metrics = program.step()(run, rows, frozen)
        results[sizes] = *jax.tree.map(np.asarray, (run, metrics)), program.shardings
    return results


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(8, 1), (4, 2)])
def test_adversarial_step_is_the_same_on_every_mesh(on_meshes, sizes):
    """A step with a discriminator is the same on one device and on meshes of eight.

    Its metrics and its state are compared, up to rounding.
    """
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
def test_adversarial_state_is_sharded(on_meshes, sizes):
    """Every device holds less than a third of the parameters and of the moments of both
    networks."""
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
        full, held = np.sum(sizes_held, axis=0)
        assert held < full / 3, (full, held)


@pytest.mark.slow
def test_adversarial_step_updates_every_part_of_the_discriminator(on_meshes):
    """After two steps no first moment is all zero, so that a gradient reaches each of its
    layers."""
    run, metrics, _ = on_meshes[1, 1]
    assert metrics["perceptual"] > 0
    assert int(run.discriminator.updates) == 2
    moments = jax.tree.leaves(optax.tree_utils.tree_get(run.discriminator.opt_state, "mu"))
    assert all(np.any(np.asarray(m) != 0) for m in moments)


@pytest.mark.slow
def test_adversarial_step_in_microbatches_is_that_of_the_batch(params, batch):
    """The weight is not adaptive and images are not augmented, as both depend on the microbatch."""
    adversarial = dataclasses.replace(PATCH, start=0, adaptive=False, diffaugment="", r1=0.0)
    results = []
    for parts in (1, 2):
        config = small.train_config(
            "tokenizer", "", adversarial=adversarial, microbatches=parts, ema=0.0
        )
        mesh = make_mesh(MeshConfig(1, 1), jax.devices()[:1])
        with jax.set_mesh(mesh):
            program = Program(registry.with_frozen_shapes(config), mesh)
            run, metrics = program.step()(
                program.first_state(params), jax.device_put(batch, program.rows), NetworkWeights()
            )
        results.append(jax.tree.map(np.asarray, (run.discriminator.params, run.params, metrics)))
    (full, whole_params, whole_metrics), (halves, halves_params, halves_metrics) = results
    for actual, expected in ((halves, full), (halves_params, whole_params)):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(
                a, b, rtol=0, atol=1e-3 * np.abs(b).max() + 1e-6
            ),
            actual,
            expected,
        )
    for name, value in whole_metrics.items():
        np.testing.assert_allclose(halves_metrics[name], value, rtol=1e-3, atol=1e-5, err_msg=name)
