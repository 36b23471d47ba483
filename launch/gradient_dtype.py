r"""Trains a small bfloat16 transformer with gradients summed over devices in float32 or bfloat16.

  python launch/gradient_dtype.py --model runs/quickstart \
      --json docs/results/bench/gradient_dtype.json

A batch is divided into the rows of its devices. A CPU's compiler sums bfloat16 in float32, so that
the sum over devices is written out here as a ring of accelerators computes it: in the arm
"bfloat16" each device's gradient, and each of the partial sums after it, is rounded to bfloat16; in
the arm "float32" nothing is. Both arms of a seed have the same initialization, batches and dropout.
Beside the losses it reports, over the first batches, how far the summed gradient lies from that of
the same model computed in float32 throughout.
"""

import argparse
import dataclasses
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath

from var_jax import Pipeline
from var_jax.cli.args import read_config
from var_jax.data import sources, transforms
from var_jax.models import init
from var_jax.objectives.frozen_tokenizer import FrozenTokenizer
from var_jax.objectives.next_scale import NextScale
from var_jax.objectives.step_types import TRAINED
from var_jax.train.optimizer import make_optimizers

COMPARED = 8  # steps whose gradient is compared with that of float32


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", required=True, help="workdir or model directory of digits, for its tokenizer"
    )
    parser.add_argument("--config", default="configs/digits.py:d2")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--json", required=True)
    args = parser.parse_args()
    model = Pipeline.from_pretrained(args.model)
    flags = (f"--config.steps={args.steps}", f"--config.batch_size={args.batch}")
    config = read_config(args.config, flags).with_tokenizer(model.config.tokenizer)
    data = {split: encoded(model, config, split) for split in ("train", "test")}
    runs = []
    for seed in range(args.seeds):
        for arm in ("float32", "bfloat16"):
            start = time.time()
            result = trained(config, model, data, seed, arm, args.devices)
            runs.append({"seed": seed, "arm": arm, **result})
            print(f"{runs[-1]} {time.time() - start:.0f} s", flush=True)
    settings = {"steps": args.steps, "batch_size": config.batch_size, "devices": args.devices}
    epath.Path(args.json).write_text(json.dumps({**settings, "runs": runs}, indent=1))


def encoded(model: Pipeline, config, split: str) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, labels) of a split."""
    images = sources.open_split(config.data, split)
    rows = [images[i] for i in range(len(images))]
    shape = config.tokenizer.image_shape
    fitted = np.stack([transforms.fit(row["image"], shape, config.data.resize) for row in rows])
    return model.encode(fitted.astype(np.float32) / 127.5 - 1), np.array(
        [row["label"] for row in rows], np.int32
    )


def trained(config, model: Pipeline, data, seed: int, arm: str, devices: int) -> dict:
    """Losses and gradient errors of one run."""
    narrow = dataclasses.replace(
        config, transformer=dataclasses.replace(config.transformer, dtype="bfloat16")
    )
    frozen = FrozenTokenizer(model.params["tokenizer"])
    exact_objective = NextScale(config, frozen)
    narrow_objective = exact_objective.with_config(narrow)
    params = init.fresh_params(config.transformer, jax.random.key(seed))
    optimizer = make_optimizers(exact_objective)[TRAINED]
    opt_state = optimizer.init(params)

    def gradients(objective, params, rows, rng):
        """(losses, gradients) of each device's rows, one device after the other."""

        def of_device(part):
            index, some = part
            (loss, _), grads = jax.value_and_grad(objective.loss, has_aux=True)(
                params, frozen, some, jax.random.fold_in(rng, index)
            )
            return loss, grads

        split = jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), rows)
        return jax.lax.map(of_device, (jnp.arange(devices), split))

    def summed(every, arm):
        """The mean over devices of a gradient, in one of the two ways."""
        if arm == "float32":
            return jnp.mean(every, axis=0)

        def add(total, part):
            return rounded(total + rounded(part)), None

        return jax.lax.scan(add, rounded(every[0]), every[1:])[0] / devices

    @jax.jit
    def exact(params, rows, rng):
        return jax.tree.map(
            lambda g: summed(g, "float32"), gradients(exact_objective, params, rows, rng)[1]
        )

    @jax.jit
    def step(params, opt_state, rows, rng):
        loss, every = gradients(narrow_objective, params, rows, rng)
        grads = jax.tree.map(lambda g: summed(g, arm), every)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, jnp.mean(loss), grads

    tokens, labels = data["train"]
    random, losses, errors = np.random.default_rng(seed), [], []
    for number in range(config.steps):
        chosen = random.choice(len(tokens), config.batch_size, replace=False)
        rows = {"tokens": tokens[chosen], "label": labels[chosen]}
        rng = jax.random.fold_in(jax.random.key(seed), number)
        expected = exact(params, rows, rng) if number < COMPARED else None
        params, opt_state, loss, grads = step(params, opt_state, rows, rng)
        losses.append(float(loss))
        if expected is not None:
            difference = optax.tree_utils.tree_norm(jax.tree.map(jnp.subtract, grads, expected))
            errors.append(float(difference / optax.tree_utils.tree_norm(expected)))
    held = jax.jit(
        lambda p, t, y: narrow_objective.loss(p, frozen, {"tokens": t, "label": y}, None)[0]
    )
    return {
        "last_50_train_loss": float(np.mean(losses[-50:])),
        "held_out_loss": float(held(params, *data["test"])),
        "gradient_error": float(np.mean(errors)),
    }


def rounded(x: jax.Array) -> jax.Array:
    """x with bfloat16's 8 bits of exponent and 7 of mantissa, in float32."""
    return jax.lax.reduce_precision(x, 8, 7)


if __name__ == "__main__":
    main()
