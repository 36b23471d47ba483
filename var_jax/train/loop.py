"""The training loop of both stages, read downward: networks, devices, data, resume, steps.

Resume order: the newest readable checkpoint of the workdir, else `branch_from`, else `init_from`,
else fresh parameters.
"""

import functools
import sys
from collections import deque
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec
from PIL import Image

from var_jax.config import idle_keys
from var_jax.config.strict import plain, require
from var_jax.config.train import TrainConfig
from var_jax.devices import multihost, sharding
from var_jax.devices.preemption import Preemption, StopRequested
from var_jax.errors import Preempted
from var_jax.io import pictures, storage_messages
from var_jax.io.checkpoint import Checkpoints
from var_jax.objectives import frozen_networks, step
from var_jax.train import (
    codebook_start,
    data_report,
    data_sizes,
    evaluation,
    frozen_parts,
    hosts,
    mesh_choice,
    messages,
    resume,
    state,
    workdir,
)
from var_jax.train.batches import Inputs, read_kept
from var_jax.train.metrics import MetricWriter
from var_jax.train.optimizer import learning_rates
from var_jax.train.program import Program
from var_jax.train.throughput import Profile, Throughput

UNREAD_STEPS = 1  # dispatched while the one before is still running


class Diverged(RuntimeError):
    """The loss or gradient of a step is not finite; the message names the step and the last good
    checkpoint."""


