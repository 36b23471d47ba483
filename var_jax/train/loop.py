"""The training loop of both stages, read downward: devices, model, data, resume, steps.

Resume order: the newest readable checkpoint of the workdir, else `init_from`, else fresh parameters.
"""

import json
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax.linen import meta
from jax.sharding import NamedSharding, PartitionSpec
from PIL import Image

from var_jax import model_directory, pictures
from var_jax.checkpoint import Checkpoints
from var_jax.config import ModelConfig, differences, plain, require
from var_jax.data import loader, sources
from var_jax.errors import UserError
from var_jax.train import evaluation, state, step
from var_jax.train.config import TrainConfig
from var_jax.train.metrics import MetricWriter
from var_jax.train.optimizer import learning_rate, make_optimizer

# May differ between a run and its resumption: how long, how often, on what.
RESUMABLE = ("steps", "log_every", "eval_every", "checkpoint_every", "keep_checkpoints", "eval_images", "mesh",
             "sample_classes", "tokenizer_dir", "init_from", "data.workers", "data.data_dir")


class Diverged(RuntimeError):
    """The loss or gradient of a step is not finite; the message names the step and the last good checkpoint."""


def train(config: TrainConfig, workdir: str) -> dict[str, Any]:
    """Trains one stage to `config.steps`, resuming whatever the workdir holds.

    Returns:
      the last evaluation's metrics.
    Raises:
      UserError: settings, data or workdir are wrong.
      Diverged: a loss is not finite; no checkpoint is written from such a step.
    """
    directory = epath.Path(workdir)

    # Devices
    mesh = state.make_mesh(config.mesh)
    require(config.batch_size % (mesh.shape["data"] * config.microbatches) == 0, "batch_size", config.batch_size,
            f"a multiple of mesh.data {mesh.shape['data']} times microbatches {config.microbatches}")
    rows = NamedSharding(mesh, PartitionSpec("data"))
    replicated = NamedSharding(mesh, PartitionSpec())

    with jax.set_mesh(mesh):
        # Model: the tokenizer that the transformer learns from is read first, since it decides the sizes
        frozen = None
        if config.stage == "transformer":
            config, frozen = _with_frozen_tokenizer(config, directory)
            frozen = jax.device_put(frozen, replicated)
        optimizer = make_optimizer(config.optimizer, config.steps, config.batch_size)
        abstract, shardings = state.state_shardings(config, optimizer, mesh)
        train_step = jax.jit(step.make_train_step(config, optimizer), donate_argnums=0,
                             in_shardings=(shardings, rows, None), out_shardings=(shardings, replicated))
        encode = jax.jit(step.make_encode(config), out_shardings=rows) if frozen is not None else None

        def on_devices(batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
            """The host's part of a batch as arrays over the mesh, images already encoded in the second stage."""
            arrays = {name: jax.make_array_from_process_local_data(rows, value) for name, value in batch.items()}
            if encode is not None:
                arrays["tokens"] = encode(frozen, arrays.pop("image"))
            return arrays

        # Data, opened before the workdir is touched: a missing directory leaves nothing behind
        split = sources.open_split(config.data, config.data.train_split)
        if config.stage == "transformer":
            require(config.transformer.num_classes >= len(split.class_names), "transformer.num_classes",
                    config.transformer.num_classes, f"at least the {len(split.class_names)} classes of the data")
        evaluator = evaluation.Evaluator(config, frozen, on_devices)

        # Resume; the workdir becomes this run's when nothing can be wrong any more
        _refuse_another_run(directory, config)
        checkpoints = Checkpoints(directory / "checkpoints", keep=config.keep_checkpoints)
        if checkpoints.latest_step() is not None:
            targets = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings)
            run, _ = checkpoints.restore(targets)
        else:
            start = _starting_weights(config) if config.init_from else None
            run = state.init_state(config, optimizer, shardings, start)
        first = int(run.step)
        batches = loader.train_batches(config.data, config.tokenizer.image_shape, config.batch_size, config.seed,
                                       start_step=first)
        _claim(directory, config)
        writer = MetricWriter(directory, steps=config.steps, batch_size=config.batch_size, resume_step=first,
                              enabled=jax.process_index() == 0)

        # Steps: each is dispatched before the one before it is read
        rate = learning_rate(config.optimizer, config.steps, config.batch_size)
        held_out: dict[str, Any] = {}
        unread: list[tuple[int, Any]] = []
        mark = (first, time.perf_counter())

        def read(log: bool):
            """Waits for the steps dispatched so far; a loss or gradient that is not finite stops the run."""
            nonlocal mark
            for number, metrics in unread:
                for name in ("loss", "grad_norm"):
                    if not np.isfinite(value := float(metrics[name])):
                        checkpoints.wait()
                        raise Diverged(f"{name} of step {number} is {value}; "
                                       f"the last checkpoint is of step {checkpoints.latest_step()}")
            if log and unread:
                number, metrics = unread[-1]
                now = time.perf_counter()
                speed = (number - mark[0]) * config.batch_size / (now - mark[1])
                mark = (number, now)
                values = jax.tree.map(np.asarray, metrics)
                writer.write(number, "train", {**values, "lr": float(rate(number - 1)), "images_per_s": speed})
                writer.progress(number, float(values["loss"]))
            unread.clear()

        try:
            for number in range(first + 1, config.steps + 1):
                run, metrics = train_step(run, on_devices(next(batches)), frozen)
                last = number == config.steps
                if (number - 1) % config.log_every == 0 or len(unread) > config.log_every:
                    read(log=(number - 1) % config.log_every == 0)
                unread.append((number, metrics))
                if last or number % config.eval_every == 0 or number % config.checkpoint_every == 0:
                    read(log=last or number % config.log_every == 0)
                if last or number % config.eval_every == 0:
                    held_out = evaluator.metrics(_averaged(run))
                    writer.write(number, "val", held_out)
                    _keep_picture(directory, writer, number, evaluator.picture(_averaged(run)))
                    mark = (number, time.perf_counter())  # evaluation is not training time
                if last or number % config.checkpoint_every == 0:
                    checkpoints.save(number, run, {"config": plain(config)}, wait=last)
            checkpoints.wait()
            if not held_out:  # every step was done before: what the caller asks for is still the last evaluation
                held_out = evaluator.metrics(_averaged(run))
            writer.close("done")
        except BaseException:
            writer.close("failed")
            raise
        finally:
            checkpoints.close()
    return held_out


