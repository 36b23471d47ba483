"""The training state, and how it comes to be without ever lying unsharded on one device."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from var_jax.config.train import TrainConfig
from var_jax.devices import sharding
from var_jax.models.tokenizer import Tokenizer
from var_jax.models.transformer import Transformer
from var_jax.objectives.critic import make_critic
from var_jax.objectives.frozen_networks import Networks
from var_jax.ops import codebook
from var_jax.train.optimizer import Optimizers

DISCRIMINATOR = 2**32 - 1  # its key of initialisation is the run's with this number folded in


@flax.struct.dataclass
class DiscriminatorState:
    """Attributes:
    params, opt_state: its own; they rest until adversarial training begins.
    spectral: power iteration's vectors (`models.discriminator`).
    averages: float32 (2,), running means of the logits of real images and of fakes, for LeCam.
    updates: steps done by it, int32.
    """

    params: Any
    opt_state: Any
    spectral: Any
    averages: jax.Array
    updates: jax.Array


@flax.struct.dataclass
class TrainState:
    """Attributes:
    step: steps done, int32.
    params: of the trained stage.
    ema: their running average, or None.
    opt_state: optax's.
    discriminator: None in a run without one.
    usage: float32 (K, V), running share of each code's uses at each scale (`ops.codebook.revive`);
      None in a run without revival.
    """

    step: jax.Array
    params: Any
    ema: Any
    opt_state: Any
    discriminator: DiscriminatorState | None = None
    usage: jax.Array | None = None


def init_params(config: TrainConfig) -> Callable[[jax.Array], Any]:
    """A function from a key to the stage's freshly initialised parameters, boxed with their logical
    axis names."""
    if config.stage == "tokenizer":
        model, inputs = (
            Tokenizer(config.tokenizer),
            (jnp.zeros((1, *config.tokenizer.image_shape)),),
        )
    else:
        t = config.transformer
        model = Transformer(t)
        later = t.scales.total - t.scales.lengths[0]
        inputs = (jnp.zeros((1, later, t.z_channels)), jnp.zeros((1,), jnp.int32))
    return lambda key: model.init(key, *inputs)["params"]


class Creation:
    """How a run's state comes to be: its shapes, its shardings, and the state at step 0.

    Attributes:
      abstract: the state's shapes and dtypes.
      shardings: parameters by their logical names, the optimizers' and the average like them.
    """

    def __init__(self, config: TrainConfig, optimizers: Optimizers, networks: Networks, mesh: Mesh):
        self._config, self._optimizers = config, optimizers
        self._critic = make_critic(config, networks)
        key = jax.random.key(0)
        self.abstract = jax.eval_shape(self._fresh, key)
        replicated = NamedSharding(mesh, PartitionSpec())

        def of_optimizer(optimizer, opt_state, params):
            return optax.tree_utils.tree_map_params(
                optimizer,
                lambda _, sharding: sharding,
                opt_state,
                params,
                transform_non_params=lambda _: replicated,
            )

        params = sharding.shardings(jax.eval_shape(init_params(config), key), mesh)
        opt_state = of_optimizer(optimizers.trained, self.abstract.opt_state, params)
        self.shardings = jax.tree.map(lambda _: replicated, self.abstract).replace(
            params=params, ema=params if config.ema else None, opt_state=opt_state
        )
        if self._critic is not None:
            held = self.abstract.discriminator
            critic = sharding.shardings(jax.eval_shape(self._critic.init, key)["params"], mesh)
            self.shardings = self.shardings.replace(
                discriminator=self.shardings.discriminator.replace(
                    params=critic,
                    opt_state=of_optimizer(optimizers.discriminator, held.opt_state, critic),
                )
            )

    def first_state(self, start: Any = None) -> TrainState:
        """A state at step 0, from fresh parameters or from `start`, each device holding its part
        only."""
        key = jax.random.key(self._config.seed)
        if start is None:
            return jax.jit(self._fresh, out_shardings=self.shardings)(key)
        start = sharding.place(start, self.shardings.params)
        return jax.jit(self._from, out_shardings=self.shardings, donate_argnums=0)(start, key)

    def _fresh(self, key: jax.Array) -> TrainState:
        return self._from(nn.meta.unbox(init_params(self._config)(key)), key)

    def _from(self, params: Any, key: jax.Array) -> TrainState:
        config = self._config
        ema = jax.tree.map(jnp.copy, params) if config.ema else None
        tokenizer = config.tokenizer
        usage = (
            codebook.first_usage(len(tokenizer.scales), tokenizer.vocab_size)
            if config.revives
            else None
        )
        discriminator = None
        if self._critic is not None:
            made = nn.meta.unbox(self._critic.init(jax.random.fold_in(key, DISCRIMINATOR)))
            opt_state = self._optimizers.discriminator.init(made["params"])
            discriminator = DiscriminatorState(
                made["params"], opt_state, made["spectral"], jnp.zeros(2), jnp.zeros((), jnp.int32)
            )
        return TrainState(
            jnp.zeros((), jnp.int32),
            params,
            ema,
            self._optimizers.trained.init(params),
            discriminator,
            usage,
        )
