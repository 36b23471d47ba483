"""Optimizers: which parameters decay, learning rates and weight decay by step, and shardings."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from helpers import small
from var_jax.config.model import TokenizerConfig, TransformerConfig
from var_jax.config.scales import Scales
from var_jax.config.tokenizer_training import AdversarialConfig, CodebookConfig
from var_jax.config.train import MeshConfig, OptimizerConfig, TrainConfig
from var_jax.devices.mesh import make_mesh
from var_jax.objectives import registry
from var_jax.objectives.step_types import TRAINED
from var_jax.train import schedules
from var_jax.train.optimizer import (
    decay_mask,
    learning_rates,
    make_optimizer,
    make_optimizers,
)
from var_jax.train.program import Program
from var_jax.train.schedules import learning_rate_on_host


def learning_rate(config: OptimizerConfig, steps: int, batch_size: int):
    """The rate by the number of steps done, as the compiled step computes it."""
    numbers = schedules.numbers(config, steps, batch_size)
    return lambda done: schedules.rate_after(config.schedule, numbers, done)


def weight_decay(config: OptimizerConfig, steps: int):
    """The weight decay by the number of steps done."""
    numbers = schedules.numbers(config, steps, 256)
    return lambda done: schedules.weight_decay_after(numbers, done)


TOKENIZER = TokenizerConfig(
    scales=Scales.parse("1,2"),
    in_channels=1,
    channels=8,
    multipliers=(1, 1),
    blocks=1,
    norm_groups=4,
    z_channels=4,
    vocab_size=16,
    phi=2,
)

DECAYED = {
    "blocks/ada/kernel",
    "blocks/attn/proj",
    "blocks/attn/qkv",
    "blocks/fc1/kernel",
    "blocks/fc2/kernel",
    "class_embed",
    "head/kernel",
    "head_ada/kernel",
    "word_embed/kernel",
}
NOT_DECAYED = {
    "blocks/ada/bias",
    "blocks/attn/log_scale",
    "blocks/attn/proj_bias",
    "blocks/attn/q_bias",
    "blocks/attn/v_bias",
    "blocks/fc1/bias",
    "blocks/fc2/bias",
    "head/bias",
    "head_ada/bias",
    "level_embed",
    "pos_embed",
    "pos_start",
    "word_embed/bias",
}


def transformer_run(shared_adaln: bool) -> TrainConfig:
    transformer = TransformerConfig(
        depth=2,
        width=16,
        num_classes=3,
        vocab_size=16,
        z_channels=4,
        scales=TOKENIZER.scales,
        shared_adaln=shared_adaln,
    )
    return TrainConfig(stage="transformer", tokenizer=TOKENIZER, transformer=transformer)


def split(config: TrainConfig) -> tuple[set[str], set[str]]:
    """(paths that decay, paths that do not) of a run's parameters."""
    params = nn.meta.unbox(
        jax.eval_shape(registry.with_frozen_shapes(config).init, jax.random.key(0))
    )
    leaves, _ = jax.tree_util.tree_flatten_with_path(decay_mask(params))
    named = {
        jax.tree_util.keystr(path, simple=True, separator="/"): decayed for path, decayed in leaves
    }
    return {n for n, d in named.items() if d}, {n for n, d in named.items() if not d}


def test_decay_mask_of_the_transformer():
    """The parameters that decay, and those that do not, are the two lists above."""
    assert split(transformer_run(shared_adaln=False)) == (DECAYED, NOT_DECAYED)


def test_decay_mask_with_shared_adaln():
    """The shared linear layer takes the place of those per block, and the blocks' offsets do not
    decay."""
    decayed, rest = split(transformer_run(shared_adaln=True))
    assert decayed == DECAYED - {"blocks/ada/kernel"} | {"shared_ada/kernel"}
    assert rest == NOT_DECAYED - {"blocks/ada/bias"} | {"shared_ada/bias", "blocks/ada_offset"}


def test_decay_mask_of_the_tokenizer():
    """Kernels and the codebook decay; biases and scales of norms do not."""
    decayed, rest = split(TrainConfig(tokenizer=TOKENIZER))
    assert {
        "quantize/codebook",
        "quantize/phi_kernel",
        "encoder/conv_in/kernel",
        "quant_conv/kernel",
    } <= decayed
    assert {"quantize/phi_bias", "encoder/conv_in/bias", "encoder/norm_out/group/scale"} <= rest
    assert {name.rsplit("/", 1)[1] for name in decayed} == {"kernel", "codebook", "phi_kernel"}
    assert {name.rsplit("/", 1)[1] for name in rest} == {"bias", "scale", "phi_bias"}


