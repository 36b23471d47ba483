"""Training of an adapter: the objective of the frozen model, on that model with the adapter merged.

The class of an adapter's run derives from `AdapterTraining` and from the objective of its base, so
that next-scale, next-token and masked prediction and diffusion all learn adapters.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from var_jax.adapters import parameters
from var_jax.config.train import TrainConfig
from var_jax.objectives import frozen_base
from var_jax.objectives.evaluation_tools import EvaluationTools
from var_jax.objectives.frozen_base import Base, FrozenBase
from var_jax.objectives.on_frozen_base import OnFrozenBase
from var_jax.objectives.step_types import Batch, Metrics
from var_jax.sampling import labels as class_labels

if TYPE_CHECKING:
    from etils import epath
    from jaxtyping import Int
    from PIL import Image

SAMPLES_SHOWN = 16  # images that `next_command` proposes


class AdapterTraining(OnFrozenBase):
    """The objective of a frozen model, with only an adapter's parameters trained.

    Parameters are those of `adapters.parameters`.
    """

    @classmethod
    def load_frozen(
        cls, config: TrainConfig, workdir: epath.Path
    ) -> tuple[TrainConfig, FrozenBase]:
        from var_jax.io.json import read_object_if_exists

        base = frozen_base.read_base(config)
        begun = read_object_if_exists(workdir / "config.json")
        resolved = frozen_base.with_base(config, base, begun)
        return resolved, frozen_base.load(resolved, base, workdir)

    @classmethod
    def with_base(cls, config: TrainConfig, base: Base, started_with: Any = None) -> TrainConfig:
        return frozen_base.with_base(config, base, started_with)

    @classmethod
    def shapes(cls, config: TrainConfig, base: Base) -> FrozenBase:
        return frozen_base.shapes(config, base)

    def init(self, key: jax.Array) -> Any:
        """Returns the adapter's parameters at their start, boxed with their logical axis names."""
        return parameters.init_params(self.config.adapter, self.model, key)

    def merged(self, params: Any, frozen: FrozenBase) -> dict[str, Any]:
        """Returns the transformer's parameters with the adapter merged in."""
        adapter = self.config.adapter
        return parameters.merged(adapter, self.model, params, frozen.base, frozen.starts)

    def loss(
        self,
        params: Any,
        frozen: FrozenBase,
        batch: Batch,
        rng: jax.Array | None,
        *,
        variant: Any = None,
        step: jax.Array | int = 0,
    ) -> tuple[jax.Array, Metrics]:
        """Returns the loss of the frozen model's objective with the adapter merged in."""
        adapted = self.merged(params, frozen)
        return super().loss(adapted, frozen, batch, rng, variant=variant, step=step)

    def eval_metrics(self, params: Any, frozen: FrozenBase, batch: Batch) -> Metrics:
        return super().eval_metrics(self.merged(params, frozen), frozen, batch)

    def picture(self, params: Any, frozen: FrozenBase, tools: EvaluationTools) -> Image.Image:
        """Returns samples of the adapted model, one class of the data per column."""
        merge = tools.compiled("merged", lambda: jax.jit(self.merged).lower(params, frozen))
        return super().picture(merge(params, frozen), frozen, tools)

    def model_labels(self, class_names: Sequence[str]) -> Int[np.ndarray, " classes"]:
        """Returns the adapted model's id of each class of the data, by the classes' names."""
        ids = frozen_base.model_labels(class_names, self.config.adapter, self.base)
        return np.array(ids, np.int32)

    @property
    def base(self) -> Base:
        classes = self.model.num_classes - len(self.config.adapter.class_names)
        transformer = dataclasses.replace(self.model, num_classes=classes)
        return super().base._replace(transformer=transformer)

    def write_model(self, directory: epath.Path, params: Callable[[], Any]):
        """Writes the adapter's file to the workdir."""
        from var_jax.adapters import adapter_file

        adapter = adapter_file.Adapter(
            self.config.adapter, self.frozen.fingerprint, self.frozen.start_ids, params()
        )
        if jax.process_index() == 0:
            adapter_file.save(directory, adapter)

    def data_warnings(self, class_names: Sequence[str], *, drops_color: bool) -> list[str]:
        """Returns the warnings about colors; that many classes are not in the data is intended."""
        all_classes = [""] * self.model.num_classes
        return super().data_warnings(all_classes, drops_color=drops_color)

    def summary(self) -> str:
        adapter = self.config.adapter
        parts = []
        if adapter.target_names:
            parts.append(f"LoRA of rank {adapter.rank} on {', '.join(adapter.target_names)}")
        if adapter.class_names:
            parts.append(f"rows of {', '.join(map(class_labels.written, adapter.class_names))}")
        return f"{' and '.join(parts)} for the model in {adapter.base} ({super().summary()})"

    @classmethod
    def next_command(
        cls, config: TrainConfig, workdir: str, config_file: str, overrides: Sequence[str]
    ) -> str:
        """Returns the command that samples the new classes, or the first class without any."""
        names = map(class_labels.written, config.adapter.class_names)
        labels = shlex.quote(",".join(names) or "0")
        return (
            f"var-jax sample --model {shlex.quote(config.adapter.base)} --adapter "
            f"{shlex.quote(workdir)} --labels {labels} --num {SAMPLES_SHOWN} --out samples.png"
        )
