"""The base class of objectives that train a class-conditional model over a frozen tokenizer."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from var_jax.config import rematerialization
from var_jax.config.model import ModelConfig, TransformerConfig
from var_jax.config.strict import require_classes
from var_jax.config.train import TrainConfig
from var_jax.devices import sharding
from var_jax.models import flops, init, position_tables
from var_jax.models.encode import encode_pixels
from var_jax.objectives import frozen_tokenizer
from var_jax.objectives.base import Objective
from var_jax.objectives.evaluation_tools import EvaluationTools
from var_jax.objectives.frozen_tokenizer import FrozenTokenizer
from var_jax.sampling import sampler_registry
from var_jax.sampling.image_keys import image_keys
from var_jax.sampling.objective_sampler import Prepared

if TYPE_CHECKING:
    from etils import epath
    from jaxtyping import Array, Float, Int, Key
    from PIL import Image

PICTURE_ROWS = 4
CLASSES_PROPOSED = 10  # of the picture that `next_command` proposes


class LatentObjective(Objective[FrozenTokenizer]):
    """A class-conditional transformer over the codes or features of a frozen tokenizer.

    Rivals of next-scale prediction share the tokenizer, the class labels and all that follows from
    these; they add a loss and held-out metrics. Their samplers are in `sampling.sampler_registry`,
    and their networks in `models.networks`.

    By default they learn tokens. One that learns continuous latents has its own `batch_shapes`,
    `example_batch` and `encode`, and `reads_tokens` false.

    Attributes:
      teacher_parts: parts of the tokenizer that a step needs where a token cache is read.
    """

    section = "transformer"
    reads_tokens = True
    encodes_images = True
    generates = True
    batch_over_model_axis = False
    teacher_parts: ClassVar[tuple[str, ...]] = frozen_tokenizer.TEACHER

    @classmethod
    def load_frozen(
        cls, config: TrainConfig, workdir: epath.Path
    ) -> tuple[TrainConfig, FrozenTokenizer]:
        tokenizer, frozen = frozen_tokenizer.load(config, workdir)
        return config.with_tokenizer(tokenizer), frozen

    @classmethod
    def frozen_config(cls, config: TrainConfig) -> TrainConfig:
        tokenizer = frozen_tokenizer.read_config(config)
        return config if tokenizer is None else config.with_tokenizer(tokenizer)

    @classmethod
    def frozen_shapes(cls, config: TrainConfig) -> tuple[TrainConfig, FrozenTokenizer]:
        return config, FrozenTokenizer(init.param_shapes(config.tokenizer))

    @classmethod
    def random_frozen(cls, config: TrainConfig) -> tuple[TrainConfig, FrozenTokenizer]:
        return config, FrozenTokenizer(init.fresh_params(config.tokenizer, jax.random.key(0)))

    @property
    def model(self) -> TransformerConfig:
        """The section of the trained model."""
        assert self.config.transformer is not None  # the config's own validation asks for it
        return self.config.transformer

    def init(self, key: jax.Array) -> Any:
        return init.init_params(self.model, key)

    def batch_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {
            "tokens": jax.ShapeDtypeStruct((self.config.tokenizer.scales.total,), jnp.int32),
            "label": jax.ShapeDtypeStruct((), jnp.int32),
        }

    def example_batch(self, size: int) -> dict[str, np.ndarray]:
        tokenizer = self.config.tokenizer
        tokens = np.random.default_rng(0).integers(
            tokenizer.vocab_size, size=(size, tokenizer.scales.total)
        )
        return {**super().example_batch(size), "tokens": tokens.astype(np.int32)}

    def step_frozen(self) -> FrozenTokenizer:
        """Returns the parts of the tokenizer that a step uses.

        They are `teacher_parts` where a token cache is read, and the encoder where images are.

        Only pictures need the decoder, half of the weights and more, which stay on the host until a
        picture is made.
        """
        from_cache = bool(self.config.data.tokens_dir)
        names = self.teacher_parts if from_cache else frozen_tokenizer.ENCODER
        return self.frozen.parts(names)

    def encode(self, frozen: FrozenTokenizer, images: jax.Array) -> dict[str, jax.Array]:
        return {"tokens": encode_pixels(self.config.tokenizer, frozen.params, images)}

    def logits(
        self,
        params: Any,
        frozen: FrozenTokenizer,
        tokens: Int[Array, "b L"],
        labels: Int[Array, " b"],
    ) -> Float[Array, "b L v"]:
        """Returns the logits of every token under teacher forcing, without dropout.

        Only objectives that predict each token once, in an order, have them.
        """
        raise NotImplementedError

    def adapt_weights(self, model: ModelConfig, weights: Any, replicated: NamedSharding) -> Any:
        """Returns the weights with embeddings resized to the run's scales.

        The class embedding starts afresh where the number of classes differs.
        """
        assert model.transformer is not None
        weights = position_tables.resized(weights, model.transformer, self.model)
        if model.transformer.num_classes == self.model.num_classes:
            return weights

        def class_embed(key: jax.Array) -> jax.Array:  # the rest is never computed
            return nn.meta.unbox(self.init(key))["class_embed"]

        fresh = jax.jit(class_embed, out_shardings=replicated)(jax.random.key(self.config.seed))
        return {**weights, "class_embed": np.asarray(fresh)}

    def summarize(self, sums: Mapping[str, np.ndarray], images: int) -> dict[str, Any]:
        means = super().summarize(sums, images)
        return {"loss": means["loss_mean"], **means}

    def sample(
        self,
        params: Mapping[str, Any],
        labels: Int[np.ndarray, " b"],
        keys: Key[Array, " b"],
        tools: EvaluationTools,
    ) -> Float[Array, "b H W c"]:
        """Returns images in [0, 1] by the objective's settings for pictures.

        Args:
          params: {"tokenizer", "transformer"} and those of a refiner, on the devices.
          keys: random keys of the images.
        """
        model = self.whole_model
        sampler, prepared = sampler_registry.find(model), self.sampler_settings(model)
        arguments = params, labels, keys, prepared.traced
        program = tools.compiled(
            "sampler", lambda: sampler.program.lower(model, prepared.compiled, *arguments)
        )
        images, _ = program(*arguments)
        return images

    @property
    def whole_model(self) -> ModelConfig:
        """The config of the model that pictures are sampled from."""
        return ModelConfig(self.config.tokenizer, self.model)

    def network_params(self, params: Any, frozen: FrozenTokenizer) -> dict[str, Any]:
        """Returns the parameters of that model by part, without the tokenizer."""
        return {"transformer": params}

    def sampler_settings(self, model: ModelConfig) -> Prepared:
        """Returns the settings of `sample`."""
        return sampler_registry.find(model).picture_settings(model)

    def picture(self, params: Any, frozen: FrozenTokenizer, tools: EvaluationTools) -> Image.Image:
        """Returns samples, one class per column."""
        from var_jax.io import pictures

        # Classes beyond the data have no title.
        columns = min(self.config.sample_classes, len(tools.class_names))
        labels = np.tile(self.model_labels(tools.class_names)[:columns], PICTURE_ROWS)
        keys = image_keys(self.config.seed, np.arange(len(labels), dtype=np.uint32))
        model_params = {
            "tokenizer": self._decoding_params(frozen, tools.replicated),
            **self.network_params(params, frozen),
        }
        images = tools.gather(self.sample(model_params, labels, keys, tools))
        names = zip(tools.class_names, labels[:columns], strict=False)
        titles = [pictures.title(name, str(label)) for name, label in names]
        return pictures.grid(images, columns=columns, titles=titles)

    def _decoding_params(self, frozen: FrozenTokenizer, replicated: NamedSharding) -> dict:
        """Returns the tokenizer's parts that turn tokens into images, on the devices."""
        missing = [name for name in frozen_tokenizer.DECODER if name not in frozen.params]
        decoder = self.frozen.parts(missing).params
        placed = sharding.place(decoder, jax.tree.map(lambda _: replicated, decoder))
        return {**frozen.params, **placed}

    def flops_by_definition(self) -> dict[str, float]:
        return {
            "exact": flops.train_flops_per_image(self.model),
            "6nd": flops.six_nd_train_flops(self.model),
            "dense": flops.dense_attention_train_flops(self.model),
        }

    @property
    def remat_choices(self) -> tuple[str, ...]:
        return ("none", "dots", *rematerialization.partial("dots", self.model.depth), "full")

    def param_count(self) -> dict[str, int]:
        return flops.param_count(self.model)

    def report(self) -> dict[str, Any]:
        return {"depth": self.model.depth, "remat": self.model.remat}

    def model_axis_is_idle(self, data: int, model: int, rows: int) -> bool:
        """Returns whether the axis divides neither the heads nor the hidden units."""
        return self.model.heads % model != 0 or self.model.hidden % model != 0

    def carried_model(self) -> tuple[ModelConfig, Any]:
        return ModelConfig(self.config.tokenizer), {"tokenizer": self.frozen.params}

    def check_data(self, class_names: Sequence[str]):
        require_classes(self.model.num_classes, len(class_names))

    def data_warnings(self, class_names: Sequence[str], *, drops_color: bool) -> list[str]:
        warnings = []
        first, last = len(class_names), self.model.num_classes - 1
        if first <= last:
            labels = f"label {first} is" if first == last else f"labels {first} to {last} are"
            classes = f"{first} {'class' if first == 1 else 'classes'}"
            warnings.append(
                f"transformer.num_classes is {last + 1} and the data have {classes}: {labels} "
                "never trained"
            )
        if drops_color:
            warnings.append(
                "the images have color, and the run sees them in gray: the tokenizer has one "
                "channel"
            )
        return warnings

    def summary(self) -> str:
        return f"depth {self.model.depth}, width {self.model.width}"

    @classmethod
    def next_command(
        cls, config: TrainConfig, workdir: str, config_file: str, overrides: Sequence[str]
    ) -> str:
        """Returns the command that samples images of the data's classes.

        The data may have fewer classes than the model.
        """
        from etils import epath

        from var_jax.io import model_directory

        class_names = model_directory.class_names(epath.Path(workdir))
        assert config.transformer is not None
        classes = len(class_names) or config.transformer.num_classes
        last = min(CLASSES_PROPOSED, classes) - 1
        labels = f"0-{last}" if last else "0"
        return (
            f"var-jax sample --model {shlex.quote(workdir)} --labels {labels} "
            f"--num {4 * (last + 1)} --out samples.png"
        )
