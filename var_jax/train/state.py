"""The training state, and how it comes to be without ever lying unsharded on one device."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from var_jax.config import require
from var_jax.models.tokenizer import Tokenizer
from var_jax.models.transformer import Transformer
from var_jax.ops import partition
from var_jax.train.config import MeshConfig, TrainConfig


@flax.struct.dataclass
class TrainState:
    """Attributes:
      step: steps done, int32.
      params: of the trained stage.
      ema: their running average, or None.
      opt_state: optax's.
    """

    step: jax.Array
    params: Any
    ema: Any
    opt_state: Any


def make_mesh(config: MeshConfig) -> Mesh:
    """The (data, model) mesh over all devices.

    Raises:
      UserError: the axes do not multiply to the number of devices.
    """
    devices = jax.device_count()
    sizes = {"data": config.data, "model": config.model}
    for axis, size in sizes.items():
        if size == -1:
            sizes[axis] = devices // int(np.prod([s for a, s in sizes.items() if a != axis]))
    require(sizes["data"] * sizes["model"] == devices, "mesh", f"{config.data} x {config.model}",
            f"of as many devices as there are, {devices}")
    # Auto: the compiler places what we do not; Linen's partitioning under scan fails with explicit axes.
    return jax.make_mesh((sizes["data"], sizes["model"]), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def init_params(config: TrainConfig) -> Callable[[jax.Array], Any]:
    """A function from a key to the stage's freshly initialised parameters, boxed with their logical axis names."""
    if config.stage == "tokenizer":
        model, inputs = Tokenizer(config.tokenizer), (jnp.zeros((1, *config.tokenizer.image_shape)),)
    else:
        t = config.transformer
        model = Transformer(t)
        later = t.scales.total - t.scales.lengths[0]
        inputs = (jnp.zeros((1, later, t.z_channels)), jnp.zeros((1,), jnp.int32))
    return lambda key: model.init(key, *inputs)["params"]


def state_shardings(config: TrainConfig, optimizer: optax.GradientTransformation, mesh: Mesh) -> tuple[Any, TrainState]:
    """(abstract state, its shardings): parameters by their logical names, the optimizer's and the average like them."""
    params = partition.shardings(jax.eval_shape(init_params(config), jax.random.key(0)), mesh)
    abstract = jax.eval_shape(lambda key: _create(config, optimizer, nn.meta.unbox(init_params(config)(key))),
                              jax.random.key(0))
    replicated = NamedSharding(mesh, PartitionSpec())
    opt_state = optax.tree_utils.tree_map_params(
        optimizer, lambda _, sharding: sharding, abstract.opt_state, params, transform_non_params=lambda _: replicated)
    shardings = TrainState(replicated, params, params if abstract.ema is not None else None, opt_state)
    return abstract, shardings


def init_state(config: TrainConfig, optimizer: optax.GradientTransformation, shardings: TrainState,
               start: Any = None) -> TrainState:
    """A state at step 0, from fresh parameters or from `start`, each device holding its part only."""
    if start is not None:
        start = jax.device_put(start, shardings.params)
        return jax.jit(lambda params: _create(config, optimizer, params), out_shardings=shardings)(start)

    def fresh(key):
        return _create(config, optimizer, nn.meta.unbox(init_params(config)(key)))

    return jax.jit(fresh, out_shardings=shardings)(jax.random.key(config.seed))


def _create(config: TrainConfig, optimizer: optax.GradientTransformation, params: Any) -> TrainState:
    ema = jax.tree.map(jnp.copy, params) if config.ema else None
    return TrainState(jnp.zeros((), jnp.int32), params, ema, optimizer.init(params))
