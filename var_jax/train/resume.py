"""Where a run's first state comes from: its own checkpoints, another run's, another model's
weights, or nothing."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax.linen import meta

from var_jax.config.strict import differences
from var_jax.config.train import TrainConfig
from var_jax.errors import UserError
from var_jax.io import finite, model_directory
from var_jax.io.checkpoint import Checkpoints
from var_jax.train import hosts, state
from var_jax.train.program import Program


class First(NamedTuple):
    """Attributes:
    evaluated: whether the evaluation that the state's step may ask for is done.
    fresh: whether the parameters are those of initialisation.
    """

    run: state.TrainState
    evaluated: bool = True
    fresh: bool = False


def first_state(config: TrainConfig, program: Program, checkpoints: Checkpoints) -> First:
    """The newest sound checkpoint of the run, else that of `branch_from`, else `init_from`, else
    fresh parameters.

    Raises:
      UserError: what is there, or was asked for, cannot be read or does not fit.
    """
    if checkpoints.agreed_steps():
        run, extra = checkpoints.restore(program.abstract_state())
        _require_finite(run, "the run's checkpoint")
        return First(run, extra.get("evaluated", True))
    if config.branch_from:
        trunk = Checkpoints(epath.Path(config.branch_from) / "checkpoints", keep=1)
        run = trunk.restore(program.abstract_state(), config.branch_step)[0]
        _require_finite(run, f"the checkpoint in {config.branch_from}")
        return First(run)
    if config.init_from:
        weights = _weights(config, program)
        hosts.require_same_weights("the weights of init_from", weights)
        return First(program.first_state(weights))
    return First(program.first_state(), fresh=True)


def _require_finite(run: state.TrainState, name: str):
    """Raises UserError where restored weights are not finite: every step from them would be lost.

    The counts are a program of all processes together, and the same on each.
    """
    trees = {"params": run.params, "ema": run.ema}
    counts = jax.jit(lambda tree: jax.tree.map(lambda x: jnp.sum(~jnp.isfinite(x)), tree))(trees)
    sizes = jax.tree.map(jnp.size, trees)
    pairs = zip(jax.tree_util.tree_leaves_with_path(counts), jax.tree.leaves(sizes), strict=True)
    finite.refuse(
        {_name(path): (int(bad), size) for (path, bad), size in pairs if int(bad)},
        f"{name} of step {int(run.step)}",
        "remove it, so that the one before is taken, or start anew with a lower learning rate",
    )


def _weights(config: TrainConfig, program: Program) -> Any:
    """The weights of `init_from` for this stage, on the host; another class count starts its class
    embedding afresh.

    Raises:
      UserError: a parameter of another shape than this run's, named.
    """
    model, params = model_directory.load(epath.Path(config.init_from))
    if config.stage not in params:
        raise UserError(
            f"init_from {config.init_from} has no {config.stage}; give a model directory that holds one"
        )
    theirs, ours = params[config.stage], jax.eval_shape(_unboxed_init(config), jax.random.key(0))
    if (
        config.stage == "transformer"
        and model.transformer.num_classes != config.transformer.num_classes
    ):
        fresh = jax.jit(
            lambda key: _unboxed_init(config)(key)["class_embed"],  # the rest is never computed
            out_shardings=program.replicated,
        )
        theirs["class_embed"] = np.asarray(fresh(jax.random.key(config.seed)))
    shapes = [
        {_name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (ours, theirs)
    ]
    if other := differences(*shapes):
        raise UserError(
            f"init_from {config.init_from} does not fit this run: {'; '.join(other[:5])}"
        )
    return jax.tree.map(lambda x, like: np.asarray(x).astype(like.dtype, copy=False), theirs, ours)


def _unboxed_init(config: TrainConfig):
    return lambda key: meta.unbox(state.init_params(config)(key))


def _name(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
