"""The frozen model that is adapted or refined: how it is read, and how a run takes its sizes.

Files are read by libraries that are imported where they are used: measurements of time run without
them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from var_jax.adapters import class_rows
from var_jax.config import idle_keys
from var_jax.config.adapter_config import MEAN, AdapterConfig
from var_jax.config.model import TokenizerConfig, TransformerConfig
from var_jax.config.strict import require
from var_jax.config.train import ON_A_BASE, TrainConfig
from var_jax.errors import UserError
from var_jax.models import init
from var_jax.objectives.frozen_tokenizer import FrozenTokenizer
from var_jax.sampling import labels as class_labels

if TYPE_CHECKING:
    from etils import epath

# Keys of the transformer's section that are the run's own; all others are the base's.
OWN_KEYS = (
    "class_dropout",
    "attention",
    "remat",
    "dtype",
    "gradient_dtype",
    "progressive",
    "progressive_from",
    "progressive_warmup",
    "scale_weights",
    "flip_share",
)


@flax.struct.dataclass
class FrozenBase(FrozenTokenizer):
    """A frozen model: its tokenizer's parameters, or some parts of these, and its transformer's.

    Attributes:
      base: the transformer's parameters, in float32.
      starts: the rows that an adapter's new classes start from.
      start_ids: ids of the classes of these rows, None for the mean of all.
      fingerprint: the model's fingerprint.
      sampling_fingerprint: its fingerprint without the tokenizer's decoder.
      class_names: its class names, by id.
    """

    base: Mapping[str, Any]
    starts: Any = None
    start_ids: tuple[int | None, ...] = flax.struct.field(pytree_node=False, default=())
    fingerprint: str = flax.struct.field(pytree_node=False, default="")
    sampling_fingerprint: str = flax.struct.field(pytree_node=False, default="")
    class_names: tuple[str, ...] = flax.struct.field(pytree_node=False, default=())


class Base(NamedTuple):
    """The config and the class names of the model that a run adapts or refines."""

    tokenizer: TokenizerConfig
    transformer: TransformerConfig
    class_names: tuple[str, ...]


def base_directory(config: TrainConfig) -> str:
    """Returns the directory of the model that a run adapts or refines; "" in other stages."""
    return getattr(config, config.stage).base if config.stage in ON_A_BASE else ""


def read_base(config: TrainConfig) -> Base:
    """Returns the config and class names of a run's frozen model; reads no weights.

    Raises:
      UserError: no model is given, or it has no transformer.
    """
    from var_jax.io import model_directory

    path, key = base_directory(config), f"{config.stage}.base"
    require(
        path,
        key,
        repr(path),
        f"the model directory of a trained model (--config.{key}=DIR)",
    )
    directory = model_directory.require_directory(path)
    model = model_directory.load_config(directory)
    if model.transformer is None:
        raise UserError(
            f"the model in {key} {path} is a tokenizer alone; it must have a transformer"
        )
    require(model.refiner is None, f"the refiner of the model in {key} {path}", "there", "none")
    return Base(model.tokenizer, model.transformer, model_directory.class_names(directory))


def with_base(
    config: TrainConfig, base: Base, started_with: Mapping[str, Any] | None = None
) -> TrainConfig:
    """Returns a run with the sizes of its base, and with the new classes.

    Args:
      started_with: as in `idle_keys.refuse`.
    Raises:
      UserError: the classes of the adapter do not fit the base, or a key of the run has no effect
        with the base's objective.
    """
    adapter = config.adapter
    new = adapter.class_names
    require(
        new or adapter.kind == "lora",
        "adapter.classes",
        "''",
        "the names of the new classes with adapter.kind 'class_rows'",
    )
    if known := [name for name in new if label_of(name, base) is not None]:
        raise UserError(
            f"adapter.classes has {known[0]!r}, which is a class of the model in {adapter.base}; "
            "leave it out, or give another name"
        )
    start_ids(adapter, base)
    stated = config.transformer or TransformerConfig()
    own = {name: getattr(stated, name) for name in OWN_KEYS}
    classes = base.transformer.num_classes + len(new)
    adapted = dataclasses.replace(
        base.transformer, num_classes=classes, param_dtype="float32", **own
    )
    resolved = dataclasses.replace(config, tokenizer=base.tokenizer, transformer=adapted)
    idle_keys.refuse_unused_by_objective(resolved, OWN_KEYS, started_with)
    return resolved


def load(config: TrainConfig, base: Base, workdir: epath.Path) -> FrozenBase:
    """Returns the frozen model of an adapter's run.

    Raises:
      UserError: as `load_model` does.
    """
    from var_jax.adapters import adapter_file

    frozen = load_model(
        config, workdir, adapter_file.NAME, lambda run: adapter_file.load_header(run).fingerprint
    )
    starts = start_ids(config.adapter, base)
    return frozen.replace(
        starts=class_rows.start_rows(frozen.base["class_embed"], starts), start_ids=starts
    )


def load_model(
    config: TrainConfig,
    workdir: epath.Path,
    name: str,
    fingerprint_in: Callable[[epath.Path], str],
) -> FrozenBase:
    """Returns the frozen model of a run.

    Args:
      name: the file that the run writes, which names its frozen model.
      fingerprint_in: returns the fingerprint in that file of a workdir.
    Raises:
      UserError: the model is damaged, or another one than the run in the workdir, or that of
        `branch_from`, was started with.
    """
    from etils import epath

    from var_jax.data.model_fingerprint import fingerprints
    from var_jax.io import model_directory

    directory = epath.Path(base_directory(config))
    model, params = model_directory.load(directory)
    fingerprint, sampling_fingerprint = fingerprints(model, params)
    # The run of the workdir, or the one that a new run continues as a branch.
    for begun in (workdir, *([epath.Path(config.branch_from)] if config.branch_from else ())):
        if (begun / name).exists():
            expected = fingerprint_in(begun)
            require(
                expected == fingerprint,
                f"the model in {config.stage}.base {directory}",
                fingerprint,
                f"the one that the run in {begun} was started with, {expected}",
            )
            break
    return FrozenBase(
        params["tokenizer"],
        base=jax.tree.map(lambda x: np.asarray(x, np.float32), params["transformer"]),
        fingerprint=fingerprint,
        sampling_fingerprint=sampling_fingerprint,
        class_names=model_directory.class_names(directory),
    )


def shapes(config: TrainConfig, base: Base) -> FrozenBase:
    """Returns the shapes of the frozen weights of an adapter's run."""
    new = len(config.adapter.class_names), base.transformer.width
    return model_shapes(base).replace(starts=jax.ShapeDtypeStruct(new, jnp.float32))


