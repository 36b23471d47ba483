"""Sizes that a config leaves to its data: the channels of images and the number of classes.

In a config they are 0. A run takes them from its data once, when it is prepared, and writes them
into its config.json, from which a resumed run takes them.
"""

from collections.abc import Callable

from etils import epath

from var_jax.config.train import FIXED_SIZES, SIZES_OF_DATA, DataConfig, TrainConfig
from var_jax.data import sources, token_manifest
from var_jax.errors import UserError
from var_jax.io.json import read_object_or_none


def of_data(data: DataConfig) -> tuple[int, int]:
    """Returns (channels, classes) of a token cache, if one is named, else of the data set.

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
    """Returns the config with the sizes that it leaves to the data filled in.

    They are those of the workdir's run, if it was started, else those of the data.

    Call it before using a config that may leave sizes to the data. Nothing is read for a config
    that gives them all.

    Args:
      directory: the run's workdir, if there is one.
      sizes: returns the sizes of data; for many runs on the same data, a cached `of_data`.
    Raises:
      UserError: the data are needed and missing.
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
    """Returns a run's channels and classes, 0 where its config.json does not state them.

    Nothing is checked: the file is read strictly when the run is resumed.
    """
    values = read_object_or_none(path) or {}
    sizes = []
    for key in SIZES_OF_DATA:
        section, name = key.split(".")
        section = values.get(section)
        size = section.get(name, 0) if isinstance(section, dict) else 0
        sizes.append(size if isinstance(size, int) else 0)
    channels, classes = sizes
    return channels, classes
