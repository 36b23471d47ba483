"""Sampling settings that may differ from scale to scale: numbers, ramps and lists, and presets."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

import numpy as np

from var_jax.config.scales import Scales
from var_jax.config.strict import require
from var_jax.errors import UserError, did_you_mean


@dataclasses.dataclass(frozen=True)
class Ramp:
    """A setting that changes linearly from `first` at the coarsest scale to `last` at the finest.

    With a single scale it is `first`.
    """

    first: float
    last: float


Schedule = float | Ramp | Sequence[float]


class Settings(TypedDict, total=False):
    """Sampling settings. Each schedule is a number, a `Ramp`, or a list of one number per scale.

    Attributes:
      cfg: guidance strength t of (1 + t) conditional - t unconditional, 0 for none. A number c is
        the published ramp from t = 0 at the first scale to t = c at the last; with a single scale
        it is t = c. Ramp(t, t) is the same t at every scale. Of masked prediction, a number is the
        same in every pass, and a ramp goes from the first pass to the last.
      top_k: number of most likely codes to sample from; 0 or >= V is off. A ramp is rounded to
        whole numbers.
      top_p: probability mass to sample from, of the codes that top_k leaves; 0 or 1 is off. A ramp
        of top_k or of top_p has no end of 0.
      temperature: divisor of the logits, applied before top_k and top_p.
      ssg: strength of scaled spatial guidance, 0 for none: logits move away from those that the
        previous scale alone would predict, which sharpens details without a further pass. It has
        no meaning at the first scale.
      smooth: whether code vectors are mixed instead of sampled: smoother images, but not for
        measuring.
      steps: passes of the network; only for masked prediction and diffusion.
      noise: factor on the Gumbel noise that masked prediction adds to the confidence of sampled
        tokens, and anneals to 0; the more, the more varied.
      solver: how diffusion goes from noise to images; only for diffusion.
    """

    cfg: Schedule
    top_k: Schedule
    top_p: Schedule
    temperature: Schedule
    ssg: Schedule
    smooth: bool
    steps: int
    noise: float
    solver: str


# "fid" has the settings of the paper's figures, "pretty" those of its demonstration, with smooth
# codes.
PRESETS: dict[str, Settings] = {
    "fid": {
        "cfg": 1.5,
        "top_k": 900,
        "top_p": 0.96,
        "temperature": 1.0,
        "ssg": 0.0,
        "smooth": False,
    },
    "pretty": {
        "cfg": 4.0,
        "top_k": 900,
        "top_p": 0.95,
        "temperature": 1.0,
        "ssg": 0.0,
        "smooth": True,
    },
    "greedy": {
        "cfg": 1.5,
        "top_k": 1,
        "top_p": 0.0,
        "temperature": 1.0,
        "ssg": 0.0,
        "smooth": False,
    },
}


class Resolved(NamedTuple):
    """Checked settings with one number per scale; guidance as the strength t itself."""

    cfg: tuple[float, ...]
    top_k: tuple[int, ...]
    top_p: tuple[float, ...]
    temperature: tuple[float, ...]
    ssg: tuple[float, ...]
    smooth: bool


def settings(preset: str, explicit: Mapping[str, Any]) -> Settings:
    """Returns a preset's settings, with explicit ones in place of the preset's.

    Raises:
      UserError: the preset or a setting is unknown.
    """
    if preset not in PRESETS:
        raise UserError(f"unknown preset {preset!r}{did_you_mean(preset, PRESETS)}")
    for name in explicit:
        if name not in PRESETS[preset]:
            raise UserError(
                f"unknown sampling setting {name!r}{did_you_mean(name, PRESETS[preset])}"
            )
    return Settings(**{**PRESETS[preset], **explicit})


def resolve(scales: Scales, chosen: Settings) -> Resolved:
    """Returns settings with one number per scale; missing ones are those of the preset "fid".

    Raises:
      UserError: a number is out of its range, or a list does not have one number per scale.
    """
    values: dict[str, Any] = {**PRESETS["fid"], **chosen}

    # A ramp to 0 is refused: just above 0 a filter is at its strictest, and at 0 it is off.
    for name, allowed in (("top_k", "whole numbers of at least 1"), ("top_p", "numbers above 0")):
        _check_schedule(scales, name, values[name])
        ramp = values[name]
        if isinstance(ramp, Ramp):
            require(
                min(ramp.first, ramp.last) > 0,
                name,
                f"a ramp from {ramp.first} to {ramp.last}",
                f"one between {allowed}, as 0 is off",
            )

    _check_schedule(scales, "cfg", values["cfg"])
    _check_schedule(scales, "temperature", values["temperature"])
    _check_schedule(scales, "ssg", values["ssg"])
    return Resolved(
        cfg=tuple(_guidance_per_scale(scales, values["cfg"])),
        top_k=tuple(round(top_k) for top_k in _per_scale(scales, values["top_k"])),
        top_p=tuple(_per_scale(scales, values["top_p"])),
        temperature=tuple(_per_scale(scales, values["temperature"])),
        ssg=tuple(_per_scale(scales, values["ssg"])),
        smooth=bool(values["smooth"]),
    )


class Range(NamedTuple):
    """The numbers that a setting may be, and the words for them in an error."""

    contains: Callable[[Any], bool]
    described: str


RANGES = {
    "cfg": Range(lambda x: 0 <= as_float_or_nan(x) < math.inf, "0 (off) or more"),
    "top_k": Range(lambda x: is_integer(x) and x >= 0, "a whole number, 0 (off) or more"),
    "top_p": Range(lambda x: 0 <= as_float_or_nan(x) <= 1, "from 0 to 1 (0 or 1: off)"),
    "temperature": Range(lambda x: 0 < as_float_or_nan(x) < math.inf, "above 0"),
    "ssg": Range(lambda x: 0 <= as_float_or_nan(x) < math.inf, "0 (off) or more"),
    "steps": Range(lambda x: is_integer(x) and x >= 1, "a whole number of at least 1"),
    "noise": Range(lambda x: 0 <= as_float_or_nan(x) < math.inf, "0 (off) or more"),
}


def _check_schedule(scales: Scales, name: str, value: Any):
    """Raises UserError unless every number of a schedule is in the setting's range."""
    valid = RANGES[name]
    if isinstance(value, Ramp):
        for end in ("first", "last"):
            number = getattr(value, end)
            require(valid.contains(number), f"{name}.{end}", number, valid.described)
    elif _is_list(value):
        require(
            len(value) == len(scales),
            name,
            f"a list of {len(value)}",
            f"of {len(scales)} numbers, one for each of the scales {scales}; or one number, "
            "or a ramp",
        )
        for k, number in enumerate(value):
            require(valid.contains(number), f"{name} at scale {k}", number, valid.described)
    else:
        require(valid.contains(value), name, value, valid.described)


