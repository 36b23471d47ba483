"""The base class of samplers: settings, compiled program, FLOPs and bytes by objective."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import jax

from var_jax.config.model import ModelConfig
from var_jax.config.strict import require
from var_jax.errors import UserError, did_you_mean
from var_jax.sampling.settings import PRESETS, RANGES, Settings


class Prepared(NamedTuple):
    """Checked settings in the form that a sampling program takes.

    Attributes:
      compiled: static settings, a NamedTuple with the field `as_uint8`; each value compiles a
        program.
      traced: arrays and numbers that the compiled program takes as arguments.
      guided: whether the unconditional branch is computed at any scale or step.
    """

    compiled: Any
    traced: Any
    guided: bool


class ObjectiveSampler(abc.ABC):
    """Sampling from the models of one objective.

    An objective's sampler is a class with these attributes and methods, and an entry in
    `sampler_registry.SAMPLERS`.

    Attributes:
      presets: settings by preset name, "fid" (the default) among them; a preset of the other
        objectives that is not there is "fid".
      by_scale: whether images grow scale by scale, so that there is an image after each, and
        another model may continue.
      edits: whether the objective has zero-shot editing; its program then takes an
        `sampler.EditSource`, too, as `edit`.
      program: the jitted function (config, compiled, weights, labels, keys, traced) to images
        (b, H, W, c) in [0, 1], or uint8 with `compiled.as_uint8`, and tokens (b, L) or None. Its
        weights are {"tokenizer", "transformer"}, its keys one per image or a `KeySource`. It takes
        `guidance.NegativeLabels`, too, as `negative`.
    """

    presets: ClassVar[Mapping[str, Settings]]
    by_scale: ClassVar[bool] = False
    edits: ClassVar[bool] = False
    program: ClassVar[Callable[..., Any]]

    def settings(self, preset: str, explicit: Mapping[str, Any], objective: str) -> Settings:
        """Returns the settings of a preset, overridden by the explicit ones that are not None.

        Args:
          objective: the model's objective, for the error message.
        Raises:
          UserError: the preset is unknown, or a setting is unknown or of no use to the objective.
        """
        names = {*PRESETS, *self.presets}
        if preset not in names:
            raise UserError(f"unknown preset {preset!r}{did_you_mean(preset, names)}")
        settings = self.presets.get(preset, self.presets["fid"])
        known = Settings.__annotations__
        overrides = {name: value for name, value in explicit.items() if value is not None}
        for name, value in overrides.items():
            if name not in known:
                raise UserError(f"unknown sampling setting {name!r}{did_you_mean(name, known)}")
            if name not in settings:
                raise UserError(
                    f"{name} is {value}; it must be left out, as sampling from a model of "
                    f"objective {objective!r} has no such setting"
                )
        return Settings(**{**settings, **overrides})

    @abc.abstractmethod
    def prepare(self, config: ModelConfig, settings: Settings) -> Prepared:
        """Returns checked settings in the form that the program takes.

        Args:
          settings: all settings, as `self.settings` returns them.
        Raises:
          UserError: a setting is out of its range.
        """

    @abc.abstractmethod
    def generation_flops(self, config: ModelConfig, prepared: Prepared) -> float:
        """Returns the FLOPs of the network for an image, without the tokenizer's decoder."""

    @abc.abstractmethod
    def sequential_passes(self, config: ModelConfig, prepared: Prepared) -> int:
        """Returns how many times the network runs, one after the other, for an image.

        Guidance's branch runs at the same time as the other and does not count.
        """

    @abc.abstractmethod
    def generation_bytes(self, config: ModelConfig, prepared: Prepared, batch: int) -> int:
        """Returns the smallest number of bytes that the network moves to generate a batch.

        They are its weights, and keys and values where these are cached.
        """

    @abc.abstractmethod
    def network_alone(
        self, config: ModelConfig, prepared: Prepared, weights: dict[str, Any], labels: jax.Array
    ) -> Callable[[], Any]:
        """Returns a compiled function that runs only the network as generation of a batch does.

        It has no guidance, filters or random choices. Benchmarks time it.
        """

    def benchmark_settings(self, config: ModelConfig, cfg: float) -> Prepared:
        """Returns the settings that benchmarks and compilation use, with guidance `cfg`."""
        settings = self.settings("fid", {"cfg": cfg}, config.transformer.objective)
        return self.prepare(config, settings)

    def picture_settings(self, config: ModelConfig) -> Prepared:
        """Returns the settings of the sample pictures of a training run."""
        return self.prepare(config, self.settings("fid", {}, config.transformer.objective))


def require_number(name: str, value: Any, objective: str):
    """Raises UserError unless a setting is one number in its range.

    Samplers that do not go scale by scale call this: none of their settings changes from scale to
    scale.

    Args:
      objective: the model's, for the message.
    """
    valid = RANGES[name]
    require(
        valid.contains(value),
        name,
        value,
        f"one number, {valid.described}, for a model of objective {objective!r}",
    )
