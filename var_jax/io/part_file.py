"""The file of a small part that was trained on a frozen model: an adapter's, or a refiner's.

It is a safetensors file whose header holds, as JSON under a key of its own, the part's format and
what its kind of part writes there, such as the fingerprint of the model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from etils import epath

from var_jax.config.strict import differences
from var_jax.errors import UserError, require_path
from var_jax.io import array_file
from var_jax.io.finite import require_finite

Fields = TypeVar("Fields")


class PartFile(NamedTuple):
    """A kind of such files.

    Attributes:
      kind: what they hold, such as "adapter".
      name: the name of each in its directory.
      format: the format that is written and read.
      config_file: the config file that trains one, for messages.
    """

    kind: str
    name: str
    format: int
    config_file: str

    @property
    def key(self) -> str:
        """The key of the JSON in a file's header."""
        return f"var_jax_{self.kind}"

    def save(self, directory: epath.Path, params: Any, header: Mapping[str, Any]):
        """Writes a part to a directory, completely or not at all.

        Raises:
          UserError: the file cannot be written.
        """
        text = json.dumps({"format": self.format, **header})
        array_file.save_arrays(directory / self.name, params, {self.key: text})

    def load_params(self, directory: epath.PathLike) -> dict[str, Any]:
        """Returns the parameters in a directory's file.

        Raises:
          UserError: the file cannot be read, or a number is not finite.
        """
        path = epath.Path(directory) / self.name
        params = array_file.load_arrays(path)
        require_finite(array_file.named_leaves(params), str(path))
        return params

    def read_header(
        self, directory: epath.PathLike, fields: Callable[[Mapping[str, Any]], Fields]
    ) -> Fields:
        """Returns what a directory's file says of its part, without reading its parameters.

        Args:
          fields: picks it from the header's JSON; it may raise a KeyError, TypeError or ValueError
            for a header that is none of this kind.
        Raises:
          UserError: there is no such file, or its header is damaged or of another format.
        """
        require_path(directory, f"the {self.kind}'s directory")
        path = epath.Path(directory) / self.name
        if not path.exists():
            raise UserError(
                f"no {self.kind} in {directory}: there is no {self.name}; give a workdir of "
                f"`train --config {self.config_file}` after its first checkpoint"
            )
        metadata = array_file.load_metadata(path)
        try:
            header = json.loads(metadata[self.key])
            file_format, picked = header["format"], fields(header)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path} is no {self.kind}'s file: its header does not say so"
            ) from error
        if file_format != self.format:
            raise UserError(
                f"{path} is of format {file_format!r}, and this version reads {self.format}; "
                "update var-jax"
            )
        return picked

    def require_shapes(
        self, directory: epath.PathLike, params: Any, expected: Mapping[str, list[int]]
    ):
        """Raises UserError if parameters have other shapes than the header's config gives them.

        Args:
          directory: where they are from, for the message.
          expected: the shapes by name, joined by "/".
        """
        if different := differences(expected, shapes_by_name(params)):
            raise UserError(
                f"{directory}/{self.name} does not fit its header: {'; '.join(different[:4])}"
            )


def shapes_by_name(params: Any) -> dict[str, list[int]]:
    """Returns the shapes of parameters by their names, joined by "/"."""
    return {name: list(leaf.shape) for name, leaf in array_file.named_leaves(params)}
