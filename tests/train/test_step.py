"""Training and evaluation steps against numpy."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from helpers import small
from helpers.batches import token_batch
from helpers.numerics import log_softmax
from var_jax.config.tokenizer_training import CodebookConfig
from var_jax.config.train import LossConfig, MeshConfig
from var_jax.devices.mesh import make_mesh
from var_jax.models.tokenizer import Tokenizer
from var_jax.objectives import registry, token_losses
from var_jax.objectives.autoencoder_loss import AutoencoderState
from var_jax.objectives.frozen_networks import NetworkWeights
from var_jax.objectives.frozen_tokenizer import FrozenTokenizer
from var_jax.objectives.step_types import TRAINED, TrainState
from var_jax.train.state import StateFactory
from var_jax.train.step import make_eval_step, make_train_step, update

SPANS = [small.SCALES.span(k) for k in range(len(small.SCALES))]


@pytest.fixture(scope="module")
def batch():
    return token_batch()


@pytest.fixture(scope="module")
def params():
    return small.pipeline().params


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_that_of_numpy(smoothing):
    """The loss of each token is numpy's, with and without label smoothing."""
    random = np.random.default_rng(1)
    logits, tokens = (
        random.normal(size=(2, 5, 7)).astype(np.float32) * 3,
        random.integers(0, 7, (2, 5)),
    )
    logs = log_softmax(logits)
    chosen = np.take_along_axis(logs, tokens[..., None], axis=-1)[..., 0]
    expected = -(1 - smoothing) * chosen - smoothing * logs.mean(axis=-1)
    np.testing.assert_allclose(
        token_losses.cross_entropy(logits, tokens, smoothing), expected, rtol=1e-5
    )


def test_train_step_of_a_transformer_reports_loss_and_parts(params, batch):
    """Losses, accuracies and those of each scale are numpy's from the logits; smoothing changes the
    loss and no reported part."""
    logits = small.pipeline().logits(batch["tokens"], batch["label"])
    entropy = -np.take_along_axis(log_softmax(logits), batch["tokens"][..., None], axis=-1)[..., 0]
    hits = logits.argmax(axis=-1) == batch["tokens"]
    plain, smooth = (
        small.train_config("transformer", "", loss=LossConfig(label_smoothing=s))
        for s in (0.0, 0.2)
    )
    for config in (plain, smooth):
        objective = small.next_scale(config)
        compute = jax.jit(functools.partial(objective.loss, batch=batch, rng=None))
        loss, parts = compute(params["transformer"], objective.frozen)
        np.testing.assert_allclose(parts["loss_mean"], entropy.mean(), rtol=1e-5)  # never smoothed
        np.testing.assert_allclose(
            parts["loss_scale"], [entropy[:, span].mean() for span in SPANS], rtol=1e-5
        )
        np.testing.assert_allclose(parts["loss_last"], entropy[:, SPANS[-1]].mean(), rtol=1e-5)
        np.testing.assert_allclose(parts["accuracy_mean"], hits.mean(), rtol=1e-5)
        np.testing.assert_allclose(parts["accuracy_last"], hits[:, SPANS[-1]].mean(), rtol=1e-5)
        smoothing = config.loss.label_smoothing
        uniform = -log_softmax(logits).mean()
        np.testing.assert_allclose(
            loss, (1 - smoothing) * entropy.mean() + smoothing * uniform, rtol=1e-5
        )


