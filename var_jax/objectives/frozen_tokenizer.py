"""The frozen tokenizer whose codes a class-conditional model learns: how it is found and loaded.

Files are read by libraries that are imported where they are used: measurements of time run without
them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Self

import flax.struct
import jax
import numpy as np

from var_jax.config.model import DECODING, TokenizerConfig
from var_jax.config.strict import require
from var_jax.config.train import TrainConfig
from var_jax.errors import UserError

if TYPE_CHECKING:
    from etils import epath

TEACHER = ("quantize",)  # turns tokens into the transformer's input
ENCODER = ("encoder", "quant_conv", "quantize")
DECODER = (*DECODING, "quantize")


@flax.struct.dataclass
class FrozenTokenizer:
    """A tokenizer's parameters, or some of its parts, by name."""

    params: Mapping[str, Any]

    def parts(self, names: Collection[str]) -> Self:
        """Returns some of the parts; there is no quantizer where features are continuous."""
        return self.replace(
            params={name: self.params[name] for name in names if name in self.params}
        )


def load(config: TrainConfig, workdir: epath.Path) -> tuple[TokenizerConfig, FrozenTokenizer]:
    """Returns the config and the parameters of the tokenizer that a run learns from.

    They are read from the workdir's copy; without one, from `tokenizer_dir`, and if that is not
    given, from the token cache's copy.

    Raises:
      UserError: no tokenizer is given, or `tokenizer_dir` holds another one than the run was
        started with.
    """
    from var_jax.io import hub_download
    from var_jax.io.json import read_object

    copy, directory = workdir / "tokenizer", source(config)
    if not (copy / "model.json").exists():
        require(
            bool(directory),
            "tokenizer_dir",
            repr(directory),
            "the model directory of a trained tokenizer (--config.tokenizer_dir=DIR)",
        )
        return _read(hub_download.tokenizer_place(directory))
    tokenizer, frozen = _read(copy)
    run_config = workdir / "config.json"
    started_with = read_object(run_config).get("tokenizer_dir") if run_config.exists() else ""
    if config.tokenizer_dir not in ("", started_with):
        other_tokenizer, other = _read(hub_download.tokenizer_place(config.tokenizer_dir))
        if other_tokenizer != tokenizer or not _equal(frozen.params, other.params):
            raise UserError(
                f"tokenizer_dir {config.tokenizer_dir} holds another tokenizer than the one this "
                f"run was started with; its copy is in {copy}: leave tokenizer_dir out, or give "
                "another --workdir"
            )
    return tokenizer, frozen


def source(config: TrainConfig) -> str:
    """Returns the directory from which a fresh run takes its tokenizer, "" if none is given."""
    if config.tokenizer_dir or not config.data.tokens_dir:
        return config.tokenizer_dir
    from etils import epath

    return str(epath.Path(config.data.tokens_dir) / "tokenizer")


def read_config(config: TrainConfig) -> TokenizerConfig | None:
    """Returns the config of the tokenizer that a fresh run takes, None if none is given.

    No weights are read, or fetched from the hub.

    Raises:
      UserError: the directory that the config names holds no tokenizer.
    """
    if not (directory := source(config)):
        return None
    from var_jax.io import hub_download

    return hub_download.model_config(directory).tokenizer


def _equal(params: Any, other: Any) -> bool:
    return jax.tree.all(jax.tree.map(np.array_equal, params, other))


def _read(directory: epath.Path) -> tuple[TokenizerConfig, FrozenTokenizer]:
    from var_jax.io import model_directory

    tokenizer, params = model_directory.load_tokenizer(directory)
    return tokenizer, FrozenTokenizer(params)
