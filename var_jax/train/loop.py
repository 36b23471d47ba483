"""The training loop of every objective: devices, data, resuming, steps.

Resume order: the newest readable checkpoint of the workdir, else `branch_from`, else `init_from`,
else fresh parameters.
"""

import sys
from collections import deque
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec
from PIL import Image

from var_jax.config import idle_keys
from var_jax.config.strict import plain
from var_jax.config.train import TrainConfig
from var_jax.devices import multihost, sharding
from var_jax.devices.preemption import Preemption, StopRequested
from var_jax.errors import Preempted, RunFailed
from var_jax.io import pictures, storage_messages
from var_jax.io.checkpoint import Checkpoints
from var_jax.objectives.base import Objective
from var_jax.objectives.step_types import TrainState
from var_jax.train import (
    evaluation,
    host_agreement,
    mesh_choice,
    resolve,
    resume,
    saved_step,
    spikes,
    terminal_messages,
    wandb_board,
    workdir,
)
from var_jax.train.batches import Inputs, read_kept
from var_jax.train.goodput import Goodput
from var_jax.train.optimizer import learning_rates
from var_jax.train.program import Program
from var_jax.train.progress import MetricWriter
from var_jax.train.throughput import Profile, Throughput

UNREAD_STEPS = 1  # steps dispatched while the one before is still running


class Diverged(RunFailed):
    """The loss or gradient of a step is not finite.

    The message names the step and the last good checkpoint.
    """


def train(
    config: TrainConfig,
    directory: epath.PathLike,
    profile: tuple[int, int] | None = None,
    *,
    started: float | None = None,
    command: str | None = None,
    executable: epath.PathLike | None = None,
) -> dict[str, Any]:
    """Trains one stage to `config.steps` in a workdir, and resumes a run that is there.

    Args:
      directory: the workdir.
      profile: first step and number of steps to trace.
      started: when this start of the run began, in seconds since 1970; by default now.
      command: the command line that trains, for the record in meta.json.
      executable: file of the compiled step (`saved_step`), in place of compiling it.
    Returns:
      the last evaluation's metrics.
    Raises:
      UserError: settings, data or workdir are wrong.
      Diverged: a loss is not finite; no checkpoint is written from such a step.
      Preempted: SIGTERM came; the run is saved.
    """
    directory = epath.Path(directory)
    idle_keys.refuse(config, workdir.started_with(directory))
    workdir.require_newest_start()

    # Objective: frozen networks are read first, since they determine sizes and the loss's terms. A
    # network that a host lacks, or its data, may have changed its config.
    with Goodput(started) as goodput:
        host_agreement.require_same_config(config)
        project = config.wandb_project if jax.process_index() == 0 else ""
        multihost.run_on_all(lambda: wandb_board.require_package(project))
        objective = multihost.run_on_all(lambda: resolve.open_objective(config, directory))
        host_agreement.require_same_config(objective.config)
        host_agreement.require_same_weights("the frozen networks", objective.frozen)
        return _train(objective, directory, profile, goodput, command, executable=executable)


