"""Publishes a model to the Hugging Face hub: its directory and a card, in one commit."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from etils import epath

from var_jax.config.model import ModelConfig
from var_jax.config.strict import require
from var_jax.io import model_card, model_directory
from var_jax.io.hub_address import ADDRESS, SCHEME, Address
from var_jax.io.hub_errors import explained
from var_jax.io.hub_library import endpoint, library

# Files of a model that an earlier commit may have and a new one may not.
OPTIONAL = ("transformer.safetensors", "refiner.safetensors", "data.json", model_card.GRID)


class Published(NamedTuple):
    """A model's commit on the hub.

    Attributes:
      url: of the commit.
      sizes: bytes by file.
    """

    url: str
    sizes: dict[str, int]


def require_repository(repository: str, name: str = "the repository") -> Address:
    """Returns the address of the repository "owner/name".

    Call it before a model is read that is to be published.

    Args:
      name: where the text is from, for the message.
    Raises:
      UserError: the text is of another form.
    """
    address = Address(repository)
    plain = ADDRESS.fullmatch(str(address))
    without = ", without hf://" if repository.startswith(SCHEME) else ""
    require(plain and plain[1] == repository, name, repr(repository), f"OWNER/NAME{without}")
    return address


def publish(
    repository: str,
    config: ModelConfig,
    params: dict[str, Any],
    class_names: Sequence[str] = (),
    *,
    license: str = "unknown",
    tags: Sequence[str] = (),
    private: bool = False,
    figures_from: epath.PathLike | None = None,
) -> Published:
    """Uploads a model to a repository, which is created if it is missing.

    The commit has all of the model or does not happen. It removes what an earlier model had and
    this one has not. The keyword arguments are those of `LoadedModel.push_to_hub`.

    Args:
      repository: "owner/name".
      config: the model's configuration.
      params: {"tokenizer": parameters, "transformer": parameters}; the latter is optional.
      class_names: the names of classes by id; may be empty.
    Raises:
      UserError: the repository's name is of another form, the tags are one text, or access is
        refused.
      RunFailed: the hub cannot be reached.
    """
    address = require_repository(repository)
    require(
        not isinstance(tags, str), "tags", repr(tags), "a list of tags, such as ['digits', 'gray']"
    )
    hub = library()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model_directory.save(epath.Path(folder), config, params, class_names)
        figures = None
        if figures_from is not None:
            figures = model_card.read_figures(epath.Path(figures_from))
            grid = model_card.find_grid(epath.Path(figures_from))
            if grid is not None and config.transformer:
                (folder / model_card.GRID).write_bytes(grid.read_bytes())
        card = model_card.text(
            repository,
            config,
            sum(leaf.size for leaf in jax.tree.leaves(params)),
            license=license,
            tags=tags,
            figures=figures,
            has_grid=(folder / model_card.GRID).exists(),
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
        files = sorted(folder.iterdir())
        with explained(address):
            api = hub.HfApi(endpoint())
            api.create_repo(repository, private=private or None, exist_ok=True)
            operations = [hub.CommitOperationAdd(file.name, str(file)) for file in files]
            for name in OPTIONAL:
                if not (folder / name).exists() and api.file_exists(repository, name):
                    operations.append(hub.CommitOperationDelete(name))
            commit = api.create_commit(
                repository, operations, commit_message="Upload a model of var_jax"
            )
        return Published(str(commit.commit_url), {file.name: file.stat().st_size for file in files})
