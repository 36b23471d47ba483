"""Training steps that were compiled earlier, and the runs that may use them.

A file holds the step's last variant, with all parts of the run active, and what it is compiled for:
the devices, the versions of the libraries and of this package, the options of compilers in the
environment, the settings that shape the program, and its arguments. A run in which all of these are
the same uses it in place of compiling.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh

from var_jax.config import idle_keys
from var_jax.config.strict import differences, plain
from var_jax.config.train import TrainConfig
from var_jax.errors import UserError
from var_jax.io import executable_file
from var_jax.train import toolchain, workdir
from var_jax.train.program import Program

# Settings that no compiled step depends on: which data, from where, how long and how often.
# Learning rates, weight decay and the seed are arguments of the step (`shared_step`).
SHAPELESS = (
    "seed",
    "steps",
    "log_every",
    "eval_every",
    "checkpoint_every",
    "keep_checkpoints",
    "keep_steps",
    "eval_images",
    "sample_classes",
    "wandb_project",
    "tokenizer_dir",
    "branch_step",
    "data",
    *workdir.LOCATIONS,
    *(
        f"{optimizer}.{name}"
        for optimizer in ("optimizer", "discriminator_optimizer")
        for name in (
            "base_lr",
            "warmup_steps",
            "warmup_from",
            "final_lr_ratio",
            "cooldown_steps",
            "bend",
            "weight_decay",
            "final_weight_decay",
        )
    ),
    # The mesh itself is compared.
    "mesh.data",
    "mesh.model",
    "mesh.replicated_share",
)
SHOWN = 4  # differences that a message names


def save(
    path: epath.PathLike, compiled: jax.stages.Compiled, config: TrainConfig, mesh: Mesh, name: str
):
    """Writes a compiled step of `Program.step` in its last variant to a file.

    Args:
      compiled: the step as the compiler gave it; one that was read from a folder of compiled
        programs cannot be written again on a CPU.
      config: the run's config, as the program's objective has it.
      mesh: the mesh that the step is compiled for.
      name: the name of the devices, such as "v5e:16x16", for messages.
    Raises:
      UserError: the file cannot be written.
    """
    _, metrics = jax.tree.unflatten(compiled.out_tree, range(compiled.out_tree.num_leaves))
    arguments, _ = compiled.args_info
    description = {
        "topology": name,
        "metrics": sorted(metrics),
        "compiled_for": _requirements(config, mesh, arguments),
    }
    executable_file.save(path, compiled, description)


def load(path: epath.PathLike, program: Program, frozen: object):
    """Makes a saved step that of a run's program, in place of compiling it.

    Args:
      frozen: the frozen weights that the run's steps use.
    Raises:
      UserError: the file cannot be read, or the step was compiled for other devices, versions,
        settings or arguments; the first differences are named.
    """
    description = executable_file.read_description(path)
    there, names = description.get("compiled_for"), description.get("metrics")
    if not isinstance(there, dict) or not isinstance(names, list):
        raise UserError(f"{path} is of no format that this version reads; compile it again")
    mesh, arguments = program.replicated.mesh, program.arguments(frozen)
    here = _requirements(program.objective.config, mesh, arguments)
    if different := _differences(here, there):
        more = f"; and {len(different) - SHOWN} more" if len(different) > SHOWN else ""
        raise UserError(
            f"{path} was compiled for {description.get('topology')} and is not this run's step: "
            f"{'; '.join(different[:SHOWN])}{more}; compile it again by `var-jax aot --save` with "
            "these settings, or leave out --executable"
        )
    in_tree = jax.tree.structure((arguments, {}))
    out_tree = jax.tree.structure((arguments[0], dict.fromkeys(names, 0)))
    devices = list(mesh.devices.flat)
    program.use(executable_file.load(path, in_tree, out_tree, devices))


def shaping(config: TrainConfig) -> dict[str, Any]:
    """Returns the settings of a run that shape its compiled step, as plain values by dotted key."""
    flat = _flat(plain(idle_keys.reset(workdir.in_steps(config))))
    sections = tuple(f"{key}." for key in SHAPELESS)
    return {
        key: value
        for key, value in flat.items()
        if key not in SHAPELESS and not key.startswith(sections)
    }


def _requirements(config: TrainConfig, mesh: Mesh, arguments: Any) -> dict[str, Any]:
    """Returns what a step depends on, as plain values that are the same where it can run."""
    devices = list(mesh.devices.flat)
    return {
        "versions": _versions(devices[0]),
        "platform": devices[0].platform,
        "device kind": devices[0].device_kind,
        **({"processor": toolchain.processor()} if devices[0].platform == "cpu" else {}),
        "environment": toolchain.environment(devices[0].platform),
        "number of devices": len(devices),
        "mesh": dict(mesh.shape),
        "config": shaping(config),
        "arguments": _arguments(arguments),
        "places": [[device.id, *getattr(device, "coords", ())] for device in devices],
    }


def _differences(here: Mapping[str, Any], there: Mapping[str, Any]) -> list[str]:
    """Returns the differences of two sets of requirements, the most telling first."""
    parts = [part for part in here if part != "places"] + sorted(set(there) - set(here))
    result = []
    for part in parts:
        name = "" if part == "config" else part
        result += differences(here.get(part), there.get(part), name)
    if not result and here["places"] != there.get("places"):
        result.append("the ids and coordinates of the mesh's devices differ")
    return result


def _versions(device: jax.Device) -> dict[str, str]:
    versions = toolchain.versions(device.platform)
    if device.platform not in ("cpu", "tpu"):
        versions["of the platform"] = device.client.platform_version
    return {**versions, "sources of var_jax": toolchain.sources()}


def _arguments(arguments: Any) -> dict[str, str]:
    """Returns the dtype and shape of every array of a step's arguments, by its path."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_flatten_with_path(arguments)[0]
    }


def _flat(tree: Mapping[str, Any], prefix: Sequence[str] = ()) -> dict[str, Any]:
    result = {}
    for key, value in tree.items():
        path = (*prefix, key)
        result |= _flat(value, path) if isinstance(value, Mapping) else {".".join(path): value}
    return result