@pytest.mark.long
def test_eval_step_with_class_dropout_is_its_expectation(params, batch):
    """The mean over the labels that class dropout makes, each by its chance, which is what random
    ones come to; the metrics without it are what they were."""
    t = dataclasses.replace(small.TRANSFORMER, class_dropout=0.25)
    config = small.train_config("transformer", "", transformer=t)
    objective = small.next_scale(config)
    compute = jax.jit(make_eval_step(objective))
    result = compute(params["transformer"], batch, objective.frozen)
    sums = []
    for labels in (batch["label"], np.full(4, small.CLASSES, np.int32)):
        logits = small.pipeline().logits(batch["tokens"], labels)[batch["mask"]]
        tokens = batch["tokens"][batch["mask"]]
        entropy = -np.take_along_axis(log_softmax(logits), tokens[..., None], axis=-1)[..., 0]
        hits = logits.argmax(axis=-1) == tokens
        sums.append(
            np.array(
                [
                    part[:, span].mean(axis=1).sum()
                    for part in (entropy, hits)
                    for span in (slice(None), SPANS[-1])
                ]
            )
        )
    names = ["loss", "loss_last", "accuracy", "accuracy_last"]
    np.testing.assert_allclose(
        [result[f"{name}_with_class_dropout"] for name in names],
        0.75 * sums[0] + 0.25 * sums[1],
        rtol=1e-4,
    )
    np.testing.assert_allclose(
        [result[name] for name in ("loss_mean", "loss_last", "accuracy_mean", "accuracy_last")],
        sums[0],
        rtol=1e-4,
    )
    without = small.train_config(
        "transformer", "", transformer=dataclasses.replace(t, class_dropout=0.0)
    )
    assert "loss_with_class_dropout" not in make_eval_step(small.next_scale(without))(
        params["transformer"], batch, objective.frozen
    )


@pytest.mark.parametrize(
    ("number", "ema_warmup", "remaining"),
    [(0, 1, 0.1), (9, 1, 10 / 19), (9, 2, 5 / 14), (8, 2, 5 / 14), (1000, 2, 0.9)],
)
def test_update_warms_the_average_up_as_slowly_as_asked(number, ema_warmup, remaining):
    """min(decay, (n + 1) / (n + 10)) of the average stays, n of `step // ema_warmup`: the published
    tokenizer's is 2. An update that changes nothing leaves the average between it and the
    weights."""
    config = small.train_config("tokenizer", "", ema=0.9, ema_warmup=ema_warmup)
    still, weights = optax.sgd(0.0), {"kernel": jnp.full(3, 2.0)}
    zeros = jax.tree.map(jnp.zeros_like, weights)
    run = TrainState(jnp.int32(number), weights, zeros, still.init(weights))
    after = update(config, still, run, zeros)
    np.testing.assert_allclose(after.ema["kernel"], 2 * (1 - remaining), rtol=1e-5)


@pytest.mark.long
def test_train_step_of_a_tokenizer_reports_loss_and_parts(params, batch):
    """The loss is the weighted sum of its three parts, which are computed in numpy from one forward
    pass, and so is the usage of codes."""
    weights = LossConfig(l1=0.3, l2=0.7, vq=2.0)
    config = small.train_config("tokenizer", "", loss=weights)
    images = batch["image"].astype(np.float32) / 127.5 - 1
    apply = jax.jit(lambda p: Tokenizer(small.TOKENIZER).apply({"params": p}, images))
    rec, tokens, vq = (np.asarray(x) for x in apply(params["tokenizer"]))
    still = optax.sgd(0.0)
    state = AutoencoderState(
        jnp.int32(0), params["tokenizer"], None, still.init(params["tokenizer"])
    )
    train_step = make_train_step(registry.with_frozen_shapes(config), {TRAINED: still})
    _, parts = jax.jit(train_step)(state, batch, NetworkWeights())
    l1, l2 = np.abs(rec - images).mean(), ((rec - images) ** 2).mean()
    np.testing.assert_allclose([parts["l1"], parts["l2"], parts["vq"]], [l1, l2, vq], rtol=1e-5)
    np.testing.assert_allclose(parts["loss"], 0.3 * l1 + 0.7 * l2 + 2 * vq, rtol=1e-5)
    used = [len(np.unique(part)) / 16 for part in small.SCALES.split(tokens)]
    np.testing.assert_allclose(parts["code_usage"], used)


