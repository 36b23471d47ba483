"""Adapters that learn the guided predictions of a frozen model."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from helpers import adapters, masked, next_token, small
from helpers.mesh_steps import assert_same_step, one_step
from helpers.numerics import log_softmax
from var_jax import Pipeline
from var_jax.config import idle_keys
from var_jax.config.adapter_config import AdapterConfig
from var_jax.config.model import ModelConfig
from var_jax.config.train import TrainConfig
from var_jax.errors import UserError
from var_jax.objectives import registry

pytestmark = pytest.mark.usefixtures("compiled_fast")

MODELS = {"next_scale": small, "next_token": next_token, "masked": masked}
ROWS = 8
LABELS = np.arange(ROWS, dtype=np.int32)


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Directories of tiny models, by objective."""
    return adapters.write_bases(tmp_path_factory.mktemp("bases"), MODELS)


def run(bases, name: str, cfg: str = "1.5", **settings) -> TrainConfig:
    base = small.train_config("transformer", "")
    return adapters.training(base, bases / name, cfg=cfg, **settings)


def batch_of(config: TrainConfig) -> dict[str, np.ndarray]:
    tokens = np.random.RandomState(0).randint(0, 16, (ROWS, config.transformer.scales.total))
    return {"tokens": tokens.astype(np.int32), "label": LABELS}


@pytest.mark.long
@pytest.mark.parametrize("name", ["next_scale", "next_token"])
def test_loss_is_the_divergence_from_guided_predictions(bases, name, tmp_path):
    """At its start the adapter is the frozen model, and the loss that of its conditional
    predictions, by numpy from the model's own logits: guidance rises from 0 over the scales, and is
    the same at every token of one map. The held-out loss is the same without the padded rows."""
    objective = adapters.objective(run(bases, name), tmp_path)
    config, params = objective.config, adapters.fresh(objective)
    batch = batch_of(config)
    model = MODELS[name].pipeline()
    conditional = np.asarray(model.logits(batch["tokens"], LABELS), np.float64)
    nothing = np.full_like(LABELS, config.transformer.num_classes)
    unconditional = np.asarray(model.logits(batch["tokens"], nothing), np.float64)
    scales = config.transformer.scales
    progress = scales.level_ids / max(len(scales) - 1, 1) if len(scales) > 1 else 1.0
    strength = np.broadcast_to(1.5 * progress, scales.total)[:, None]
    targets = log_softmax((1 + strength) * conditional - strength * unconditional)
    by_token = (np.exp(targets) * (targets - log_softmax(conditional))).sum(-1)

    loss, metrics = jax.jit(objective.loss)(params, objective.frozen, batch, jax.random.key(0))
    np.testing.assert_allclose(loss, by_token.mean(), rtol=1e-4)
    assert loss == metrics["loss"] and by_token.mean() > 0.01
    mask = np.arange(ROWS) < 5
    sums = objective.eval_metrics(params, objective.frozen, {**batch, "mask": mask})
    held_out = objective.summarize(jax.tree.map(np.asarray, sums), 5)
    np.testing.assert_allclose(held_out["loss"], by_token[:5].mean(), rtol=1e-4)


@pytest.mark.long
def test_adapter_comes_close_to_guidance(bases, tmp_path):
    """A hundred steps of Adam on one batch leave less than a fifth of the divergence."""
    objective = adapters.objective(run(bases, "next_scale", rank=8, alpha=8.0), tmp_path)
    params, batch = adapters.fresh(objective), batch_of(objective.config)
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(params, state):
        loss, slope = jax.value_and_grad(
            lambda p: objective.loss(p, objective.frozen, batch, None)[0]
        )(params)
        updates, state = optimizer.update(slope, state, params)
        return optax.apply_updates(params, updates), state, loss

    state, losses = optimizer.init(params), []
    for _ in range(100):
        params, state, loss = step(params, state)
        losses.append(float(loss))
    assert losses[-1] < losses[0] / 5


def test_picture_of_a_run_is_sampled_without_guidance(bases, tmp_path):
    """The adapted model has learned guidance: pictures with more of it would get worse as the loss
    falls. The frozen model's two forward passes are in the FLOPs."""
    objective = adapters.objective(run(bases, "next_scale"), tmp_path)
    model = ModelConfig(objective.config.tokenizer, objective.model)
    assert not objective.sampler_settings(model).guided
    plain = adapters.objective(run(bases, "next_scale", cfg=""), tmp_path)
    assert plain.sampler_settings(model).guided
    assert objective.flops_per_image() == pytest.approx(plain.flops_per_image() * 5 / 3)
    assert "guidance 1.5 in LoRA" in objective.summary()


def test_base_without_class_dropout_is_refused(tmp_path):
    """Its row for no class was never trained, so that there is no guidance to learn."""
    model = small.pipeline()
    transformer = dataclasses.replace(model.config.transformer, class_dropout=0.0)
    Pipeline(ModelConfig(model.config.tokenizer, transformer), model.params).save(tmp_path / "base")
    config = adapters.training(small.train_config("transformer", ""), tmp_path / "base", cfg="1.5")
    with pytest.raises(UserError, match=r"class_dropout of the model .* is 0\.0; it must be above"):
        adapters.objective(config, tmp_path)


@pytest.mark.long
def test_distillation_step_is_the_same_on_every_mesh(bases):
    """Metrics and updated factors of 4x2 devices are those of one device, to rounding."""
    config = run(bases, "next_scale")
    kind = registry.find(config)
    objective = kind(*kind.load_frozen(config, bases))
    random = np.random.RandomState(0)
    start = jax.tree.map(
        lambda x: (0.1 * random.standard_normal(x.shape)).astype(np.float32),
        adapters.fresh(objective),
    )
    batch = batch_of(objective.config)
    steps = [
        one_step(data, model, batch, start, objective.config, objective)
        for data, model in ((4, 2), (1, 1))
    ]
    assert_same_step(*steps, start)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("masked", {}, "'next_scale' or 'next_token' with adapter.cfg"),
        ("next_scale", {"cfg": "0"}, "adapter.cfg is '0'; it must be above 0 at some scale"),
        ("next_scale", {"cfg": "much"}, "adapter.cfg: invalid float value: 'much'"),
        ("next_scale", {"cfg": "1,2"}, "cfg is a list of 2"),
        ("next_scale", {"classes": "mug"}, "'' with new classes"),
    ],
)
def test_guidance_that_cannot_be_learned_is_refused(bases, tmp_path, name, settings, message):
    """One line says what is wrong and what would be right, before anything is trained."""
    with pytest.raises(UserError, match=message):
        adapters.objective(run(bases, name, **settings), tmp_path)


@pytest.mark.parametrize(
    "key", ["transformer.flip_share", "transformer.class_dropout", "loss.label_smoothing"]
)
def test_keys_of_another_loss_are_refused(bases, key):
    """They are of the frozen model's own objective, and a flag for them would do nothing."""
    section, name = key.split(".")
    config = run(bases, "next_scale")
    changed = dataclasses.replace(getattr(config, section), **{name: 0.5})
    config = dataclasses.replace(config, **{section: changed})
    with pytest.raises(UserError, match=f"{key}=0.5 has no effect while adapter.cfg is"):
        idle_keys.refuse_flags(config, [key])


def test_adapters_of_before_keep_their_identity():
    """The digest of an adapter's file is of the repr of its config, in which the key that came
    later is not."""
    assert "cfg" not in repr(AdapterConfig(cfg="1.5"))
    assert dataclasses.replace(AdapterConfig(), cfg="1.5") != AdapterConfig()
