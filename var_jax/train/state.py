"""The training state, and how it comes to be without ever lying unsharded on one device."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from var_jax.config import require
from var_jax.models.tokenizer import Tokenizer
from var_jax.models.transformer import Transformer
from var_jax.ops import codebook, partition
from var_jax.train.config import MeshConfig, TrainConfig
from var_jax.train.critic import make_critic
from var_jax.train.networks import Networks
from var_jax.train.optimizer import Optimizers

GPU_PLATFORMS = ("gpu", "cuda", "rocm")
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
      usage: float32 (K, V), running share of each code's uses at each scale (`ops.codebook.revive`); None in a run
        without revival.
    """

    step: jax.Array
    params: Any
    ema: Any
    opt_state: Any
    discriminator: DiscriminatorState | None = None
    usage: jax.Array | None = None


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The (data, model) mesh over all devices; of several slices or hosts of GPUs, the data axis goes between them.

    Args:
      devices: by default all there are; those of a topology description may be compiled for without being there.
    Raises:
      UserError: the axes do not multiply to the number of devices, or the slices are not as many as the config says.
    """
    devices = jax.devices() if devices is None else list(devices)
    data, model = axis_sizes(config, len(devices))
    require(data * model == len(devices), "mesh", f"{config.data} x {config.model}",
            f"of as many devices as there are, {len(devices)}")
    # Auto: the compiler places what we do not; Linen's partitioning under scan fails with explicit axes.
    return Mesh(_arranged(config.slices, data, model, devices), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def axis_sizes(config: MeshConfig, devices: int) -> tuple[int, int]:
    """Returns (data, model) for a number of devices, with -1 replaced by what is left, rounded down."""
    if config.data == -1:
        return devices // config.model, config.model
    return config.data, devices // config.data if config.model == -1 else config.model


def _arranged(slices: int, data: int, model: int, devices: Sequence[jax.Device]) -> np.ndarray:
    """Devices as (data, model), neighbours on an axis near each other in the network."""
    if devices[0].platform in GPU_PLATFORMS:
        return _arranged_by_host(slices, data, model, devices)
    found = len({getattr(device, "slice_index", None) for device in devices})
    if slices == found == 1:
        return mesh_utils.create_device_mesh((data, model), devices, allow_split_physical_axes=True)
    # Where the backend knows no slices (CPU, GPU), a slice is what one process holds.
    by_process = found == 1
    found = len({device.process_index for device in devices}) if by_process else found
    require(slices == found, "mesh.slices", slices, f"the number of slices there are, {found}")
    require(data % slices == 0, "mesh.data", data, f"a multiple of mesh.slices {slices}")
    return mesh_utils.create_hybrid_device_mesh((data // slices, model), (slices, 1), devices,
                                                process_is_granule=by_process, allow_split_physical_axes=True)


def _arranged_by_host(slices: int, data: int, model: int, devices: Sequence[jax.Device]) -> np.ndarray:
    """GPUs as (data, model), those of a host next to each other, along the model axis first.

    JAX numbers the hosts of GPUs (by boot id) as it does TPU slices, whether a process has one GPU or all of a host.
    """
    hosts = len({_slice_of(device) for device in devices})
    require(slices in (1, hosts), "mesh.slices", slices, f"1, or the number of hosts with GPUs, {hosts}")
    ordered = sorted(devices, key=lambda device: (_slice_of(device), device.process_index, device.id))
    return np.array(ordered, dtype=object).reshape(data, model)


def _slice_of(device: jax.Device) -> int:
    """The host of a GPU; where JAX does not number hosts, the process, which then has all GPUs of its host."""
    number = getattr(device, "slice_index", None)
    return device.process_index if number is None else number


def host_rows(rows: NamedSharding, batch_size: int) -> np.ndarray:
    """The positions in a batch, ascending, that this process's devices hold when it lies in a sharding.

    Neighbouring devices of a mesh may belong to several processes, and where the model axis goes over processes, they
    hold the same rows: what a process loads follows from the mesh, not from its index.
    """
    places = np.arange(batch_size)
    held = rows.addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([places[index] for index in held]))


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
            return optax.tree_utils.tree_map_params(optimizer, lambda _, sharding: sharding, opt_state, params,
                                                    transform_non_params=lambda _: replicated)

        params = partition.shardings(jax.eval_shape(init_params(config), key), mesh)
        opt_state = of_optimizer(optimizers.trained, self.abstract.opt_state, params)
        self.shardings = jax.tree.map(lambda _: replicated, self.abstract).replace(
            params=params, ema=params if config.ema else None, opt_state=opt_state)
        if self._critic is not None:
            held = self.abstract.discriminator
            critic = partition.shardings(jax.eval_shape(self._critic.init, key)["params"], mesh)
            self.shardings = self.shardings.replace(discriminator=self.shardings.discriminator.replace(
                params=critic, opt_state=of_optimizer(optimizers.discriminator, held.opt_state, critic)))

    def first_state(self, start: Any = None) -> TrainState:
        """A state at step 0, from fresh parameters or from `start`, each device holding its part only."""
        key = jax.random.key(self._config.seed)
        if start is None:
            return jax.jit(self._fresh, out_shardings=self.shardings)(key)
        start = partition.place(start, self.shardings.params)
        return jax.jit(self._from, out_shardings=self.shardings, donate_argnums=0)(start, key)

    def _fresh(self, key: jax.Array) -> TrainState:
        return self._from(nn.meta.unbox(init_params(self._config)(key)), key)

    def _from(self, params: Any, key: jax.Array) -> TrainState:
        config = self._config
        ema = jax.tree.map(jnp.copy, params) if config.ema else None
        tokenizer = config.tokenizer
        usage = codebook.first_usage(len(tokenizer.scales), tokenizer.vocab_size) if config.revives else None
        discriminator = None
        if self._critic is not None:
            made = nn.meta.unbox(self._critic.init(jax.random.fold_in(key, DISCRIMINATOR)))
            opt_state = self._optimizers.discriminator.init(made["params"])
            discriminator = DiscriminatorState(made["params"], opt_state, made["spectral"], jnp.zeros(2),
                                               jnp.zeros((), jnp.int32))
        return TrainState(jnp.zeros((), jnp.int32), params, ema, self._optimizers.trained.init(params), discriminator,
                          usage)