@pytest.mark.parametrize("stage", ["tokenizer", "transformer"])
def test_eval_step_sums_over_the_rows_that_count(params, batch, stage):
    """Four rows of which one is padding are worth the three alone, whatever the padding holds."""
    step = jax.jit(make_eval_step(registry.with_frozen_shapes(small.train_config(stage, ""))))
    frozen = FrozenTokenizer(params["tokenizer"]) if stage == "transformer" else NetworkWeights()
    together = step(params[stage], batch, frozen)
    other = {**batch, "image": batch["image"].copy(), "tokens": batch["tokens"].copy()}
    other["image"][1], other["tokens"][1] = 255, 3
    three = [
        {name: value[i : i + 1].repeat(4, axis=0) for name, value in batch.items()}
        for i in (0, 2, 3)
    ]
    alone = [step(params[stage], {**one, "mask": np.arange(4) == 0}, frozen) for one in three]
    for name, value in together.items():
        expected = sum(np.asarray(one[name]) for one in alone)
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-5, err_msg=name)
        np.testing.assert_allclose(
            step(params[stage], other, frozen)[name], value, rtol=1e-6, err_msg=name
        )
    if stage == "tokenizer":
        assert together["code_counts"].shape == (3, 16)
        np.testing.assert_array_equal(
            together["code_counts"].sum(axis=1), 3 * np.array(small.SCALES.lengths)
        )


def test_encode_gives_the_pipelines_tokens(params, batch):
    """The objective encodes bytes on the devices to the tokens that the pipeline gives for the same
    images in [-1, 1]."""
    objective = small.next_scale(small.train_config("transformer", ""))
    encode = jax.jit(objective.encode)
    expected = small.pipeline().encode(batch["image"].astype(np.float32) / 127.5 - 1)
    np.testing.assert_array_equal(encode(objective.frozen, batch["image"])["tokens"], expected)


@pytest.mark.long
def test_train_step_depends_on_seed_and_number_alone(params, batch):
    """The optimizer is plain gradient descent, so that a step's update is its gradient; its dropout
    is drawn anew every step."""
    config = small.train_config("transformer", "", ema=0.0)
    optimizer = optax.sgd(1.0)

    def run(config, number):
        state = TrainState(
            jnp.int32(number), params["transformer"], None, optimizer.init(params["transformer"])
        )
        after, metrics = steps[config.seed](state, batch, FrozenTokenizer(params["tokenizer"]))
        moved = jax.tree.map(lambda a, b: np.asarray(a - b), params["transformer"], after.params)
        assert int(after.step) == number + 1 and after.ema is None
        np.testing.assert_allclose(
            metrics["grad_norm"],
            np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(moved))),
            rtol=1e-3,
        )
        return float(metrics["loss"])

    other = dataclasses.replace(config, seed=4)
    steps = {
        c.seed: jax.jit(make_train_step(registry.with_frozen_shapes(c), {TRAINED: optimizer}))
        for c in (config, other)
    }
    assert run(config, 5) == run(config, 5)
    assert len({run(config, 5), run(config, 6), run(other, 5)}) == 3


