"""A model in memory, which is loaded, saved, converted, and copied to devices or another dtype."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Self, get_args

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import NamedSharding

from var_jax.config.model import ModelConfig
from var_jax.config.scales import Scales
from var_jax.config.strict import require
from var_jax.config.transformer_config import INT8_REST, ParamDType
from var_jax.devices import batched
from var_jax.errors import UserError, require_path
from var_jax.io import hub_download, hub_publish, model_directory, torch_convert
from var_jax.io.hub_address import is_address
from var_jax.models import int8_weights


class LoadedModel:
    """A model's configuration and parameters, as loaded from a directory or from PyTorch weights.

    Attributes:
      config: the frozen configuration; `.tokenizer` and `.transformer` (None without a
        transformer).
      params: {"tokenizer": ..., "transformer": ...}, nested dicts of arrays; with "refiner" where
        the model has one.
      class_names: class names by id, if the model's directory has them; else empty.
    """

    def __init__(
        self, config: ModelConfig, params: dict[str, Any], class_names: Sequence[str] = ()
    ):
        self.config = config
        self.class_names = tuple(class_names)
        self.params = jax.tree.map(jnp.asarray, params)
        self._sharding: NamedSharding | None = None

    @classmethod
    def _consume(
        cls, config: ModelConfig, params: dict[str, Any], class_names: Sequence[str] = ()
    ) -> Self:
        """Returns a model of a parameter tree that has no other references.

        The tree is emptied leaf by leaf, so that the weights are never in memory twice.
        """

        def move(tree):
            return {
                name: move(leaf) if isinstance(leaf, dict) else jnp.asarray(leaf)
                for name, leaf in _pop_items(tree)
            }

        return cls(config, move(params), class_names)

    @classmethod
    def from_torch(
        cls,
        tokenizer,
        transformer=None,
        *,
        scales,
        num_heads: int | None = None,
        cosine_codes: bool = False,
        norm_groups: int = 32,
        dtype: str = "float32",
    ) -> Self:
        """Returns a model of the published PyTorch weights.

        Args:
          tokenizer: {published key: numpy array}, or a path (.pth, .pt, .safetensors, .npz).
          transformer: the same for the transformer; None for a tokenizer without one.
          scales: token-map sizes, coarse to fine.
          num_heads: needed only without QK-norm, where the weights do not determine it.
          cosine_codes: whether the nearest code is searched by cosine.
          norm_groups: groups of the tokenizer's GroupNorms, which the weights do not determine; 32
            in the published code.
          dtype: the dtype that weights are stored in, "float32" or "bfloat16".
        Raises:
          UserError: keys are unknown or missing, or shapes or scales do not match.
        """
        return cls._consume(
            *torch_convert.from_torch(
                tokenizer,
                transformer,
                scales=Scales.parse(scales),
                num_heads=num_heads,
                cosine_codes=cosine_codes,
                norm_groups=norm_groups,
                dtype=dtype,
            )
        )

    @classmethod
    def from_pretrained(cls, directory) -> Self:
        """Returns the model of a workdir of `train`, or of a directory of `save` or `convert`.

        Args:
          directory: a path, or `hf://owner/name[@revision][/subfolder]` of a model on the Hugging
            Face hub, which is downloaded to the hub's cache unless it is there (extra [hub]).
        Raises:
          UserError: the directory is missing, holds no model, or its files are damaged.
          RunFailed: the hub cannot be reached and the model is not in the cache.
        """
        require_path(directory, "the model directory", on_hub=True)
        if is_address(directory):
            directory = hub_download.local_directory(str(directory))
        path = epath.Path(directory)
        return cls._consume(*model_directory.load(path), model_directory.class_names(path))

    def save(self, directory):
        """Writes a model directory: `model.json` and one `.safetensors` file per part."""
        require_path(directory, "the model directory")
        self._require_floats("saving it")
        model_directory.save(epath.Path(directory), self.config, self.params, self.class_names)

    def push_to_hub(
        self,
        repository: str,
        *,
        license: str = "unknown",
        tags: Sequence[str] = (),
        private: bool = False,
        figures_from=None,
    ) -> hub_publish.Published:
        """Uploads the model and a model card to the Hugging Face hub, in one commit (extra [hub]).

        Args:
          repository: "owner/name"; it is created if it is missing.
          license: an identifier that the hub knows, such as "mit".
          tags: further tags of the card.
          private: whether a repository that is created is private.
          figures_from: the model's directory, whose figures and grid of samples the card shows.
        Raises:
          UserError: the repository's name is of another form, or access is refused.
          RunFailed: the hub cannot be reached.
        """
        self._require_floats("publishing it")
        return hub_publish.publish(
            repository,
            self.config,
            self.params,
            self.class_names,
            license=license,
            tags=tags,
            private=private,
            figures_from=figures_from,
        )

    def to_torch(
        self, *, with_buffers: bool = False
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray] | None]:
        """Returns (tokenizer, transformer) state dicts with the published keys and layouts.

        That of a missing transformer is None.

        Args:
          with_buffers: whether the published modules' buffers (masks, level ids) are included, so
            that PyTorch loads the dicts strictly.
        """
        self._require_floats("exporting it")
        return torch_convert.to_torch(self.config, self.params, with_buffers=with_buffers)

    def spread(self, devices: Sequence[jax.Device] | None = None) -> Self:
        """Returns the same model copied to each of this process's devices, which share every batch.

        Args:
          devices: some of this process's devices; by default all.
        """
        mesh = batched.local_mesh(devices)
        spread = type(self)(self.config, batched.replicate(self.params, mesh), self.class_names)
        spread._sharding = batched.row_sharding(mesh)
        return spread

    def tokenizer_alone(self) -> Self:
        """Returns the model without its transformer, whose objective may have no use for tokens."""
        params = {"tokenizer": self.params["tokenizer"]}
        return type(self)(ModelConfig(self.config.tokenizer), params, self.class_names)

    def astype(self, dtype: ParamDType) -> Self:
        """Returns the same model stored and computed in another dtype.

        Args:
          dtype: "float32", "bfloat16", or "int8": the weight matrices of the transformer's blocks
            in int8, the rest and the computation in bfloat16. Such a model is for sampling alone.
        Raises:
          UserError: there is no such dtype, or the model is in int8 or has no transformer for it.
        """
        require(dtype in get_args(ParamDType), "dtype", dtype, " or ".join(get_args(ParamDType)))
        self._require_floats("converting it")
        if dtype == "int8" and self.config.transformer is None:
            raise UserError("the model is a tokenizer alone; int8 is for weights of a transformer")
        floats = INT8_REST if dtype == "int8" else dtype
        parts = {  # a refiner computes as the transformer does
            name: part and dataclasses.replace(part, dtype=floats, param_dtype=floats)
            for name, part in vars(self.config).items()
            if name != "refiner"
        }
        params = self.params
        if dtype == "int8":
            parts["transformer"] = dataclasses.replace(parts["transformer"], param_dtype=dtype)
            params = {**params, "transformer": int8_weights.quantized(params["transformer"])}
            rest = {name: part for name, part in params.items() if name != "transformer"}
            params |= jax.tree.map(lambda x: x.astype(floats), rest)
        else:
            params = jax.tree.map(lambda x: x.astype(floats), params)
        other = type(self)(dataclasses.replace(self.config, **parts), params, self.class_names)
        other._sharding = self._sharding
        return other

    def with_scales(self, scales) -> Self:
        """Returns the tokenizer with the same weights and other token maps.

        Use it for images of another size or shape.

        Residual convolutions are chosen by a scale's relative position, so there may be any number
        of scales. The transformer is left out: its position embeddings are those of its own scales.

        Args:
          scales: token-map sizes, coarse to fine; the image is the finest times
            `config.tokenizer.downsampling`.
        Raises:
          UserError: the tokenizer has one residual convolution per scale (`phi` 0), and the number
            of scales is another.
        """
        own = self.config.tokenizer
        # The dropout of training may not fit fewer scales, and does nothing here.
        rescaled = dataclasses.replace(own, scales=Scales.parse(scales), quantizer_dropout=0.0)
        require(
            rescaled.phi_count == own.phi_count,
            "the number of scales",
            len(rescaled.scales),
            f"{len(own.scales)}, as this tokenizer has one residual convolution per scale",
        )
        other = type(self)(ModelConfig(rescaled), {"tokenizer": self.params["tokenizer"]})
        other._sharding = self._sharding
        return other

    def _require_floats(self, purpose: str):
        """Raises UserError if weights of the model are in int8."""
        transformer = self.config.transformer
        if transformer is not None and transformer.param_dtype == "int8":
            raise UserError(
                f"the model's weights are in int8, and {purpose} needs those that they were made "
                "from; take the model that `astype` was called on"
            )


def _pop_items(tree: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yields the items of a dict, each removed from it first."""
    for name in list(tree):
        yield name, tree.pop(name)
