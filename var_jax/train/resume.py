"""A run's first state: from its own checkpoints, another run's, a model's weights, or fresh."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from var_jax.config.model import ModelConfig
from var_jax.config.strict import differences, plain
from var_jax.devices import multihost
from var_jax.errors import UserError
from var_jax.io import finite, hub_download, model_directory
from var_jax.io.checkpoint import Checkpoints
from var_jax.models import position_tables
from var_jax.objectives import decoder_alignment
from var_jax.objectives.base import Objective
from var_jax.objectives.step_types import TrainState
from var_jax.train import host_agreement
from var_jax.train.program import Program

log = logging.getLogger(__name__)

# Keys of a model's section that determine what its weights compute, whatever their shapes.
MEANING = ("objective", "heads")
# Keys that may determine the shapes of its parameters; which of them do depends on the objective.
SIZES = (
    "depth",
    "width",
    "vocab_size",
    "z_channels",
    "in_channels",
    "channels",
    "multipliers",
    "blocks",
)
OF_TOKENIZER = ("vocab_size", "z_channels")  # those that a transformer takes from its tokenizer


class RestoredRun(NamedTuple):
    """A run that begins or is resumed.

    Attributes:
      state: the state that its first step takes.
      evaluated: whether the evaluation that may be due at the state's step is done.
      fresh: whether no step was done before, so that what the data determine is still open.
    """

    state: TrainState
    evaluated: bool = True
    fresh: bool = False


def first_state(
    objective: Objective[Any], program: Program, checkpoints: Checkpoints
) -> RestoredRun:
    """Returns the state that a run starts from.

    It is the newest sound checkpoint of the run, else that of `branch_from`, else `init_from`, else
    fresh parameters.

    Raises:
      UserError: a checkpoint, or the weights of `init_from`, cannot be read or do not fit.
    """
    config = objective.config
    if checkpoints.agreed_steps():
        state, extra = checkpoints.restore(program.abstract_state())
        _require_finite(state, "the run's checkpoint")
        _require_same_tokens(objective, program, state, "the run's checkpoint")
        return RestoredRun(state, extra.get("evaluated", True))
    if config.branch_from:
        return RestoredRun(branched_state(objective, program))
    if config.init_from:
        weights = initial_weights(objective, program)
        host_agreement.require_same_weights("the weights of init_from", weights)
        return RestoredRun(program.first_state(weights), fresh=True)
    return RestoredRun(program.first_state(), fresh=True)


def branched_state(objective: Objective[Any], program: Program) -> TrainState:
    """Returns the state of `branch_from` after `branch_step` steps.

    Raises:
      UserError: there is no such checkpoint, it does not fit the run, or it is not finite.
    """
    config = objective.config
    trunk = Checkpoints(epath.Path(config.branch_from) / "checkpoints", keep=1)
    state = trunk.restore(program.abstract_state(), config.branch_step)[0]
    _require_finite(state, f"the checkpoint in {config.branch_from}")
    _require_same_tokens(objective, program, state, f"branch_from {config.branch_from}")
    return state


def _require_same_tokens(objective: Objective[Any], program: Program, run: TrainState, start: str):
    """Raises UserError if a run goes on with generated tokens of another encoder or other codes.

    Args:
      start: what the state is of, for the message.
    """
    if decoder_alignment.BATCH_KEY not in objective.batch_shapes():
        return
    config = objective.config
    gathered = jax.jit(lambda tree: tree, out_shardings=program.replicated)(run.params)
    params = jax.tree.map(np.asarray, gathered)
    decoder_alignment.require_same_tokens(config, start, config.tokenizer, params)


def _require_finite(run: TrainState, name: str):
    """Raises UserError if restored weights are not finite: every step from them would be lost.

    All processes compute the counts together, and get the same ones.
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


def initial_weights(objective: Objective[Any], program: Program) -> Any:
    """Returns the weights of `init_from` for the trained model, on the host.

    Raises:
      UserError: a parameter of another shape than this run's, named.
    """
    config, part = objective.config, objective.section
    here, directory = objective.model, config.init_from

    def read() -> tuple[ModelConfig, Any]:
        model, params = model_directory.load(hub_download.model_place(directory))
        if part not in params:
            raise UserError(
                f"init_from {directory} has no {part}; give a model directory that holds one"
            )
        if other := _other_keys(MEANING, here, getattr(model, part), part):
            raise _misfit(directory, list(other.values()), [])
        return model, params[part]

    model, params = multihost.run_on_all(read)
    there = getattr(model, part)
    weights = objective.adapt_weights(model, params, program.replicated)
    expected = program.abstract.params
    if shapes := differences(_shapes(expected), _shapes(weights)):
        other = _other_keys(SIZES, here, there, part)
        followed = [] if part == "tokenizer" else [name for name in OF_TOKENIZER if name in other]
        raise _misfit(directory, list(other.values()) or shapes[:5], followed)
    if (before := _maps(there)) != (after := _maps(here)):
        kind = "resized" if there.scales != here.scales else "reordered"
        log.info(
            "init_from %s has scales %s, and this run %s: %s",
            directory,
            before,
            after,
            _what_was_changed(params, weights, kind),
        )
    return jax.tree.map(
        lambda x, like: np.asarray(x).astype(like.dtype, copy=False), weights, expected
    )


def _other_keys(names: Sequence[str], here: Any, there: Any, section: str) -> dict[str, str]:
    """Returns the difference in words of each key that two models' sections do not agree in."""
    own, others = (
        {name: plain(getattr(model, name)) for name in names if hasattr(model, name)}
        for model in (here, there)
    )
    return {
        name: text
        for name in own
        for text in differences(own[name], others[name], f"{section}.{name}")
    }


def _misfit(directory: str, other: Sequence[str], followed: Sequence[str]) -> UserError:
    """Returns the error for the weights of another model than a run's.

    Args:
      other: the differences in words.
      followed: the keys among them that the run's tokenizer determines.
    """
    remedy = "set these keys to the model's"
    if followed:
        remedy = f"a tokenizer_dir whose tokenizer has the model's {' and '.join(followed)}"
    return UserError(
        f"init_from {directory} does not fit this run: {'; '.join(other)}; give a model of the "
        f"run's sizes, or {remedy}"
    )


def _maps(config: Any) -> str:
    """Returns what a model's tables of positions depend on: scales, and the order of a sequence."""
    is_ordered = getattr(config, "objective", "") == "next_token"
    return f"{config.scales} in order {config.order:.40}" if is_ordered else str(config.scales)


def _what_was_changed(before: Mapping[str, Any], after: Mapping[str, Any], kind: str) -> str:
    """Returns, in a few words, which embeddings serve other token maps than they were trained on.

    Args:
      kind: the change of those, "resized" or "reordered".
    """
    names = [name for name in position_tables.TABLES if name in after]
    changed = [name for name in names if not np.array_equal(before[name], after[name])]
    return f"{', '.join(changed)} {kind}" if changed else "no parameter depends on them"


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {_name(path): leaf.shape for path, leaf in leaves}


def _name(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
