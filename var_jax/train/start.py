"""Where a run's first state comes from: its own checkpoints, another run's, another model's weights, or nothing."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from etils import epath
from flax.linen import meta

from var_jax import model_directory
from var_jax.checkpoint import Checkpoints
from var_jax.config import differences
from var_jax.errors import UserError
from var_jax.train import state
from var_jax.train.config import TrainConfig


def first_state(config: TrainConfig, optimizer: optax.GradientTransformation, checkpoints: Checkpoints,
                abstract: state.TrainState, shardings: state.TrainState) -> tuple[state.TrainState, bool]:
    """The newest sound checkpoint of the run, else that of `branch_from`, else `init_from`, else fresh parameters.

    Returns:
      the state, and whether the evaluation that its step may ask for is done.
    Raises:
      UserError: what is there, or was asked for, cannot be read or does not fit.
    """
    targets = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings)
    if checkpoints.latest_step() is not None:
        run, extra = checkpoints.restore(targets)
        return run, extra.get("evaluated", True)
    if config.branch_from:
        trunk = Checkpoints(epath.Path(config.branch_from) / "checkpoints", keep=1)
        return trunk.restore(targets, config.branch_step)[0], True
    return state.init_state(config, optimizer, shardings, _weights(config) if config.init_from else None), True


def _weights(config: TrainConfig) -> Any:
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
