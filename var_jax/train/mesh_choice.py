"""The mesh of a run: one choice for training, for compilation ahead of time and for benchmarks.

If the config leaves the data axis open (`mesh.data` -1), the number of replicas grows, where the
policy has them, and then the model axis, from `mesh.model` on, until the model and the batch
divide. If no mesh of the devices divides the whole model,
parameters that are not divided are replicated along that axis, which is logged once with its cost
in bytes.
"""

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from jax.sharding import Mesh

from var_jax.config.train import MeshConfig
from var_jax.devices import sharding
from var_jax.devices.mesh import axis_sizes, make_mesh
from var_jax.errors import UserError
from var_jax.objectives.base import Objective

log = logging.getLogger(__name__)

LARGEST_SHOWN = 3


class Choice(NamedTuple):
    """A mesh, and the cost of the parameters that it leaves undivided.

    Attributes:
      replicated_bytes: bytes that one device holds beyond an even share, in parameters, moments and
        average, because the mesh does not divide some parameters.
    """

    mesh: Mesh
    replicated_bytes: int = 0


class Candidate(NamedTuple):
    """One arrangement of the devices in a mesh.

    Attributes:
      undivided: {parameter: bytes per device beyond an even share}.
      whole_share: share of the parameters' bytes that is replicated on every device.
      held_bytes: bytes of parameters on one device.
      idle: whether devices along the model axis would repeat each other's work.
    """

    config: MeshConfig
    undivided: Mapping[str, int]
    whole_share: float
    held_bytes: int
    idle: bool


def choose(
    objective: Objective[Any],
    devices: Sequence[jax.Device] | None = None,
    name: str = "batch_size",
) -> Choice:
    """Returns the mesh that a run trains on.

    Args:
      devices: the devices, by default all of this process group; for compilation ahead of time,
        described ones.
      name: name of the batch size, in an error.
    Raises:
      UserError: no mesh of the devices divides the batch, or the config's own mesh leaves more than
        `mesh.replicated_share` of the parameters replicated on every device.
    """
    config = objective.config
    devices = jax.devices() if devices is None else list(devices)
    boxed = objective.divided_shapes()
    microbatches = _Microbatches(config.batch_size, config.microbatches, name)
    best, mesh = _best(objective, config.mesh, devices, boxed, microbatches)
    shardings, abstract = sharding.shardings(boxed, mesh), nn.meta.unbox(boxed)
    if _is_given(config.mesh):
        _require_sharded(objective, devices, boxed, mesh)
    else:
        sharding.require_sharded(
            shardings, abstract, mesh, config.mesh.replicated_share, excused=best.undivided
        )
    extra = objective.parameter_copies() * sum(best.undivided.values())
    if best.undivided and jax.process_index() == 0:
        largest = sorted(best.undivided, key=lambda name: -best.undivided[name])[:LARGEST_SHOWN]
        log.warning(
            "the mesh data=%d, model=%d does not divide %d of the parameters; they are "
            "replicated, which takes %s bytes per device beyond an even share (with moments and "
            "average); the largest: %s",
            sharding.batch_parts(mesh.shape),
            mesh.shape["model"],
            len(best.undivided),
            f"{extra:,}",
            ", ".join(largest),
        )
    return Choice(mesh, extra)


