"""Creates a run's state sharded, so that it is never complete on one device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from var_jax.devices import cpu_compiler, sharding
from var_jax.objectives.base import Objective
from var_jax.objectives.step_types import TRAINED, TrainState
from var_jax.train import spikes


class StateFactory:
    """The state of an objective's run: its shapes, its shardings, and its value at step 0.

    Attributes:
      abstract: the state's shapes and dtypes.
      shardings: the state's shardings; those of parameters follow their logical names, and those of
        the optimizers and the average follow the parameters.
    """

    def __init__(
        self,
        objective: Objective[Any],
        optimizers: Mapping[str, optax.GradientTransformation],
        mesh: Mesh,
    ):
        self._objective, self._optimizers = objective, optimizers
        self._key = jax.random.key(objective.config.seed)
        self._replicated = NamedSharding(mesh, PartitionSpec())
        self._options = cpu_compiler.options_of_run_once(mesh)
        key = jax.random.key(0)
        self.abstract = jax.eval_shape(self._fresh, key)

        params = sharding.shardings(jax.eval_shape(objective.init, key), mesh)
        self.shardings = jax.tree.map(lambda _: self._replicated, self.abstract).replace(
            params=params,
            ema=params if objective.config.ema else None,
            opt_state=self._of_optimizer(TRAINED, self.abstract.opt_state, params),
        )
        networks = jax.eval_shape(objective.further_networks, key)
        for name, boxed in networks.items():
            params = sharding.shardings(boxed, mesh)
            opt_state = self._of_optimizer(name, getattr(self.abstract, name).opt_state, params)
            placed = getattr(self.shardings, name).replace(params=params, opt_state=opt_state)
            self.shardings = self.shardings.replace(**{name: placed})

    def first_state(self, start: Any = None) -> TrainState:
        """Returns a sharded state at step 0, from fresh parameters or from `start`."""
        if start is None:
            jitted = jax.jit(
                self._fresh, out_shardings=self.shardings, compiler_options=self._options
            )
            return jitted(self._key)
        start = sharding.place(start, self.shardings.params)
        jitted = jax.jit(
            self._from_params,
            out_shardings=self.shardings,
            donate_argnums=0,
            compiler_options=self._options,
        )
        return jitted(start, self._key)

    def _of_optimizer(self, name: str, opt_state: Any, params: Any) -> Any:
        """Returns the shardings of an optimizer's state, from those of its parameters."""

        def is_masked(node: Any) -> bool:  # in place of a parameter that is not trained
            return isinstance(node, optax.MaskedNode)

        return optax.tree_utils.tree_map_params(
            self._optimizers[name],
            lambda leaf, sharding: leaf if is_masked(leaf) else sharding,
            opt_state,
            params,
            transform_non_params=lambda _: self._replicated,
            is_leaf=is_masked,
        )

    def _fresh(self, key: jax.Array) -> TrainState:
        return self._from_params(nn.meta.unbox(self._objective.init(key)), key)

    def _from_params(self, params: Any, key: jax.Array) -> TrainState:
        state = TrainState(
            jnp.zeros((), jnp.int32),
            params,
            jax.tree.map(jnp.copy, params) if self._objective.config.ema else None,
            self._optimizers[TRAINED].init(params),
        )
        state = self._objective.first_state(state, key, self._optimizers)
        return state.replace(spikes=spikes.first_window(self._objective.config.optimizer))
