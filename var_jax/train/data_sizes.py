"""Sizes that a config leaves to its data: the channels of images and the number of classes.

In a config they are 0. A run takes them from its data once, when it is prepared, and writes what it
took into its config.json; a run that is resumed takes them from there.
"""

from collections.abc import Callable

from etils import epath

from var_jax.config.train import FIXED_SIZES, SIZES_OF_DATA, DataConfig, TrainConfig
from var_jax.data import sources, token_manifest
from var_jax.errors import UserError
from var_jax.io.json import read_object_or_none


def of_data(data: DataConfig) -> tuple[int, int]:
    """Returns (channels, classes) of a token cache, where one is named, else of the data set.
    Nothing is prepared or written.

    Raises:
      UserError: there is no such cache, data set or folder.
    """
    if data.tokens_dir:
        manifest = token_manifest.read_manifest(epath.Path(data.tokens_dir))
        return manifest.image_shape[-1], len(manifest.class_names)
    return FIXED_SIZES[data.name] if data.name in FIXED_SIZES else sources.sizes(data)


def from_data(
    config: TrainConfig,
    directory: epath.PathLike | None = None,
    sizes: Callable[[DataConfig], tuple[int, int]] = of_data,
) -> TrainConfig:
    """Returns the run with no size left to the data: as its workdir's run was started with, else by
    its data.

    Call it before anything is made of a config that may leave sizes to the data. Nothing is read
    for a config that gives them all.

    Args:
      directory: the run's workdir, where there is one.
      sizes: tells those of data; for many runs on the same, a cached `of_data`.
    Raises:
      UserError: the data that would tell are not there.
    """
    if config.left_to_data and directory is not None:
        config = config.with_sizes(*_of_run(epath.Path(directory) / "config.json"))
    if not config.left_to_data:
        return config
    try:
        return config.with_sizes(*sizes(config.data))
    except UserError as error:
        raise UserError(
            f"{error}; {' and '.join(config.left_to_data)} (0: as the data's) may be given instead"
        ) from error


def _of_run(path: epath.Path) -> tuple[int, int]:
    """Returns the channels and classes that a run was started with, 0 where its config.json does
    not say: whoever resumes it reads it strictly."""
    values = read_object_or_none(path) or {}
    sizes = []
    for key in SIZES_OF_DATA:
        section, name = key.split(".")
        section = values.get(section)
        size = section.get(name, 0) if isinstance(section, dict) else 0
        sizes.append(size if isinstance(size, int) else 0)
    channels, classes = sizes
    return channels, classes
