"""What a run trains, as one object: its parameters, its loss, its metrics and its figures.

`train`, `perf` and `sweep` ask an objective and know nothing else of what is trained. A new one is
a class here that says what is special about it, and an entry in one of `registry`'s tables: `init`,
`batch_shapes`, `loss` and `eval_metrics` are enough to train, resume and evaluate.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

import jax
import numpy as np
import optax
from jax.sharding import NamedSharding

from var_jax.config.model import ModelConfig, TokenizerConfig, TransformerConfig
from var_jax.config.scales import Scales
from var_jax.config.train import TrainConfig
from var_jax.objectives.steps import (
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
    from PIL import Image

Frozen = TypeVar("Frozen")  # a pytree of weights that are not trained


class EvaluationTools(Protocol):
    """What `Objective.picture` needs of the evaluation that it is part of.

    Attributes:
      replicated: how an array lies that every host can read.
    """

    replicated: NamedSharding

    @property
    def class_names(self) -> Sequence[str]:
        """Names of the data's classes, by label."""
        ...

    def first_batch(self) -> Batch:
        """Returns the first held-out batch, on the devices."""
        ...

    def compiled(self, name: str, lower: Callable[[], jax.stages.Lowered]) -> jax.stages.Compiled:
        """Returns a program, which is compiled when it is first asked for by this name."""
        ...

    def gather(self, tree: Any) -> Any:
        """Returns arrays of the devices as numpy arrays, whole on every host."""
        ...


