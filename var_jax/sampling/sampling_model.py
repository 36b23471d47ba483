"""A model whose sampling settings are checked before anything is sampled."""

from collections.abc import Callable
from typing import Any, Literal, Self, Unpack

import numpy as np

from var_jax.config.strict import require
from var_jax.errors import UserError
from var_jax.sampling import sampler_registry, validate
from var_jax.sampling.batch_size import max_batch
from var_jax.sampling.coding_model import CodingModel
from var_jax.sampling.guidance import NegativeLabels, resolve
from var_jax.sampling.objective_sampler import Prepared
from var_jax.sampling.settings import Settings, is_integer


class SamplingModel(CodingModel):
    """A `CodingModel` that checks sampling settings and has their defaults; `Pipeline` samples."""

    def check_sampling(
        self,
        *,
        seed: int,
        preset: str = "fid",
        then: "Self | None" = None,
        keep_scales: int | None = None,
        negative_labels: Any = None,
        **overrides: Unpack[Settings],
    ):
        """Raises the UserError that `sample` would raise for these settings of an image."""
        self._check_then(then, keep_scales)
        prepared = self._prepare(seed, preset, overrides)
        self._negative(negative_labels, 1, prepared)

    def sampling_settings(self, preset: str = "fid", **overrides: Unpack[Settings]) -> Settings:
        """Returns every setting of `sample` by name, those that are not given by the preset.

        Raises:
          UserError: a name is unknown, or the objective has no use for it.
        """
        transformer = validate.transformer(self.config)
        return sampler_registry.find(self.config).settings(preset, overrides, transformer.objective)

    def default_batch_size(
        self,
        *,
        seed: int = 0,
        preset: str = "fid",
        then: "Self | None" = None,
        negative_labels: Any = None,
        **overrides: Unpack[Settings],
    ) -> int:
        """Returns the default `batch_size` of `sample`: images per device that fit in memory.

        Guidance and negative labels add rows to the transformer's batch; with `then`, each of both
        models has to have room for it. The settings are checked as `sample` checks them.
        """
        prepared = self._prepare(seed, preset, overrides)
        return self._max_batch(prepared, self._negative(negative_labels, 1, prepared), then)

    def _prepare(self, seed: Any, preset: str, overrides: Settings) -> Prepared:
        """Returns checked settings as the objective's program takes them."""
        validate.transformer(self.config)
        require(
            is_integer(seed) and 0 <= seed < 2**32,
            "seed",
            seed,
            "a whole number from 0 to 4294967295",
        )
        chosen = self.sampling_settings(preset, **overrides)
        return sampler_registry.find(self.config).prepare(self.config, chosen)

    def _negative(self, values: Any, count: int, prepared: Prepared) -> NegativeLabels | None:
        """Returns the checked negative labels of `count` images."""
        return resolve(
            self.config, values, self.class_names, count=count, guided=bool(prepared.guided)
        )

    def _run_guided(
        self,
        function: Callable,
        negative: NegativeLabels | None,
        *arrays: np.ndarray,
        batch_size: int,
    ) -> Any:
        """Returns `_run` of a function whose rows have negative labels, as its `negative`.

        Without negative labels the function is called without that argument.
        """
        if negative is None:
            return self._run(function, *arrays, batch_size=batch_size)

        def run(config, weights, *rows):
            *own, labels = rows
            return function(config, weights, *own, negative=negative._replace(labels=labels))

        return self._run(run, *arrays, negative.labels, batch_size=batch_size)

    @property
    def edits(self) -> bool:
        """Whether the model has zero-shot editing."""
        return self.config.transformer is not None and sampler_registry.find(self.config).edits

    def _require_able(self, name: str, ability: Literal["edits", "by_scale"]):
        """Raises UserError for a method that needs an ability which the sampler does not have."""
        objective = validate.transformer(self.config).objective
        able = [
            repr(key)
            for key, sampler in sampler_registry.SAMPLERS.items()
            if getattr(sampler, ability)
        ]
        if repr(objective) not in able:
            raise UserError(
                f"`{name}` needs a model of objective {' or '.join(able)}; this one's is "
                f"{objective!r}"
            )

    def require_by_scale(self, name: str, value: Any):
        """Raises UserError for an argument that only next-scale prediction has a use for."""
        objective = validate.transformer(self.config).objective
        require(
            sampler_registry.find(self.config).by_scale,
            name,
            value,
            f"left out, as a model of objective {objective!r} does not sample scale by scale",
        )

    def _check_then(self, then: "Self | None", keep_scales: Any) -> int | None:
        """Returns the number of scales before another model continues; None without another model.

        It checks both.
        """
        require(
            (then is None) == (keep_scales is None),
            "keep_scales",
            keep_scales,
            "given together with `then`, the model that goes on from there",
        )
        if then is None:
            return None
        self.require_by_scale("then", "another model")
        require(
            then.config.refiner is None,
            "the refiner of `then`",
            "there",
            "left out: refined scales are the first ones, and `then` samples the last",
        )
        then.require_by_scale("the objective of `then`", then.config.transformer.objective)
        keep_scales = validate.keep_scales(self.config.tokenizer, keep_scales)
        validate.same_tokenizer(self.config, self.params, then.config, then.params)
        require(
            self._device_ids == then._device_ids,
            "the devices of `then`",
            then._device_ids,
            f"those of the first model, {self._device_ids}; spread both, or neither",
        )
        return keep_scales

    @property
    def _device_ids(self) -> list[int] | None:
        if self._sharding is None:
            return None
        return [device.id for device in self._sharding.mesh.devices.flat]

    def _max_batch(
        self, prepared: Prepared, negative: NegativeLabels | None, then: "Self | None" = None
    ) -> int:
        """Returns the number of images per device that fit in memory with both models."""
        away = 1 if negative is None else negative.labels.shape[1]
        rows = 1 + away if prepared.guided else 1
        batch = max_batch(self.config, self.params, rows=rows)
        return batch if then is None else min(batch, then._max_batch(prepared, negative))