def train(
    config: TrainConfig, directory: epath.PathLike, profile: tuple[int, int] | None = None
) -> dict[str, Any]:
    """Trains one stage to `config.steps` in the workdir `directory`, resuming whatever it holds.

    Args:
      profile: first step and number of steps that are traced.
    Returns:
      the last evaluation's metrics.
    Raises:
      UserError: settings, data or workdir are wrong.
      Diverged: a loss is not finite; no checkpoint is written from such a step.
      Preempted: SIGTERM came; everything is saved.
    """
    directory = epath.Path(directory)
    idle_keys.refuse(config, workdir.started_with(directory))

    # Networks: frozen ones are read first, since they decide sizes and which terms there are
    hosts.require_same_config(config)
    config, loaded = multihost.run_on_all(lambda: frozen_networks.load(config))
    tokenizer, frozen = None, loaded.params
    if config.stage == "transformer":
        sizes, tokenizer = workdir.frozen_tokenizer(config, directory)
        config = config.with_tokenizer(sizes)
        frozen = frozen_parts.used_in_steps(config, tokenizer)
    config = multihost.run_on_all(lambda: data_sizes.from_data(config, directory))
    hosts.require_same_config(
        config
    )  # a network that a host lacks, or its data, may have changed it
    hosts.require_same_weights("the frozen networks", tokenizer or frozen)

    # Devices
    mesh = mesh_choice.choose(config).mesh
    rows, replicated = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))

    with jax.set_mesh(mesh), Preemption(mesh) as preemption, storage_messages.silenced():
        frozen = sharding.place(frozen, jax.tree.map(lambda _: replicated, frozen))
        encode = None
        if config.stage == "transformer":
            encode = functools.partial(
                jax.jit(step.make_encode(config), out_shardings=rows), frozen
            )
        program = Program(config, mesh, loaded)

        # Data, opened before the workdir is touched: a missing directory leaves nothing behind
        data = multihost.run_on_all(
            lambda: Inputs(config, tokenizer, encode, rows, read_kept(directory))
        )
        data.require_same_on_hosts()
        if config.stage == "transformer":
            require(
                config.transformer.num_classes >= len(data.class_names),
                "transformer.num_classes",
                config.transformer.num_classes,
                f"at least the {len(data.class_names)} classes of the data",
            )
        evaluator = evaluation.Evaluator(
            config, loaded, frozen, data, replicated, tokenizer, preemption
        )

        # Resume; the workdir becomes this run's when nothing can be wrong any more
        workdir.refuse_another_run(directory, config)
        data.require_same(directory)
        checkpoints = Checkpoints(
            directory / "checkpoints", config.keep_checkpoints, config.keep_steps
        )
        run, evaluated, fresh = resume.first_state(config, program, checkpoints)
        first = int(run.step)
        if fresh:
            run = codebook_start.with_codes_of_data(config, program, data, run)
        batches = data.train(start_step=first)
        workdir.claim(directory, config, tokenizer)
        data.note(directory)
        if jax.process_index() == 0:
            data_report.tell(config, data)
        writer = MetricWriter(
            directory, steps=config.steps, resume_step=first, enabled=jax.process_index() == 0
        )

        if jax.process_index() == 0:
            print(
                messages.opening(config, data.identity, program.abstract.params, directory, first),
                file=sys.stderr,
                flush=True,
            )

        # Steps: each is dispatched before the one before it is read
        rates_at = learning_rates(config)
        throughput, trace = (
            Throughput(config, first),
            Profile(directory, profile, config.steps, first),
        )
        unread: deque[tuple[int, Any, Any]] = deque()
        held_out: dict[str, Any] = {}

        def read(left: int) -> bool:
            """Waits for all steps dispatched but the last `left`, and logs them; whether any host
            was told to stop.

            Raises:
              Diverged: a loss or gradient is not finite.
            """
            stop = False
            while len(unread) > left:
                number, metrics, vote = unread.popleft()
                if wrong := not_finite(metrics):
                    checkpoints.wait()
                    saved = checkpoints.latest_step()
                    kept = (
                        "there is no checkpoint yet"
                        if saved is None
                        else f"the last checkpoint is of step {saved}"
                    )
                    raise Diverged(f"{wrong[0]} of step {number} is {wrong[1]}; {kept}")
                stop |= bool(vote)
                writer.advance(number, float(metrics["loss"]))
                if number % config.log_every == 0 or number == config.steps:
                    rates = throughput.report(number)
                    values = jax.tree.map(np.asarray, metrics)
                    writer.write(number, "train", {**values, **rates_at(number - 1), **rates})
                    writer.progress(number, float(values["loss"]), rates["images_per_s"])
            return stop

        def save(number: int, to_evaluate: bool):
            writer.flush()
            checkpoints.save(number, run, {"config": plain(config), "evaluated": not to_evaluate})

        def stop_after(number: int):
            checkpoints.wait()
            writer.close("preempted")
            raise Preempted(
                f"stopped by SIGTERM after step {number} of {config.steps}, everything saved; "
                "the same command goes on"
            )

        def evaluate(number: int, saved: bool) -> dict[str, Any]:
            """The held-out metrics of a state. A resumed run makes up what a stop or a kill cut
            off."""
            try:
                writer.evaluating(number)
                with throughput.paused():
                    metrics = evaluator.metrics(_averaged(run))
                    writer.write(number, "val", metrics)
                    _keep_picture(directory, writer, number, evaluator.picture(_averaged(run)))
            except StopRequested:
                if not saved:
                    save(number, to_evaluate=True)
                stop_after(number)
            if saved:
                writer.flush()  # what is noted is not measured again
                checkpoints.note_loss(number, metrics["loss"])
            return metrics

        try:
            if not evaluated:
                held_out = evaluate(first, saved=True)
            for number in range(first + 1, config.steps + 1):
                vote = preemption.vote()
                trace.before(number)
                run, metrics = program.step(number - 1)(run, data.on_devices(next(batches)), frozen)
                trace.after(number, metrics)
                unread.append((number, metrics, vote))
                last = number == config.steps
                to_evaluate = last or number % config.eval_every == 0
                to_save = (
                    last or number % config.checkpoint_every == 0 or number in config.keep_steps
                )
                stop = read(left=0 if to_evaluate or to_save else UNREAD_STEPS)
                if stop:
                    read(left=0)
                # Saved first: there may be no time for more, and none for an evaluation
                if to_save or stop:
                    save(number, to_evaluate)
                if stop:
                    stop_after(number)
                if to_evaluate:
                    held_out = evaluate(number, saved=to_save)
            checkpoints.wait()
            if (
                not held_out
            ):  # every step was done before: what the caller asks for is still the last evaluation
                held_out = evaluator.metrics(_averaged(run))
            writer.close("done")
        except StopRequested:
            stop_after(config.steps)
        except Preempted:
            raise
        except BaseException:
            writer.close("failed")
            raise
        finally:
            trace.close()
            checkpoints.close()
    return held_out


def not_finite(metrics: Mapping[str, Any]) -> tuple[str, float] | None:
    """The first loss or gradient norm of a step that is not finite, with the network it is of.

    Either network's NaN reaches the other within the step: where the reconstruction itself is
    finite, the discriminator is looked at first.
    """
    names = {"loss": "loss", "grad_norm": "grad_norm"}
    if "discriminator_loss" in metrics:
        names = {name: f"the generator's {text}" for name, text in names.items()}
        theirs = {
            f"discriminator_{name}": f"the discriminator's {name}" for name in ("loss", "grad_norm")
        }
        names = theirs | names if np.isfinite(float(metrics.get("l2", np.nan))) else names | theirs
    values = ((text, float(metrics[name])) for name, text in names.items())
    return next(((text, value) for text, value in values if not np.isfinite(value)), None)


def _averaged(run: state.TrainState) -> Any:
    return run.params if run.ema is None else run.ema


def _keep_picture(directory: epath.Path, writer: MetricWriter, number: int, picture: Image.Image):
    if jax.process_index() == 0:
        pictures.save_png(directory / "samples" / f"step_{number:07d}.png", picture)
    writer.image(number, "samples", np.asarray(picture))