@pytest.mark.slow
def test_train_step_in_microbatches_is_that_of_the_batch(params, batch):
    """The model has no dropout, so that the mean of the strided halves' gradients is the gradient
    of the batch."""
    still = dataclasses.replace(small.TRANSFORMER, drop_path=0.0, class_dropout=0.0)
    optimizer, results = optax.sgd(1.0), []
    for parts in (1, 2):
        config = small.train_config(
            "transformer", "", transformer=still, ema=0.0, microbatches=parts
        )
        state = TrainState(
            jnp.int32(0), params["transformer"], None, optimizer.init(params["transformer"])
        )
        train_step = make_train_step(registry.with_frozen_shapes(config), {TRAINED: optimizer})
        after, metrics = jax.jit(train_step)(state, batch, FrozenTokenizer(params["tokenizer"]))
        results.append((after.params, metrics))
    (full, whole_metrics), (halves, halves_metrics) = results
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * np.abs(b).max()),
        halves,
        full,
    )
    for name, value in whole_metrics.items():
        np.testing.assert_allclose(halves_metrics[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("codes", ["euclidean", "cosine", "bsq"])
def test_train_step_learns_with_every_kind_of_codes(codes):
    """Over forty steps on one batch the loss falls, every part moves, and reconstructions follow
    the images."""
    tokenizer = dataclasses.replace(small.TOKENIZER, codes=codes)
    care = CodebookConfig(
        entropy=0.003, entropy_temperature=0.5, revive_threshold=0.0 if codes == "bsq" else 0.1
    )
    config = small.train_config("tokenizer", "", tokenizer=tokenizer, codebook=care, ema=0.0)
    objective, optimizers = registry.with_frozen_shapes(config), {TRAINED: optax.adam(3e-3)}
    factory = StateFactory(objective, optimizers, make_mesh(MeshConfig(1, 1), jax.devices()[:1]))
    run, step = factory.first_state(), jax.jit(make_train_step(objective, optimizers))
    ramps = np.linspace(0, 255, 8)[None, None, :, None] * np.linspace(0, 1, 8)[:, None, None, None]
    images = {"image": np.broadcast_to(ramps, (8, 6, 8, 1)).astype(np.uint8)}
    first, result = run.params, []
    for _ in range(40):
        run, metrics = step(run, images, NetworkWeights())
        result.append(metrics)
    assert result[-1]["loss"] < 0.7 * result[0]["loss"] and result[-1]["l2"] < 0.5 * result[0]["l2"]
    assert ("codebook" in first["quantize"]) == (codes != "bsq")
    moved = jax.tree.map(
        lambda a, b: bool(np.any(np.asarray(a) != np.asarray(b))), first, run.params
    )
    assert all(jax.tree.leaves(moved))
    assert result[-1]["perplexity"][-1] > 1


def products(jaxpr) -> list[tuple[tuple[int, ...], jnp.dtype]]:
    """(sorted shape, dtype) of what matrix products and convolutions give, wherever in a
    program."""
    result = []
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in ("dot_general", "conv_general_dilated"):
            out = eqn.outvars[0].aval
            result.append((tuple(sorted(out.shape)), out.dtype))
        for value in jax.tree.leaves(list(eqn.params.values())):
            inner = getattr(value, "jaxpr", value)
            result += products(inner) if hasattr(inner, "eqns") else []
    return result


@pytest.mark.long
@pytest.mark.parametrize("stage", ["tokenizer", "transformer"])
@pytest.mark.parametrize("gradient_dtype", ["bfloat16", "float32"])
def test_gradients_of_bfloat16_weights_have_the_dtype_of_the_config(
    stage, gradient_dtype, params, batch
):
    """Each kernel's gradient leaves its product in that dtype, so that devices sum it in that
    dtype.

    Shapes tell those products from others: a batch of 5 occurs in no kernel.
    """
    config = small.train_config(stage, "")
    model = dataclasses.replace(
        getattr(config, stage), dtype="bfloat16", gradient_dtype=gradient_dtype
    )
    config = dataclasses.replace(config, **{stage: model})
    if stage == "transformer":
        objective = small.next_scale(config)
        rows = {name: jnp.resize(value, (5, *value.shape[1:])) for name, value in batch.items()}

        def loss(p):
            return objective.loss(p, objective.frozen, rows, None)[0]
    else:
        images = jnp.zeros((5, *config.tokenizer.image_shape))

        def loss(p):
            return jnp.mean(Tokenizer(config.tokenizer).apply({"params": p}, images)[0])

    made = products(jax.make_jaxpr(jax.grad(loss))(params[stage]).jaxpr)
    names = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(params[stage])
    }
    phi = tuple(sorted(params["tokenizer"]["quantize"]["phi_kernel"].shape[1:]))  # always float32
    kernels = {
        tuple(sorted(shape["blocks" in name :]))
        for name, shape in names.items()
        if name.endswith(("kernel", "/qkv", "/proj")) and not name.startswith("quantize")
    } - {phi}
    assert len(kernels) > 4
    for kernel in kernels:
        assert {dtype for shape, dtype in made if shape == kernel} == {jnp.dtype(gradient_dtype)}, (
            kernel
        )