class Objective(abc.ABC, Generic[Frozen]):
    """One kind of training.

    An instance belongs to one run: its config is resolved (sizes of the data and of the tokenizer
    are filled in, terms without weights left out) and never changes.

    Attributes:
      section: the config's section of the trained model, and the model's part in a model directory.
      reads_tokens: whether it may learn from a token cache.
      encodes_images: whether images go through `encode` before a step takes them.
      generates: whether its model generates images.
      remat_choices: values of the section's `remat` from the least recomputation to the most, where
        reports compare them.
      config: the run.
      frozen: weights that are not trained, whole, on the host.
    """

    section: ClassVar[str]
    reads_tokens: ClassVar[bool] = False
    encodes_images: ClassVar[bool] = False
    generates: ClassVar[bool] = False
    remat_choices: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: TrainConfig, frozen: Frozen):
        self.config = config
        self.frozen = frozen

    # How an objective is opened: a config, and frozen weights from one of three sources.

    @classmethod
    def load_frozen(cls, config: TrainConfig, workdir: epath.Path) -> tuple[TrainConfig, Any]:
        """Returns the config as these frozen weights resolve it, and the weights, read from files.

        Raises:
          UserError: a file is missing or of another network.
        """
        return config, NoFrozen()

    @classmethod
    def frozen_shapes(cls, config: TrainConfig) -> tuple[TrainConfig, Any]:
        """Returns what `load_frozen` does with shapes in place of values: programs are compiled for
        them and not run, and no file is needed."""
        return config, NoFrozen()

    @classmethod
    def random_frozen(cls, config: TrainConfig) -> tuple[TrainConfig, Any]:
        """Returns what `load_frozen` does with arbitrary values, for measurements of time."""
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
        """Returns what a step takes of one image, by name, without the batch axis."""

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
        """Returns the loss of a batch and its parts.

        Args:
          frozen: what `step_frozen` returns, on the devices.
          rng: draws dropout; None for none.
          variant: by default `last_variant`.
          step: steps done before this one.
        """

    def step_frozen(self) -> Frozen:
        """Returns those of the frozen weights that training and evaluation steps use."""
        return self.frozen

    def encode(self, frozen: Frozen, images: jax.Array) -> dict[str, jax.Array]:
        """Returns what a step takes in place of uint8 images, by name, as a function to compile."""
        raise NotImplementedError

    def variant(self, done: int) -> StepVariant:
        """Returns the variant of the step before which `done` steps were done."""
        return StepVariant()

    def last_variant(self) -> StepVariant:
        """Returns the variant with every part in it, which benchmarks and compilation are about."""
        return StepVariant()

    def gradients(
        self, state: Any, frozen: Frozen, batch: Batch, rng: jax.Array, *, variant: Any
    ) -> tuple[Any, Any]:
        """Returns gradients and metrics of a batch (averaged over microbatches), and arrays with a
        row per candidate (joined over microbatches), or None.

        The first has the fields of `Gradients`, at least. By default they are those of `loss`.
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
        """Returns the state after what a step does besides updating the parameters, and its
        metrics.

        Args:
          state: with parameters, average and step number updated.
          gradients: the first that `gradients` returned.
          rows: the second.
          metrics: of the batch, with the gradient's norm.
        """
        return state, metrics

    # The state at the first step.

    def optimizers(self) -> dict[str, OptimizerSpec]:
        """Returns the optimizer of the trained model (`TRAINED`), and of further networks by the
        state's field."""
        return {TRAINED: OptimizerSpec(self.config.optimizer)}

    def further_networks(self, key: jax.Array) -> dict[str, Any]:
        """Returns boxed parameters of networks that train beside the model, by the state's field,
        which holds them as `params` and their optimizer's state as `opt_state`."""
        return {}

    def first_state(
        self,
        state: TrainState,
        key: jax.Array,
        optimizers: Mapping[str, optax.GradientTransformation],
    ) -> Any:
        """Returns the state at step 0 with the objective's own fields, as a function to compile."""
        return state

    def initialize_from_data(
        self,
        state: Any,
        batches: Callable[[], Iterator[Batch]],
        shardings: Any,
        replicated: NamedSharding,
    ) -> Any:
        """Returns the state of a fresh run with what depends on its first batches.

        Args:
          batches: starts the run's training batches from the first, on the devices.
          shardings: of the state.
        """
        return state

    def adapt_weights(self, model: ModelConfig, weights: Any, replicated: NamedSharding) -> Any:
        """Returns weights of another model (`init_from`) as this run can start from them."""
        return weights

    # Evaluation.

    @abc.abstractmethod
    def eval_metrics(self, params: Any, frozen: Frozen, batch: Batch) -> Metrics:
        """Returns metrics of a held-out batch, without any dropout, as sums over the rows that
        count (`batch["mask"]`)."""

    def summarize(self, sums: Mapping[str, np.ndarray], images: int) -> dict[str, Any]:
        """Returns the metrics of an evaluation, "loss" among them, from sums over its images."""
        return {name: (value / images).tolist() for name, value in sums.items()}

    def picture(self, params: Any, frozen: Frozen, tools: EvaluationTools) -> Image.Image | None:
        """Returns what an evaluation shows of the model; None for nothing."""
        return None

    def not_finite(self, metrics: Mapping[str, Any]) -> tuple[str, float] | None:
        """Returns the first loss or gradient norm of a step that is not finite, with its name."""
        return first_not_finite(metrics, {"loss": "loss", "grad_norm": "grad_norm"})

    # Figures.

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
        """Returns the parameters that scaling laws are fitted against: "total", and "body"."""
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

    def model_axis_is_idle(self, data: int, model: int, rows: int) -> bool:
        """Returns whether devices along the model axis would repeat each other's work.

        Args:
          data: size of the mesh's data axis.
          model: size of its model axis.
          rows: of a microbatch.
        """
        return rows % (data * model) != 0

    # The workdir and what a run says.

    def carried_model(self) -> tuple[ModelConfig, Any] | None:
        """Returns the frozen model that the workdir carries, so that it is whole by itself."""
        return None

    def check_data(self, class_names: Sequence[str]):
        """Raises UserError where the model cannot learn these classes."""

    def data_warnings(self, class_names: Sequence[str], *, drops_color: bool) -> list[str]:
        """Returns a line for everything that a run drops of its data, or never learns.

        Args:
          drops_color: whether the images have color and the run sees them in gray.
        """
        return []

    def summary(self) -> str:
        """Returns the model's sizes in a few words, or ""."""
        return ""

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
          config_file: FILE.py[:ARG], as the command line has it.
          overrides: each `--config.KEY=VALUE` of the command line.
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