def _with_frozen_tokenizer(config: TrainConfig, directory: epath.Path) -> tuple[TrainConfig, Any]:
    """The run over the tokenizer of `tokenizer_dir`, a copy of which the workdir keeps from the start."""
    kept = directory / "tokenizer"
    if not (kept / "model.json").exists():
        require(bool(config.tokenizer_dir), "tokenizer_dir", repr(config.tokenizer_dir),
                "the model directory of a trained tokenizer (--config.tokenizer_dir=DIR)")
    source = kept if (kept / "model.json").exists() else epath.Path(config.tokenizer_dir)
    model, params = model_directory.load(source)
    params = jax.tree.map(jnp.asarray, params["tokenizer"])
    return config.with_tokenizer(model.tokenizer), params


def _averaged(run: state.TrainState) -> Any:
    return run.params if run.ema is None else run.ema


def _refuse_another_run(directory: epath.Path, config: TrainConfig):
    """Raises UserError when the workdir holds a run of other settings, naming every one."""
    path = directory / "config.json"
    if path.exists():
        theirs = model_directory.read_json(path)
        other = [d for d in differences(plain(config), theirs) if not d.startswith(RESUMABLE)]
        if other:
            raise UserError(f"{directory} holds another run; {'; '.join(other)}; "
                            "give another --workdir, or the settings it was started with")


def _claim(directory: epath.Path, config: TrainConfig):
    """Makes the workdir this run's.

    Raises:
      UserError: it cannot be written.
    """
    if jax.process_index() != 0:
        return
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if config.stage == "transformer" and not (directory / "tokenizer" / "model.json").exists():
            model = ModelConfig(config.tokenizer)
            _, params = model_directory.load(epath.Path(config.tokenizer_dir))
            model_directory.save(directory / "tokenizer", model, {"tokenizer": params["tokenizer"]})
        model_directory.write_text(directory / "config.json", json.dumps(plain(config), indent=1))
    except OSError as error:
        raise UserError(f"cannot write the workdir {directory}: {error.strerror or error}") from error


def _starting_weights(config: TrainConfig) -> Any:
    """The weights of `init_from` for this stage; another class count starts its class embedding afresh.

    Raises:
      UserError: a parameter of another shape than this run's, named.
    """
    model, params = model_directory.load(epath.Path(config.init_from))
    if config.stage not in params:
        raise UserError(f"init_from {config.init_from} has no {config.stage}; give a model directory that holds one")
    theirs, ours = params[config.stage], jax.eval_shape(_unboxed_init(config), jax.random.key(0))
    if config.stage == "transformer" and model.transformer.num_classes != config.transformer.num_classes:
        fresh = jax.jit(lambda key: _unboxed_init(config)(key)["class_embed"])  # the rest is never computed
        theirs["class_embed"] = fresh(jax.random.key(config.seed))
    shapes = [{_name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
              for tree in (ours, theirs)]
    if other := differences(*shapes):
        raise UserError(f"init_from {config.init_from} does not fit this run: {'; '.join(other[:5])}")
    return jax.tree.map(lambda x, like: jnp.asarray(x, like.dtype), theirs, ours)


def _unboxed_init(config: TrainConfig):
    return lambda key: meta.unbox(state.init_params(config)(key))


def _name(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _keep_picture(directory: epath.Path, writer: MetricWriter, step: int, picture: Image.Image):
    if jax.process_index() == 0:
        pictures.save_png(directory / "samples" / f"step_{step:07d}.png", picture)
    writer.image(step, "samples", np.asarray(picture))
