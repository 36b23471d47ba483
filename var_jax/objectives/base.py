"""The base class of training objectives: parameters, loss, metrics and costs as one object.

`train`, `perf` and `sweep` call an objective and know nothing else about the model. A new objective
is a class in this folder and an entry in one of `registry`'s tables: `init`, `batch_shapes`, `loss`
and `eval_metrics` are enough to train, resume and evaluate.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from var_jax.config.model import ModelConfig, TokenizerConfig, TransformerConfig
from var_jax.config.scales import Scales
from var_jax.config.train import TrainConfig
from var_jax.objectives.evaluation_tools import EvaluationTools
from var_jax.objectives.step_types import (
    TRAINED,
    Batch,
    Gradients,
    Metrics,
    NoFrozen,
    OptimizerSpec,
    StepVariant,
    TrainState,
)

if TYPE_CHECKING:  # measurements of time run without the libraries that read files and draw
    from etils import epath
    from jaxtyping import Int
    from PIL import Image

Frozen = TypeVar("Frozen")  # a pytree of weights that are not trained


class Objective(abc.ABC, Generic[Frozen]):
    """A training objective: a model, its loss, its metrics and its optimizers.

    An instance belongs to one run: its config is resolved (sizes of data and tokenizer filled in,
    terms without weights left out) and never changes.

    Attributes:
      section: the config's section of the trained model, and the model's part in a model directory.
      reads_tokens: whether it may learn from a token cache.
      encodes_images: whether images pass through `encode` before a step.
      generates: whether its model generates images.
      carries_model: whether its workdirs have a copy of `carried_model`.
      config: the resolved config of the run.
      frozen: all weights that are not trained, on the host.
    """

    section: ClassVar[str]
    reads_tokens: ClassVar[bool] = False
    encodes_images: ClassVar[bool] = False
    generates: ClassVar[bool] = False
    carries_model: ClassVar[bool] = True

    def __init__(self, config: TrainConfig, frozen: Frozen):
        self.config = config
        self.frozen = frozen

    @property
    def remat_choices(self) -> tuple[str, ...]:
        """Values of the section's `remat`, from the least recomputation on; () for none."""
        return ()

    # How an objective is opened: a config, and frozen weights from one of three sources.

    @classmethod
    def load_frozen(cls, config: TrainConfig, workdir: epath.Path) -> tuple[TrainConfig, Any]:
        """Returns the config as these frozen weights resolve it, and the weights, read from files.

        Raises:
          UserError: a file is missing or of another network.
        """
        return config, NoFrozen()

    @classmethod
    def frozen_config(cls, config: TrainConfig) -> TrainConfig:
        """Returns the config with the sizes of the frozen model that it names; reads no weights.

        Raises:
          UserError: the config names a model that is missing.
        """
        return config

    @classmethod
    def frozen_shapes(cls, config: TrainConfig) -> tuple[TrainConfig, Any]:
        """Returns the config and the frozen weights' shapes, for programs that are not run."""
        return config, NoFrozen()

    @classmethod
    def random_frozen(cls, config: TrainConfig) -> tuple[TrainConfig, Any]:
        """Returns the config and frozen weights of arbitrary values, for measurements of time."""
        return cls.frozen_shapes(config)

    def with_config(self, config: TrainConfig) -> Objective[Frozen]:
        """Returns the same objective, with the same frozen weights, for another run."""
        return type(self)(config, self.frozen)

    # The model and its training.

    @property
    def model(self) -> TokenizerConfig | TransformerConfig:
        """The section of the trained model."""
        return getattr(self.config, self.section)

    @abc.abstractmethod
    def init(self, key: jax.Array) -> Any:
        """Returns freshly initialized parameters, boxed with their logical axis names."""

    @abc.abstractmethod
    def batch_shapes(self) -> Mapping[str, jax.ShapeDtypeStruct]:
        """Returns the shape and dtype of each array of a batch, by name, without the batch axis."""

    def example_batch(self, size: int) -> dict[str, np.ndarray]:
        """Returns a batch of arbitrary values, for measurements of time."""
        return {
            name: np.zeros((size, *image.shape), image.dtype)
            for name, image in self.batch_shapes().items()
        }

    @abc.abstractmethod
    def loss(
        self,
        params: Any,
        frozen: Frozen,
        batch: Batch,
        rng: jax.Array | None,
        *,
        variant: Any = None,
        step: jax.Array | int = 0,
    ) -> tuple[jax.Array, Metrics]:
        """Returns the mean loss of a batch, and metrics: "loss" and the loss's terms.

        All are means over the batch, not sums: microbatches are averaged with equal weight.

        Args:
          params: parameters of the trained model.
          frozen: the weights that `step_frozen` returns, on the devices.
          rng: random key of dropout, masks, times, noise; None for a deterministic loss.
          variant: the `StepVariant` of the step; None for `last_variant`.
          step: steps done before this one.
        """

    def step_frozen(self) -> Frozen:
        """Returns the frozen weights that training and evaluation steps use."""
        return self.frozen

    def frozen_shardings(self, frozen: Frozen, mesh: Mesh) -> Any:
        """Returns the shardings of the weights of `step_frozen`, by default copies everywhere."""
        replicated = NamedSharding(mesh, PartitionSpec())
        return jax.tree.map(lambda _: replicated, frozen)

    def model_labels(self, class_names: Sequence[str]) -> Int[np.ndarray, " classes"]:
        """Returns the model's class id for each class of the data.

        Raises:
          UserError: the model has no such class.
        """
        return np.arange(len(class_names), dtype=np.int32)

    def encode(self, frozen: Frozen, images: jax.Array) -> dict[str, jax.Array]:
        """Returns the arrays that replace uint8 images in a batch; the caller compiles this."""
        raise NotImplementedError

    def variant(self, done: int) -> StepVariant:
        """Returns the variant of the step that follows `done` steps."""
        return StepVariant()

    def last_variant(self) -> StepVariant:
        """Returns the variant that has every part, which benchmarks measure and reports compile."""
        return StepVariant()

    def gradients(
        self, state: Any, frozen: Frozen, batch: Batch, rng: jax.Array, *, variant: Any
    ) -> tuple[Any, Any]:
        """Returns the gradients and metrics of a batch, and rows for `finish_step` or None.

        The gradients have at least the fields of `Gradients` and are averaged over microbatches;
        the rows are concatenated over microbatches. By default the gradients are those of `loss`.
        """

        def loss(params):
            return self.loss(params, frozen, batch, rng, variant=variant, step=state.step)

        return Gradients(*jax.grad(loss, has_aux=True)(state.params)), None

    def finish_step(
        self,
        state: Any,
        gradients: Any,
        rows: Any,
        metrics: Metrics,
        optimizers: Mapping[str, optax.GradientTransformation],
    ) -> tuple[Any, Metrics]:
        """Returns the state and the metrics at the end of a step.

        It makes any updates besides those of the parameters; by default there are none.

        Args:
          state: the state, with parameters, average and step number updated.
          gradients: the first result of `gradients`.
          rows: the second result of `gradients`.
          metrics: metrics of the batch, with the gradient's norm.
        """
        return state, metrics

    # The state at the first step.

    def optimizers(self) -> dict[str, OptimizerSpec]:
        """Returns the optimizer settings of each trained network, by name.

        That of the model has the name `TRAINED`; those of further networks have the names of their
        fields in the state.
        """
        return {TRAINED: OptimizerSpec(self.config.optimizer)}

    def further_networks(self, key: jax.Array) -> dict[str, Any]:
        """Returns the boxed parameters of further trained networks, by their field in the state.

        The field has the attributes `params` and `opt_state`, the state of the network's
        optimizer.
        """
        return {}

    def first_state(
        self,
        state: TrainState,
        key: jax.Array,
        optimizers: Mapping[str, optax.GradientTransformation],
    ) -> Any:
        """Returns the state at step 0 with the objective's own fields; the caller compiles this."""
        return state

    def initialize_from_data(
        self,
        state: Any,
        batches: Callable[[], Iterator[Batch]],
        shardings: Any,
        replicated: NamedSharding,
    ) -> Any:
        """Returns the state before a run's first step after initialization from its first batches.

        It is called for weights of `init_from` too, which the objective leaves as they are.

        Args:
          batches: starts the run's training batches from the first, on the devices.
          shardings: the shardings of the state.
        """
        return state

    def adapt_weights(self, model: ModelConfig, weights: Any, replicated: NamedSharding) -> Any:
        """Returns weights of another model (`init_from`) as this run can start from them."""
        return weights

    # Evaluation.

    @abc.abstractmethod
    def eval_metrics(self, params: Any, frozen: Frozen, batch: Batch) -> Metrics:
        """Returns the metrics of a held-out batch, summed over its rows, without dropout.

        Only the rows where `batch["mask"]` is true count.
        """

    def summarize(self, sums: Mapping[str, np.ndarray], images: int) -> dict[str, Any]:
        """Returns the metrics of an evaluation, "loss" among them, from sums over its images."""
        return {name: (value / images).tolist() for name, value in sums.items()}

    def picture(self, params: Any, frozen: Frozen, tools: EvaluationTools) -> Image.Image | None:
        """Returns the picture of an evaluation, or None if the objective has none."""
        return None

    def not_finite(self, metrics: Mapping[str, Any]) -> tuple[str, float] | None:
        """Returns the first loss or gradient norm of a step that is not finite, with its name."""
        return first_not_finite(metrics, {"loss": "loss", "grad_norm": "grad_norm"})

    # Sizes and costs.

    def scales(self, variant: Any = None) -> Scales:
        """Returns the scales that a step computes, by default all."""
        return self.config.tokenizer.scales

    def flops_per_image(self, variant: Any = None) -> float:
        """Returns the FLOPs of forward and backward, per image; frozen encoders are not counted."""
        return self.flops_by_definition()["exact"]

    def flops_by_definition(self) -> dict[str, float]:
        """Returns training FLOPs per image by name of the definition, "exact" among them."""
        return {"exact": 0.0}

    def param_count(self) -> dict[str, int]:
        """Returns parameter counts for scaling laws: "total", and "body", the part that scales."""
        total = sum(
            int(np.prod(leaf.shape))
            for leaf in jax.tree.leaves(jax.eval_shape(self.init, jax.random.key(0)))
        )
        return {"total": total, "body": total}

    def report(self) -> dict[str, Any]:
        """Returns settings that a report of the compiled step names."""
        return {}

    # The mesh.

    batch_over_model_axis: ClassVar[bool] = True  # whether rows, too, go over the model axis

    def divided_shapes(self) -> Any:
        """Returns the boxed shapes of the parameters that a mesh is chosen to divide."""
        return jax.eval_shape(self.init, jax.random.key(0))

    def parameter_copies(self) -> int:
        """Returns how many arrays of the size of these parameters a run holds."""
        return 3 + (self.config.ema > 0)  # the parameters, Adam's two moments, the average

    def model_axis_is_idle(self, data: int, model: int, rows: int) -> bool:
        """Returns whether devices along the model axis would repeat each other's work.

        Args:
          data: size of the mesh's data axis.
          model: size of its model axis.
          rows: rows of a microbatch.
        """
        return rows % (data * model) != 0

    # The workdir and the messages of a run.

    def carried_model(self) -> tuple[ModelConfig, Any] | None:
        """Returns the frozen model that a self-contained workdir has a copy of, or None."""
        return None

    def write_model(self, directory: epath.Path, params: Callable[[], Any]):
        """Writes a file of the trained model besides the checkpoint that is being saved, if any.

        All processes call it.

        Args:
          directory: the workdir.
          params: returns the model's averaged parameters on the host; all processes have to call
            it, or none.
        """

    def check_data(self, class_names: Sequence[str]):
        """Raises UserError if the model cannot learn these classes."""

    def data_warnings(self, class_names: Sequence[str], *, drops_color: bool) -> list[str]:
        """Returns a line for each part of the data or the model that the run leaves unused.

        Args:
          drops_color: whether the images have color and the run sees them in gray.
        """
        return []

    def summary(self) -> str:
        """Returns the model's sizes in a few words, or ""."""
        return ""

    def image_parts(self) -> str:
        """Returns the number and kind of an image's parts for the model, such as "680 tokens"."""
        return f"{self.config.tokenizer.scales.total} tokens"

    @classmethod
    def headline(cls, held_out: Mapping[str, Any]) -> str:
        """Returns the last evaluation in a few words."""
        return f"held-out loss {held_out['loss']:.4g}"

    @classmethod
    def next_command(
        cls, config: TrainConfig, workdir: str, config_file: str, overrides: Sequence[str]
    ) -> str:
        """Returns the command that comes after a finished run.

        Args:
          config_file: FILE[:ARG] of that command, if it takes one.
          overrides: each `--config.KEY=VALUE` that it takes.
        """
        return f"var-jax status {workdir}"


def first_not_finite(
    metrics: Mapping[str, Any], names: Mapping[str, str]
) -> tuple[str, float] | None:
    """Returns (name, value) of the first of some metrics that is not finite.

    Args:
      names: {metric: its name in words}, in the order in which they are looked at.
    """
    for metric, name in names.items():
        value = float(metrics[metric])
        if not np.isfinite(value):
            return name, value
    return None