def _is_list(value: Any) -> bool:
    """Returns whether a schedule is a list or an array with axes, and not a text."""
    return (
        not isinstance(value, str) and hasattr(value, "__len__") and getattr(value, "ndim", 1) > 0
    )


def _per_scale(scales: Scales, value: Any) -> list[float]:
    """Returns a checked schedule as one number per scale."""
    if _is_list(value):
        return [float(number) for number in value]
    ramp = value if isinstance(value, Ramp) else Ramp(float(value), float(value))
    return _linear(scales, ramp)


def _guidance_per_scale(scales: Scales, value: Any) -> list[float]:
    """Returns guidance as one number per scale; a number is the end of a ramp from 0.

    With a single scale such a ramp would switch guidance off, so there the number is the
    guidance.
    """
    if len(scales) > 1 and not isinstance(value, Ramp) and not _is_list(value):
        value = Ramp(0.0, float(value))
    return _per_scale(scales, value)


def _linear(scales: Scales, ramp: Ramp) -> list[float]:
    """Returns a ramp's numbers, computed in float32 as a compiled program would.

    So a number, its ramp and its list agree to the last bit.
    """
    first = np.float32(ramp.first)
    rise = np.float32(ramp.last - ramp.first)
    return [float(first + rise * np.float32(scales.progress(k))) for k in range(len(scales))]


def parse(text: str, kind: type[float] | type[int] = float) -> Schedule:
    """Returns a schedule of the command line: `1.5`, `0:3` (a ramp) or `0,0,1.5` (a list).

    Raises:
      ValueError: a part is not a number of that kind.
    """

    def parse_number(part: str) -> float:
        try:
            return kind(part)
        except ValueError:
            raise ValueError(
                f"invalid {kind.__name__} value: {part!r}; write a number, a ramp such as 0:3 from "
                "the first scale to the last, or a list of one number per scale, separated by "
                "commas"
            ) from None

    if ":" in text:
        first, _, last = text.partition(":")
        return Ramp(parse_number(first), parse_number(last))
    if "," in text:
        return tuple(parse_number(part) for part in text.split(","))
    return parse_number(text)


def as_float_or_nan(value: Any) -> float:
    """Returns a value as a float, or NaN, which is in no range, if it is not a number."""
    try:
        return math.nan if isinstance(value, str) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def is_integer(value: Any) -> bool:
    """Returns whether a value is a whole number, of whatever type."""
    return as_float_or_nan(value).is_integer()
