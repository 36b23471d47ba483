"""The tokens of a sample set as a token cache, which training reads without encoding an image."""

import contextlib
import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Int

from var_jax import Pipeline
from var_jax.config.model import ModelConfig
from var_jax.config.strict import require
from var_jax.data import token_manifest
from var_jax.errors import UserError
from var_jax.evaluate import sample_files
from var_jax.evaluate.sample_plan import Plan
from var_jax.io import atomic, model_directory
from var_jax.io.tokenizer_fingerprint import tokenizer_fingerprint
from var_jax.models import networks
from var_jax.train import token_shards
from var_jax.train.tokenize import SHARD_IMAGES

OPTION = "--tokens-out"


@dataclasses.dataclass(frozen=True)
class TokenOutput:
    """The place and the contents of a sample set's token cache; `prepare` returns one.

    Attributes:
      directory: the cache's directory, which appears complete.
      manifest: the cache's manifest, without shards.
      tokenizer: the tokenizer whose tokens they are.
      params: its parameters.
    """

    directory: epath.Path
    manifest: token_manifest.Manifest
    tokenizer: ModelConfig
    params: dict[str, Any]

    def is_there(self) -> bool:
        """Returns whether the cache is complete, perhaps with held-out images added since.

        Raises:
          UserError: the directory holds something else.
        """
        if not self.directory.exists():
            return False
        if (self.directory / "manifest.json").exists():
            stored = token_manifest.read_manifest(self.directory)
            if stored.generated == self.manifest.generated:
                return True
        elif self.directory.is_dir() and not any(self.directory.iterdir()):
            return False
        raise UserError(
            f"{self.directory} is there already, and not of this sample set; remove it, or give "
            f"another {OPTION}"
        )


def prepare(
    directory: epath.PathLike, model: Pipeline, plan: Plan, out: epath.PathLike
) -> TokenOutput:
    """Returns the token cache of a sample set, checked before any image is generated.

    Args:
      directory: where the cache is written.
      model: the model, in the dtype that training has, whose tokenizer becomes the cache's.
      plan: the plan of the set.
      out: the set's `.npz` file.
    Raises:
      UserError: the model has no tokens; the images are not those of their tokens, or of no class;
        the directory holds something else; or the set is complete, and its tokens were not kept.
    """
    networks.require_tokens(model.config, OPTION)
    require(
        not plan.sampling.get("smooth"),
        OPTION,
        "given with --smooth",
        "given without it, as smoothed images are mixtures of codes and have no tokens",
    )
    classes, names = model.config.transformer.num_classes, model.class_names
    require(
        classes not in plan.labels,
        f"a label with {OPTION}",
        f"{classes}, no class",
        f"from 0 to {classes - 1}",
    )
    if max(plan.labels) >= len(names):
        names = (*names, *map(str, range(len(names), classes)))
    tokenizer, params = model.config.tokenizer, model.params["tokenizer"]
    settings = json.dumps(plan.settings, sort_keys=True)
    manifest = token_manifest.Manifest(
        tokenizer_fingerprint(tokenizer, params),
        data=token_manifest.GENERATED,
        resize="",
        image_shape=tokenizer.image_shape,
        scales=tokenizer.scales,
        vocab_size=tokenizer.vocab_size,
        class_names=names,
        seed=plan.sampling.get("seed", 0),
        train=token_manifest.SplitInfo(token_manifest.GENERATED, plan.num, 1),
        generated=hashlib.sha256(settings.encode()).hexdigest()[:16],
    )
    output = TokenOutput(
        epath.Path(directory), manifest, ModelConfig(tokenizer), {"tokenizer": params}
    )
    if not output.is_there() and epath.Path(out).exists():
        raise UserError(
            f"{out} is complete, and the tokens of its images were not kept; remove it, or give "
            "another --out"
        )
    return output


def stored_tokens(output: TokenOutput, tokens: Int[np.ndarray, "b L"]) -> np.ndarray:
    """Returns tokens in the dtype in which they are stored."""
    return tokens.astype(token_manifest.token_dtype(output.manifest.vocab_size))


def write(
    output: TokenOutput,
    plan: Plan,
    shards: list[range],
    stored: list[sample_files.Shard],
    chosen: Int[np.ndarray, " n"],
):
    """Writes the token cache in the order of the set; the directory appears complete.

    Args:
      shards: indices of the generated images, shard by shard.
      stored: the tokens of each shard.
      chosen: indices of the images that make up the set.
    Raises:
      UserError: the cache cannot be written, or its place holds something else.
      FileNotFoundError: another host has removed the shards.
    """
    if output.is_there():
        return
    temporary = atomic.temporary_name(output.directory)
    manifest = output.manifest
    assert manifest.train is not None
    try:
        model_directory.save(temporary / "tokenizer", output.tokenizer, output.params)
        records = _records(plan, shards, stored, chosen, manifest.vocab_size)
        parts = token_shards.parts_of_split("train", manifest.train, SHARD_IMAGES)
        for part in parts:
            some = list(itertools.islice(records, part.stop - part.start))
            token_shards.write(temporary, manifest, part, some)
        token_shards.complete(temporary, manifest, {"train": parts})
        temporary.rename(output.directory)
    except OSError as error:
        if isinstance(error, FileNotFoundError) or output.is_there():
            if output.is_there():
                return  # another host has written it
            raise
        raise UserError(
            f"cannot write the tokens {output.directory}: {error.strerror or error}"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            sample_files.remove(temporary)


def _records(
    plan: Plan,
    shards: list[range],
    stored: list[sample_files.Shard],
    chosen: Int[np.ndarray, " n"],
    vocab_size: int,
) -> Iterator[bytes]:
    labels = plan.label(chosen)
    rows = itertools.chain.from_iterable(sample_files.rows_of(stored, chosen, len(shards[0])))
    for label, tokens in zip(labels, rows, strict=True):
        yield token_manifest.record(int(label), tokens, vocab_size)
