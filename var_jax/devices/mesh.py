"""The mesh over all devices, and the rows of a batch that a process holds."""

from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding

from var_jax.config.strict import require
from var_jax.config.train import MeshConfig

GPU_PLATFORMS = ("gpu", "cuda", "rocm")


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns the (data, model) mesh over all devices, or (replica, data, model) with replicas.

    The first axis divides the config's data axis into groups of neighbors. With several slices, or
    several hosts of GPUs, the data axis goes between them.

    Args:
      devices: the devices, by default all of this run; devices of a topology description serve for
        compiling for a slice that is not attached.
    Raises:
      UserError: the axes do not multiply to the number of devices, or the number of slices is not
        the config's.
    """
    devices = jax.devices() if devices is None else list(devices)
    data, model = axis_sizes(config, len(devices))
    require(
        data * model == len(devices),
        "mesh",
        f"{config.data} x {config.model}",
        f"of as many devices as there are, {len(devices)}",
    )
    replicas = max(config.replicas, 1)
    require(data % replicas == 0, "mesh.replicas", replicas, f"a divisor of the data axis, {data}")
    arranged, names = _arrange(config.slices, data, model, devices), ("data", "model")
    if replicas > 1:
        arranged = arranged.reshape(replicas, data // replicas, model)
        names = ("replica", *names)
    # Auto: the compiler places unconstrained arrays; Linen's partitioning under scan fails with
    # explicit axes.
    return Mesh(arranged, names, axis_types=(AxisType.Auto,) * len(names))


def axis_sizes(config: MeshConfig, devices: int) -> tuple[int, int]:
    """Returns (data, model) for a number of devices; replicas are parts of `data`.

    An axis of -1 takes the devices that the other axis leaves, rounded down.
    """
    if config.data == -1:
        return devices // config.model, config.model
    return config.data, devices // config.data if config.model == -1 else config.model


def _arrange(slices: int, data: int, model: int, devices: Sequence[jax.Device]) -> np.ndarray:
    """Returns devices as (data, model), neighbors on an axis near each other in the network."""
    if devices[0].platform in GPU_PLATFORMS:
        return _arrange_by_host(slices, data, model, devices)
    num_slices = len({getattr(device, "slice_index", None) for device in devices})
    if slices == num_slices == 1:
        return mesh_utils.create_device_mesh((data, model), devices, allow_split_physical_axes=True)
    # If the backend knows no slices (CPU, GPU), the devices of one process count as a slice.
    by_process = num_slices == 1
    if by_process:
        num_slices = len({device.process_index for device in devices})
    require(
        slices == num_slices, "mesh.slices", slices, f"the number of slices there are, {num_slices}"
    )
    require(data % slices == 0, "mesh.data", data, f"a multiple of mesh.slices {slices}")
    return mesh_utils.create_hybrid_device_mesh(
        (data // slices, model),
        (slices, 1),
        devices,
        process_is_granule=by_process,
        allow_split_physical_axes=True,
    )


def _arrange_by_host(
    slices: int, data: int, model: int, devices: Sequence[jax.Device]
) -> np.ndarray:
    """Returns GPUs as (data, model), with a host's next to each other, along the model axis first.

    JAX numbers the hosts of GPUs (by boot id) as it does TPU slices, whether a process has one GPU
    or all of a host.
    """
    hosts = len({_host_index(device) for device in devices})
    require(
        slices in (1, hosts), "mesh.slices", slices, f"1, or the number of hosts with GPUs, {hosts}"
    )
    ordered = sorted(
        devices, key=lambda device: (_host_index(device), device.process_index, device.id)
    )
    return np.array(ordered, dtype=object).reshape(data, model)


def _host_index(device: jax.Device) -> int:
    """Returns the index of a GPU's host.

    If JAX does not number hosts, it is the index of the process, which then has all GPUs of its
    host.
    """
    slice_index = getattr(device, "slice_index", None)
    return device.process_index if slice_index is None else slice_index


def host_rows(sharding: NamedSharding, batch_size: int) -> np.ndarray:
    """Returns the rows of a batch, ascending, that this process's devices hold.

    The mesh determines the rows that a process loads, not the process's index: neighboring devices
    of a mesh may belong to several processes, and processes along the model axis hold the same
    rows.

    Args:
      sharding: the sharding of the batch's rows over the devices.
    """
    all_rows = np.arange(batch_size)
    slices = sharding.addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([all_rows[index] for index in slices]))