def _train(
    objective: Objective[Any],
    directory: epath.Path,
    profile: tuple[int, int] | None,
    goodput: Goodput,
    command: str | None,
    *,
    executable: epath.PathLike | None,
) -> dict[str, Any]:
    """Trains an objective whose config is resolved; see `train`."""
    config = objective.config

    # Devices
    mesh = mesh_choice.choose(objective).mesh
    rows, replicated = sharding.batch_sharding(mesh), NamedSharding(mesh, PartitionSpec())

    with jax.set_mesh(mesh), Preemption(mesh) as preemption, storage_messages.silenced():
        frozen = objective.step_frozen()
        frozen = sharding.place(frozen, objective.frozen_shardings(frozen, mesh))
        program = Program(objective, mesh)
        if executable is not None:
            multihost.run_on_all(lambda: saved_step.load(executable, program, frozen))

        # Data, opened before the workdir is touched: a missing directory leaves nothing behind
        data = multihost.run_on_all(lambda: Inputs(objective, frozen, rows, read_kept(directory)))
        data.require_same_on_hosts()
        objective.check_data(data.class_names)
        evaluator = evaluation.Evaluator(objective, frozen, data, replicated, preemption)

        # Resuming; the workdir becomes this run's once all checks have passed
        workdir.refuse_another_run(directory, config)
        data.require_same(directory)
        checkpoints = Checkpoints(
            directory / "checkpoints", config.keep_checkpoints, config.keep_steps
        )
        run, evaluated, fresh = resume.first_state(objective, program, checkpoints)
        first = int(run.step)
        if fresh:
            run = objective.initialize_from_data(
                run, data.train_on_devices, program.shardings, replicated
            )
        batches = data.train(start_step=first)
        workdir.claim(directory, objective, command)
        data.note(directory)
        writer = multihost.run_on_all(
            lambda: MetricWriter(
                directory,
                steps=config.steps,
                resume_step=first,
                goodput=goodput,
                wandb_config=plain(config) if config.wandb_project else None,
                enabled=jax.process_index() == 0,
            )
        )
        if jax.process_index() == 0:
            terminal_messages.log_data(objective, data)
            terminal_messages.log_chosen_settings(objective, program.objective)
            params = program.abstract.params
            line = terminal_messages.opening_line(
                objective, data.identity, params, directory, first
            )
            print(line, file=sys.stderr, flush=True)

        # Steps: each is dispatched before the one before it is read
        rates_after = learning_rates(objective)
        throughput = Throughput(objective, first)
        trace = Profile(directory, profile, config.steps, first)
        unread: deque[tuple[int, Any, Any]] = deque()
        held_out: dict[str, Any] = {}
        skipped = spikes.skipped_steps(run)

        def read(left: int) -> bool:
            """Waits for all dispatched steps except the last `left`, and logs them.

            Returns:
              whether any host was asked to stop.

            Raises:
              Diverged: a loss or gradient is not finite.
            """
            nonlocal skipped
            stop = False
            while len(unread) > left:
                number, metrics, vote = unread.popleft()
                if wrong := objective.not_finite(metrics):
                    checkpoints.wait()
                    saved = checkpoints.latest_step()
                    name, value = wrong
                    last_good = (
                        "there is no checkpoint yet"
                        if saved is None
                        else f"the last checkpoint is of step {saved}"
                    )
                    raise Diverged(f"{name} of step {number} is {value}; {last_good}")
                stop |= bool(vote)
                skipped_before, skipped = skipped, int(metrics.get(spikes.METRIC, 0))
                if skipped > skipped_before:
                    writer.skipped(number, metrics, skipped)
                writer.advance(number, float(metrics["loss"]))
                if number % config.log_every == 0 or number == config.steps:
                    rates = throughput.report(number)
                    values = jax.tree.map(np.asarray, metrics)
                    learning = rates_after(number - 1, skipped_before)
                    writer.write(number, "train", {**values, **learning, **rates})
                    writer.progress(number, float(values["loss"]), rates["images_per_s"])
            return stop

        def save(number: int, *, to_evaluate: bool):
            goodput.saved(number)
            with goodput.measure("checkpoints"):
                writer.flush()
                extra = {"config": plain(config), "evaluated": not to_evaluate}
                checkpoints.save(number, run, extra)
                objective.write_model(directory, lambda: evaluator.gather(_averaged(run)))

        def stop_after(number: int):
            goodput.enter("checkpoints")
            checkpoints.wait()
            writer.close("preempted")
            raise Preempted(
                f"stopped by SIGTERM after step {number} of {config.steps}, everything saved; "
                "the same command goes on"
            )

        def evaluate(number: int, *, saved: bool) -> dict[str, Any]:
            """Returns the held-out metrics of the state, which are logged and shown.

            A resumed run makes up for an evaluation that a stop or a kill cut off.
            """
            try:
                writer.evaluating(number)
                with throughput.paused(), goodput.measure("evaluation"):
                    metrics = evaluator.metrics(_averaged(run))
                    writer.write(number, "val", metrics)
                    _keep_picture(directory, writer, number, evaluator.picture(_averaged(run)))
            except StopRequested:
                if not saved:
                    save(number, to_evaluate=True)
                stop_after(number)
            if saved:
                with goodput.measure("checkpoints"):
                    writer.flush()  # a noted evaluation is not repeated
                    checkpoints.note_loss(number, metrics["loss"])
            return metrics

        goodput.enter("steps")
        try:
            if not evaluated:
                held_out = evaluate(first, saved=True)
            for number in range(first + 1, config.steps + 1):
                vote = preemption.vote()
                trace.before(number)
                with goodput.measure("data"):
                    batch = next(batches)
                run, metrics = program.step(number - 1)(run, data.on_devices(batch), frozen)
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
                    save(number, to_evaluate=to_evaluate)
                if stop:
                    stop_after(number)
                if to_evaluate:
                    held_out = evaluate(number, saved=to_save)
            with goodput.measure("checkpoints"):
                checkpoints.wait()
            # Every step was done before; the result is still the last evaluation.
            if not held_out:
                with goodput.measure("evaluation"):
                    held_out = evaluator.metrics(_averaged(run))
            goodput.enter("checkpoints")
            writer.close("done")
        except StopRequested:
            stop_after(config.steps)
        except Preempted:
            raise
        except Diverged as error:
            writer.close("failed", diverged=str(error))
            raise
        except BaseException:
            writer.close("failed")
            raise
        finally:
            trace.close()
            checkpoints.close()
    return held_out


def _averaged(run: TrainState) -> Any:
    return run.params if run.ema is None else run.ema


def _keep_picture(
    directory: epath.Path, writer: MetricWriter, number: int, picture: Image.Image | None
):
    if picture is None:
        return
    if jax.process_index() == 0:
        pictures.save_png(directory / "samples" / f"step_{number:07d}.png", picture)
    writer.image(number, "samples", np.asarray(picture))
