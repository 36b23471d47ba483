"""Published PyTorch weights: their keys and shapes, and the tensors one by one."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from var_jax.errors import UserError
from var_jax.io import torch_file
from var_jax.io.state_dicts import unwrapped

Source = Mapping[str, np.ndarray] | str | os.PathLike
KEYS_SHOWN = 12  # names in one message


class Weights:
    """A published state dict and the shapes of its tensors, which are read one by one.

    Keys may be below wrappers and containers in any nesting; the keys `anchors` find them.

    Attributes:
      name: the file's name, for messages.
      shapes: {published key: shape}.
    """

    def __init__(self, source: Source, name: str, anchors: Sequence[str] = ()):
        if isinstance(source, Mapping):
            self.name, self._tensors = name, source
            shapes = {key: tuple(np.shape(value)) for key, value in source.items()}
        else:
            self.name, self._tensors = f"{name} {source}", torch_file.read_tensors(source)
            shapes = self._tensors.shapes
        self._names = unwrapped(shapes, anchors, self.name)
        self.shapes = {key: shapes[name] for key, name in self._names.items()}

    def read(self, key: str) -> np.ndarray:
        """Returns one tensor.

        Raises:
          UserError: the tensor does not hold floats.
        """
        array = np.asarray(self._tensors[self._names[key]])
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise UserError(f"{self.name}: {key} holds {array.dtype}; weights are floats")
        return array

    def size(self, key: str, rank: int) -> tuple[int, ...]:
        """Returns the shape of a tensor, from which sizes of the model are read.

        Raises:
          UserError: the tensor is missing, empty or of another rank.
        """
        if key not in self.shapes:
            raise UserError(f"{self.name} misses {key}; it has {listed(self.shapes)}")
        if len(self.shapes[key]) != rank or 0 in self.shapes[key]:
            raise UserError(
                f"{self.name}: {key} has shape {self.shapes[key]}; it must have {rank} axes, none "
                "empty"
            )
        return self.shapes[key]

    def count(self, pattern: str) -> int:
        """Returns the number of distinct values of a pattern's group among the keys."""
        return len({match[1] for match in map(re.compile(pattern).match, self.shapes) if match})


def listed(names: Iterable[str]) -> str:
    """Returns the first few names and the number of the others, for a message."""
    names = list(names)
    more = f" and {len(names) - KEYS_SHOWN} more" if len(names) > KEYS_SHOWN else ""
    return f"{', '.join(names[:KEYS_SHOWN])}{more}" or "none"