def test_weight_decay_may_leave_the_codes_alone():
    """A step without gradients, with the key off, shrinks every kernel and leaves the codes as they
    are; the optimizer's state has the same leaves, so that earlier runs resume."""
    params = {"quantize": {"codebook": jnp.ones((3, 2))}, "conv": {"kernel": jnp.ones((2, 2))}}
    shapes = []
    for decayed in (True, False):
        config = TrainConfig(tokenizer=TOKENIZER, codebook=CodebookConfig(weight_decay=decayed))
        optimizer = make_optimizers(registry.with_frozen_shapes(config))[TRAINED]
        opt_state = optimizer.init(params)
        updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), opt_state, params)
        assert float(updates["conv"]["kernel"].max()) < 0
        assert bool(updates["quantize"]["codebook"].any()) == decayed
        shapes.append(jax.tree.map(jnp.shape, opt_state))
    assert jax.tree.leaves(shapes[0]) == jax.tree.leaves(shapes[1])
    assert [
        jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(shapes[0])
    ] == [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(shapes[1])]


@pytest.mark.parametrize("warmup", [0, 20])
def test_bent_is_two_lines_of_the_published_schedule(warmup):
    """The published `lin0.4`: to the middle of 1 and of what one straight line would have there,
    then to the end."""
    steps, bend, last = 121, 0.4, 0.2
    config = OptimizerConfig(
        base_lr=1e-4,
        schedule="bent",
        bend=bend,
        warmup_steps=warmup,
        warmup_from=0.01,
        final_lr_ratio=last,
    )
    rate = learning_rate(config, steps, 512)
    middle = (1 + last + (1 - last) * (1 - bend)) / 2
    for step in range(warmup, steps):
        passed = (step - warmup) / (steps - 1 - warmup)
        factor = (
            1 + (middle - 1) * passed / bend
            if passed < bend
            else (last + (middle - last) * (1 - passed) / (1 - bend))
        )
        np.testing.assert_allclose(rate(step), 2e-4 * factor, rtol=2e-6)


@pytest.mark.parametrize("schedule", ["lin0", "cosine", "constant"])
@pytest.mark.parametrize("warmup", [0, 20])
def test_learning_rate_follows_each_schedule(schedule, warmup):
    """Every step's rate is that of the formula, with and without warmup, times batch size / 256."""
    steps, batch = 121, 512
    config = OptimizerConfig(
        base_lr=1e-4, schedule=schedule, warmup_steps=warmup, warmup_from=0.01, final_lr_ratio=0.2
    )
    rate = learning_rate(config, steps, batch)
    for step in range(steps):
        if step < warmup:
            factor = 0.01 + 0.99 * step / warmup
        else:
            passed = (step - warmup) / (steps - 1 - warmup)
            factor = {
                "lin0": 1 if passed < 0.05 else 0.2 + 0.8 * (1 - passed) / 0.95,
                "cosine": 0.2 + 0.8 * (1 + math.cos(math.pi * passed)) / 2,
                "constant": 1,
            }[schedule]
        np.testing.assert_allclose(rate(step), 2e-4 * factor, rtol=2e-6)


@pytest.mark.parametrize("warmup", [0, 20])
def test_cooldown_is_constant_and_then_one_minus_a_square_root(warmup):
    """The last 40 of 101 steps fall by the formula, and the ones before them are constant."""
    steps, length = 101, 40
    config = OptimizerConfig(
        base_lr=1e-4,
        schedule="cooldown",
        cooldown_steps=length,
        warmup_steps=warmup,
        warmup_from=0.01,
        final_lr_ratio=0.2,
    )
    rate = learning_rate(config, steps, 512)
    for step in range(warmup, steps):
        over = max(0, step - 60) / length  # steps 61 to 100 are the last 40
        np.testing.assert_allclose(rate(step), 2e-4 * (1 - 0.8 * math.sqrt(over)), rtol=2e-6)


@pytest.mark.parametrize("schedule", ["lin0", "cosine", "constant", "cooldown", "bent"])
@pytest.mark.parametrize(
    ("steps", "warmup", "length"), [(41, 0, 0), (41, 7, 12), (1, 0, 3), (3, 10, 2)]
)
def test_learning_rate_on_host_is_that_of_the_compiled_step(schedule, steps, warmup, length):
    """The rates agree at every step of every schedule, runs shorter than their warm-up among
    them."""
    config = OptimizerConfig(
        base_lr=3e-4,
        schedule=schedule,
        cooldown_steps=length,
        warmup_steps=warmup,
        warmup_from=0.01,
        final_lr_ratio=0.2,
    )
    rate = learning_rate(config, steps, 512)
    for step in range(steps):  # optax takes differences of numbers as large as the peak, in float32
        np.testing.assert_allclose(
            learning_rate_on_host(config, steps, 512, step),
            rate(step),
            rtol=2e-6,
            atol=6e-4 * np.finfo(np.float32).eps,
        )


def test_learning_rates_of_the_log_run_no_program():
    """Over several hosts, every small program outside the step is one that all of them have to wait
    for. A program would need the step's number on a device, which the guard forbids."""
    config = small.train_config(
        "tokenizer", "", steps=9, adversarial=AdversarialConfig(weight=1.0, start=4, layers=1)
    )
    rates = learning_rates(registry.with_frozen_shapes(config))
    with jax.transfer_guard("disallow"):
        result = [rates(step) for step in range(9)]
    assert all(type(value) is float for one in result for value in one.values())
    assert [set(one) for one in result] == [{"lr"}] * 4 + [{"lr", "discriminator_lr"}] * 5