def choose_for_sampling(
    objective: Objective[Any], images: int, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """Returns the mesh on which a batch of `images` is sampled.

    Weights are sharded over the model axis and replicated over the data axis.

    Raises:
      UserError: no mesh of the devices divides the images.
    """
    devices = jax.devices() if devices is None else list(devices)
    boxed = objective.divided_shapes()
    together = _Microbatches(images, 1, "--images")
    return _best(objective, objective.config.mesh, devices, boxed, together, sampling=True)[1]


class _Microbatches(NamedTuple):
    """Images of a batch, its number of microbatches, and its name in an error."""

    images: int
    parts: int
    name: str = "batch_size"


def _best(
    objective: Objective[Any],
    config: MeshConfig,
    devices: Sequence[jax.Device],
    boxed: Any,
    batch: _Microbatches,
    *,
    sampling: bool = False,
) -> tuple[Candidate, Mesh]:
    """Returns the best layout of the devices, and its mesh.

    Among layouts that replicate no more than `mesh.replicated_share`, it is the one that divides
    everything that has a rule, else any of them, in either case with the smallest model axis; if
    there is none, the one that holds least per device. For sampling it is the one with the smallest
    model axis.
    """
    reason: UserError | None = None
    usable: list[tuple[Candidate, Mesh]] = []
    rows = batch.images // batch.parts
    candidates = _candidates(objective, config, len(devices), boxed, rows, sampling=sampling)
    for candidate in candidates:
        try:
            mesh = make_mesh(candidate.config, devices)
        except UserError as error:
            reason = reason or error
            continue
        if batch.images % (sharding.batch_parts(mesh.shape) * batch.parts) == 0:
            usable.append((candidate, mesh))
    if not usable and reason:
        raise reason
    if objective.batch_over_model_axis or any(not candidate.idle for candidate in candidates):
        usable = [one for one in usable if not one[0].idle or _is_given(config)]
    if not usable:
        _refuse_batch(
            [axis_sizes(one.config, len(devices)) for one in candidates if not one.idle]
            or [axis_sizes(candidates[0].config, len(devices))],
            batch,
            over_both=objective.batch_over_model_axis and not _is_given(config),
        )
    if sampling:
        return usable[0]
    spread = [one for one in usable if one[0].whole_share <= config.replicated_share]
    divided = [one for one in spread if not one[0].undivided]
    if divided or spread:
        return (divided or spread)[0]
    return min(usable, key=lambda one: one[0].held_bytes)


def _candidates(
    objective: Objective[Any],
    config: MeshConfig,
    devices: int,
    boxed: Any,
    rows: int,
    *,
    sampling: bool,
) -> list[Candidate]:
    """Returns the arrangements of the devices, from the smallest model axis on."""
    meshes = (
        [config]
        if _is_given(config)
        else [dataclasses.replace(config, model=model) for model in _model_sizes(config, devices)]
    )
    if sampling:
        meshes = [dataclasses.replace(mesh, policy="fsdp", replicas=1) for mesh in meshes]
    else:
        meshes = [_with_replicas(mesh, devices, boxed) for mesh in meshes]
    candidates = []
    for mesh in meshes:
        data, model = axis_sizes(mesh, devices)
        sizes = {"data": 1 if sampling else max(data // max(mesh.replicas, 1), 1), "model": model}
        undivided = sharding.undivided_parameters(boxed, sizes)
        candidates.append(
            Candidate(
                mesh,
                undivided,
                sharding.replicated_share(boxed, sizes),
                sharding.bytes_per_device(boxed, sizes),
                objective.model_axis_is_idle(data, model, rows),
            )
        )
    return candidates


def _model_sizes(mesh: MeshConfig, devices: int) -> list[int]:
    """Returns the multiples of the config's model axis that divide the devices.

    If the axis itself does not divide them, it is the only one.
    """
    return [m for m in range(mesh.model, devices + 1, mesh.model) if devices % m == 0] or [
        mesh.model
    ]


def _with_replicas(mesh: MeshConfig, devices: int, boxed: Any) -> MeshConfig:
    """Returns a mesh with the fewest replicas whose devices divide the parameters, where it may.

    Without such a number, or with a policy or a config that leaves no choice, the mesh stays.
    """
    if mesh.policy == "fsdp" or mesh.replicas:
        return mesh
    data, model = axis_sizes(mesh, devices)
    for replicas in range(1, data // 2 + 1):
        sizes = {"data": data // replicas, "model": model}
        if data % replicas == 0 and not sharding.undivided_parameters(boxed, sizes):
            return dataclasses.replace(mesh, replicas=replicas)
    return mesh


def _is_given(mesh: MeshConfig) -> bool:
    return mesh.data != -1 or mesh.model == -1


def _refuse_batch(sizes: Sequence[tuple[int, int]], batch: _Microbatches, *, over_both: bool):
    """Raises UserError, with the nearest batch sizes that meshes of these (data, model) divide.

    Args:
      over_both: whether images are divided over both axes.
    """
    images, parts, name = batch
    smallest = min(data * model if over_both else data for data, model in sizes)
    unit = smallest * parts
    near = sorted({max(images // unit, 1) * unit, math.ceil(images / unit) * unit})
    raise UserError(
        f"{name} is {images}; it must be a multiple of {unit} (a mesh of {smallest} parts times "
        f"microbatches {parts}), such as {' or '.join(map(str, near))}"
    )


def _require_sharded(
    objective: Objective[Any], devices: Sequence[jax.Device], boxed: Any, mesh: Mesh
):
    """Raises UserError if the config's mesh replicates too much, naming a better one."""
    config = objective.config
    try:
        sharding.require_sharded(
            sharding.shardings(boxed, mesh),
            nn.meta.unbox(boxed),
            mesh,
            config.mesh.replicated_share,
        )
    except UserError as error:
        open_mesh = dataclasses.replace(config.mesh, data=-1, model=1)
        try:
            microbatches = _Microbatches(config.batch_size, config.microbatches)
            better = _best(objective, open_mesh, devices, boxed, microbatches)[0]
        except UserError:
            raise error from None
        data, model = axis_sizes(better.config, len(devices))
        if (data, model) == (sharding.batch_parts(mesh.shape), mesh.shape["model"]):
            raise UserError(
                f"{error}; no mesh of these devices divides more: mesh.replicated_share="
                f"{better.whole_share:.2g} accepts it"
            ) from None
        raise UserError(
            f"{error}; data={data}, model={model} would divide more, and mesh.data=-1 chooses it"
        ) from None
