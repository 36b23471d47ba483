"""The released weights of VAR on the Hugging Face hub, fetched and converted.

They are those that the README of the published code (github.com/FoundationVision/VAR) links to.
"""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

from var_jax.config.model import DType, ModelConfig, TokenizerConfig
from var_jax.config.scales import SCALES_256, SCALES_512, Scales
from var_jax.config.strict import differences, plain
from var_jax.config.transformer_config import TransformerConfig
from var_jax.errors import UserError, did_you_mean
from var_jax.io import hub_download, torch_convert
from var_jax.io.hub_address import Address

REPOSITORY = "FoundationVision/var"
TOKENIZER_FILE = "vae_ch160v4096z32.pth"


class Release(NamedTuple):
    """A released model: its files, and the configuration that their tensors must have.

    Attributes:
      tokenizer_file: name of the tokenizer's file in the repository.
      transformer_file: name of the transformer's file; None for the tokenizer alone.
      config: the model's configuration.
    """

    tokenizer_file: str
    transformer_file: str | None
    config: ModelConfig


def _transformer(depth: int, scales: str = SCALES_256, *, shared_adaln: bool = False) -> Release:
    sizes = Scales.parse(scales)
    config = ModelConfig(
        TokenizerConfig(scales=sizes),
        TransformerConfig(depth=depth, scales=sizes, shared_adaln=shared_adaln),
    )
    return Release(TOKENIZER_FILE, f"var_d{depth}.pth", config)


RELEASES = {
    **{f"var-d{depth}": _transformer(depth) for depth in (16, 20, 24, 30)},
    "var-d36": _transformer(36, SCALES_512, shared_adaln=True),
    "var-tokenizer": Release(TOKENIZER_FILE, None, ModelConfig(TokenizerConfig())),
}


class Fetched(NamedTuple):
    """A file that a release was converted from.

    Attributes:
      name: its name in the repository.
      size: its bytes, which are those that the hub declares.
      commit: the repository's commit.
      path: its place in the hub's cache.
    """

    name: str
    size: int
    commit: str
    path: Path


class ReleasedModel(NamedTuple):
    """A released model in memory, and the files that it was converted from."""

    config: ModelConfig
    params: dict[str, Any]
    files: list[Fetched]


def load(name: str, revision: str = "main", dtype: DType = "float32") -> ReleasedModel:
    """Returns a released model, whose files are downloaded to the hub's cache at need.

    Args:
      name: a key of `RELEASES`, such as "var-d16".
      revision: a branch, a tag or a commit of the repository. Some files were uploaded again in
        2024, so that a commit is what makes a result repeatable.
      dtype: dtype of the parameters, "float32" or "bfloat16".
    Raises:
      UserError: there is no such release, revision or file, a file has another size or hash than
        the hub declares, or it holds other tensors than the release.
      RunFailed: the hub cannot be reached and a file is not in the cache.
    """
    if name not in RELEASES:
        raise UserError(f"no release {name!r}{did_you_mean(name, RELEASES)}")
    release = RELEASES[name]
    address, files = Address(REPOSITORY, revision), []
    for file in (release.tokenizer_file, release.transformer_file):
        if file is None:
            continue
        path = hub_download.fetch(address, file)
        # All further files are of the first one's commit.
        address = dataclasses.replace(address, revision=hub_download.commit_of(path, address))
        files.append(Fetched(file, path.stat().st_size, address.revision, path))
    tokenizer, *transformer = [file.path for file in files]
    config, params = torch_convert.from_torch(
        tokenizer,
        transformer[0] if transformer else None,
        scales=release.config.tokenizer.scales,
        norm_groups=release.config.tokenizer.norm_groups,
        dtype=dtype,
    )
    _require_config(config, release.config, f"{name} of {address}")
    return ReleasedModel(config, params, files)


def _require_config(config: ModelConfig, released: ModelConfig, name: str):
    """Checks the configuration of converted weights, whose tensors fit it, against the release's.

    Raises:
      UserError: a value differs, other than the dtype of the weights.
    """
    different = [
        text
        for text in differences(plain(released), plain(config))
        if not text.partition(":")[0].endswith("param_dtype")
    ]
    if different:
        raise UserError(
            f"{name} holds other weights than the release ('here' is the release, 'there' the "
            f"file): {'; '.join(different[:5])}"
        )