def model_shapes(base: Base) -> FrozenBase:
    """Returns the shapes of the frozen model of a run."""
    transformer = dataclasses.replace(base.transformer, param_dtype="float32")
    return FrozenBase(
        init.param_shapes(base.tokenizer),
        base=init.param_shapes(transformer),
        class_names=base.class_names,
    )


def start_ids(adapter: AdapterConfig, base: Base) -> tuple[int | None, ...]:
    """Returns the ids of the classes that new classes start from, None for the mean of all.

    Raises:
      UserError: the base has no such class.
    """
    classes = base.transformer.num_classes
    ids = tuple(
        None
        if start == MEAN
        else class_labels.parse_one(start, base.class_names, option="adapter.start")
        for start in adapter.starts
    )
    for start in ids:
        right = f"{MEAN!r}, or a class of the model, from 0 to {classes - 1}"
        require(start is None or start < classes, "adapter.start", start, right)
    return ids


def label_of(name: str, base: Base) -> int | None:
    """Returns the base's id of a class of the data; None if the base has no such class.

    A base without class names has classes that are named by their ids.
    """
    if name in base.class_names:
        return base.class_names.index(name)
    classes = base.transformer.num_classes
    named_by_id = not base.class_names and name.isascii() and name.isdecimal()
    return int(name) if named_by_id and int(name) < classes else None


def model_labels(class_names: Sequence[str], adapter: AdapterConfig, base: Base) -> list[int]:
    """Returns the adapted model's class id for each class of the data.

    Raises:
      UserError: a class is neither the base's nor new, or a new one is not in the data.
    """
    new, first = adapter.class_names, base.transformer.num_classes
    if absent := [name for name in new if name not in class_names]:
        raise UserError(
            f"adapter.classes has {absent[0]!r}, of which the data have no images; their classes "
            f"are {', '.join(map(class_labels.written, class_names)):.80}"
        )

    def known(name: str) -> int:
        listed = class_labels.written(name)
        remedy = f"add it as a new one (--config.adapter.classes={listed})"
        return _known_label(name, base, adapter.base, remedy)

    return [first + new.index(name) if name in new else known(name) for name in class_names]


def labels_of(class_names: Sequence[str], base: Base, directory: str) -> list[int]:
    """Returns the base's class id for each class of the data.

    Args:
      directory: the base's, for messages.
    Raises:
      UserError: the base has no such class.
    """
    return [_known_label(name, base, directory, "leave its images out") for name in class_names]


def _known_label(name: str, base: Base, directory: str, remedy: str) -> int:
    """Returns the base's id of a class of the data, which it must have."""
    label = label_of(name, base)
    if label is None:
        raise UserError(
            f"the data have the class {name!r}, which the model in {directory} does not have; "
            f"{remedy}, or name its folder after a class of the model"
        )
    return label