def test_learning_rates_of_the_log_are_those_that_are_known():
    """Where steps are skipped, the discriminator's rate depends on which of them were: the log has
    none, and the trained network's waits for the skipped steps."""
    config = small.train_config(
        "tokenizer",
        "",
        steps=9,
        adversarial=AdversarialConfig(weight=1.0, start=4, layers=1),
        optimizer=OptimizerConfig(skip_spikes=3.0, schedule="cosine"),
    )
    rates = learning_rates(registry.with_frozen_shapes(config))
    assert set(rates(6, 2)) == {"lr"}
    assert rates(6, 2) == rates(4) != rates(6)


def test_runs_of_several_lengths_share_the_rates_before_their_cooldowns():
    """Runs of 80, 100 and 200 steps have the constant schedule's rates up to step 80, so that they
    can branch from one trunk."""

    def rates(steps, length, count):
        config = OptimizerConfig(
            schedule="cooldown", cooldown_steps=length, warmup_steps=5, final_lr_ratio=0.0
        )
        return [float(learning_rate(config, steps, 256)(step)) for step in range(count)]

    constant = OptimizerConfig(schedule="constant", warmup_steps=5)
    trunk = [float(learning_rate(constant, 200, 256)(step)) for step in range(80)]
    assert rates(100, 20, 80) == rates(200, 40, 80) == rates(80, 0, 80) == trunk
    assert rates(100, 20, 81)[-1] < trunk[-1] and rates(100, 20, 100)[-1] == 0


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 1), (3, 10)])
@pytest.mark.parametrize("schedule", ["lin0", "cooldown"])
def test_runs_shorter_than_their_schedules_stay_finite(schedule, steps, warmup):
    """One step, or a warmup longer than the run, divides nothing by zero."""
    config = OptimizerConfig(schedule=schedule, cooldown_steps=2, warmup_steps=warmup)
    rates = [learning_rate(config, steps, 256)(step) for step in range(steps)]
    assert all(0 < rate <= 1.001e-4 for rate in rates)
    assert np.isfinite(weight_decay(config, steps)(0))


@pytest.mark.parametrize(("first", "last"), [(0.05, 0.08), (0.0, 0.1), (0.1, 0.0)])
def test_weight_decay_follows_a_half_cosine(first, last):
    """Each step's value is the formula's, rising, falling, and down to 0."""
    decay = weight_decay(OptimizerConfig(weight_decay=first, final_weight_decay=last), 11)
    for step in range(11):
        expected = last + (first - last) * (1 + math.cos(math.pi * step / 10)) / 2
        np.testing.assert_allclose(decay(step), expected, atol=1e-7)


@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_three_updates_are_adamw(clip):
    """Three updates equal AdamW computed in NumPy.

    It has clipping, the learning rate's schedule and a weight decay that rises; biases have no
    decay.
    """
    config = OptimizerConfig(
        base_lr=0.01, b1=0.8, b2=0.9, eps=1e-6, weight_decay=0.1, final_weight_decay=0.3, clip=clip
    )
    steps, batch = 3, 256
    rng = np.random.default_rng(0)
    params = {"kernel": rng.normal(size=(3, 2)), "bias": rng.normal(size=3)}
    optimizer = make_optimizer(config, schedules.numbers(config, steps, batch))
    actual = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    state = optimizer.init(actual)
    m, v = ({k: np.zeros_like(p) for k, p in params.items()} for _ in range(2))
    for t in range(steps):
        grads = {k: rng.normal(size=p.shape) for k, p in params.items()}
        updates, state = optimizer.update(
            jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), grads), state, actual
        )
        actual = optax.apply_updates(actual, updates)
        norm = math.sqrt(sum((g**2).sum() for g in grads.values()))
        for k, g in grads.items():
            g = g * min(1, clip / norm) if clip else g
            m[k], v[k] = 0.8 * m[k] + 0.2 * g, 0.9 * v[k] + 0.1 * g**2
            adam = m[k] / (1 - 0.8 ** (t + 1)) / (np.sqrt(v[k] / (1 - 0.9 ** (t + 1))) + 1e-6)
            decay = [0.1, 0.2, 0.3][t] if k == "kernel" else 0
            rate = 0.01 * (1 if t < 1 else 0.1 + 0.9 * (1 - t / 2) / 0.95)
            params[k] = params[k] - rate * (adam + decay * params[k])
    for k, p in params.items():
        np.testing.assert_allclose(actual[k], p, rtol=1e-5, atol=1e-6)


def test_state_takes_the_parameters_shardings():
    """Both of Adam's moments lie on the devices as their parameters do."""
    config = transformer_run(shared_adaln=False)
    program = Program(registry.with_frozen_shapes(config), make_mesh(MeshConfig()))
    moments = [
        sharding
        for value, sharding in zip(
            *(jax.tree.leaves(tree.opt_state) for tree in (program.abstract, program.shardings)),
            strict=True,
        )
        if value.shape
    ]
    assert moments == 2 * jax.tree.leaves(program.shardings.params)
