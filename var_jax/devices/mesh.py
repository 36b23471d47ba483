"""The (data, model) mesh over all devices, and the rows of a batch that a process holds."""

from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding

from var_jax.config.strict import require
from var_jax.config.train import MeshConfig

GPU_PLATFORMS = ("gpu", "cuda", "rocm")


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The (data, model) mesh over all devices; of several slices or hosts of GPUs, the data axis
    goes between them.

    Args:
      devices: by default all there are; those of a topology description may be compiled for without
        being there.
    Raises:
      UserError: the axes do not multiply to the number of devices, or the slices are not as many as
        the config says.
    """
    devices = jax.devices() if devices is None else list(devices)
    data, model = axis_sizes(config, len(devices))
    require(
        data * model == len(devices),
        "mesh",
        f"{config.data} x {config.model}",
        f"of as many devices as there are, {len(devices)}",
    )
    # Auto: the compiler places what we do not; Linen's partitioning under scan fails with explicit
    # axes.
    return Mesh(
        _arranged(config.slices, data, model, devices),
        ("data", "model"),
        axis_types=(AxisType.Auto,) * 2,
    )


def axis_sizes(config: MeshConfig, devices: int) -> tuple[int, int]:
    """Returns (data, model) for a number of devices, with -1 replaced by what is left, rounded
    down."""
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
    return mesh_utils.create_hybrid_device_mesh(
        (data // slices, model),
        (slices, 1),
        devices,
        process_is_granule=by_process,
        allow_split_physical_axes=True,
    )


def _arranged_by_host(
    slices: int, data: int, model: int, devices: Sequence[jax.Device]
) -> np.ndarray:
    """GPUs as (data, model), those of a host next to each other, along the model axis first.

    JAX numbers the hosts of GPUs (by boot id) as it does TPU slices, whether a process has one GPU
    or all of a host.
    """
    hosts = len({_slice_of(device) for device in devices})
    require(
        slices in (1, hosts), "mesh.slices", slices, f"1, or the number of hosts with GPUs, {hosts}"
    )
    ordered = sorted(
        devices, key=lambda device: (_slice_of(device), device.process_index, device.id)
    )
    return np.array(ordered, dtype=object).reshape(data, model)


def _slice_of(device: jax.Device) -> int:
    """The host of a GPU; where JAX does not number hosts, the process, which then has all GPUs of
    its host."""
    number = getattr(device, "slice_index", None)
    return device.process_index if number is None else number


def host_rows(rows: NamedSharding, batch_size: int) -> np.ndarray:
    """The positions in a batch, ascending, that this process's devices hold when it lies in a
    sharding.

    Neighbouring devices of a mesh may belong to several processes, and where the model axis goes
    over processes, they hold the same rows: what a process loads follows from the mesh, not from
      its index.
    """
    places = np.arange(batch_size)
    held = rows.addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([places[index] for index in held]))
