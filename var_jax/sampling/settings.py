"""Sampling settings that may differ from scale to scale: numbers, ramps and lists, and named sets
of them."""

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
    """Linear over the scales, from `first` at the coarsest to `last` at the finest."""

    first: float
    last: float


Schedule = float | Ramp | Sequence[float]


class Settings(TypedDict, total=False):
    """How tokens are drawn. Each schedule is a number, a `Ramp`, or a list of one number a scale.

    Attributes:
      cfg: guidance t of (1 + t) conditional - t unconditional, 0 for none. A number c is the
        published ramp: t = 0 at the first scale, c at the last. For one and the same t at every
          scale give Ramp(t, t).
      top_k: how many of the likeliest codes may be drawn; 0 or >= V is off. A ramp is rounded to
        whole numbers.
      top_p: what share of the probability may be drawn, of what top_k leaves; 0 or 1 is off. A ramp
        of top_k or of top_p has no end of 0.
      temperature: logits are divided by it, before top_k and top_p.
      smooth: mixes code vectors instead of choosing one: prettier, but not for measuring.
    """

    cfg: Schedule
    top_k: Schedule
    top_p: Schedule
    temperature: Schedule
    smooth: bool


# "fid" is what the paper's figures are measured with, "pretty" what its demonstration uses, with
# smooth codes.
PRESETS: dict[str, Settings] = {
    "fid": {"cfg": 1.5, "top_k": 900, "top_p": 0.96, "temperature": 1.0, "smooth": False},
    "pretty": {"cfg": 4.0, "top_k": 900, "top_p": 0.95, "temperature": 1.0, "smooth": True},
    "greedy": {"cfg": 1.5, "top_k": 1, "top_p": 0.0, "temperature": 1.0, "smooth": False},
}


class Resolved(NamedTuple):
    """Checked settings, one number a scale; guidance as t itself."""

    cfg: tuple[float, ...]
    top_k: tuple[int, ...]
    top_p: tuple[float, ...]
    temperature: tuple[float, ...]
    smooth: bool


def settings(preset: str, explicit: Mapping[str, Any]) -> Settings:
    """A preset's settings with those that are given explicitly put over them.

    Raises:
      UserError: there is no such preset, or no such setting.
    """
    if preset not in PRESETS:
        raise UserError(f"unknown preset {preset!r}{did_you_mean(preset, PRESETS)}")
    for name in explicit:
        if name not in PRESETS[preset]:
            raise UserError(
                f"unknown sampling setting {name!r}{did_you_mean(name, PRESETS[preset])}"
            )
    return Settings(**{**PRESETS[preset], **explicit})


def resolve(scales: Scales, given: Settings) -> Resolved:
    """The settings scale by scale.

    Raises:
      UserError: a number is out of its range, or a list is not one number a scale.
    """
    values: dict[str, Any] = {**PRESETS["fid"], **given}

    def checked(name: str, right: Callable[[Any], bool], wanted: str) -> list[float]:
        value = values[name]
        if isinstance(value, Ramp):
            for end in ("first", "last"):
                require(right(getattr(value, end)), f"{name}.{end}", getattr(value, end), wanted)
            return _linear(scales, value)
        if (
            isinstance(value, str)
            or not hasattr(value, "__len__")
            or getattr(value, "ndim", 1) == 0
        ):
            require(right(value), name, value, wanted)
            return _linear(scales, Ramp(0.0 if name == "cfg" else float(value), float(value)))
        require(
            len(value) == len(scales),
            name,
            f"a list of {len(value)}",
            f"of {len(scales)} numbers, one for each of the scales {scales}; or one number, or a ramp",
        )
        for k, one in enumerate(value):
            require(right(one), f"{name} at scale {k}", one, wanted)
        return [float(one) for one in value]

    top_k = checked("top_k", lambda x: whole(x) and x >= 0, "a whole number, 0 (off) or more")
    top_p = checked("top_p", lambda x: 0 <= number(x) <= 1, "from 0 to 1 (0 or 1: off)")
    for name, wanted in (("top_k", "whole numbers of at least 1"), ("top_p", "numbers above 0")):
        if isinstance(
            ramp := values[name], Ramp
        ):  # next to 0, where the filter is off, it would be at its strictest
            require(
                min(ramp.first, ramp.last) > 0,
                name,
                f"a ramp from {ramp.first} to {ramp.last}",
                f"one between {wanted}, as 0 is off",
            )
    return Resolved(
        cfg=tuple(checked("cfg", lambda x: 0 <= number(x) < math.inf, "0 (off) or more")),
        top_k=tuple(round(k) for k in top_k),
        top_p=tuple(top_p),
        temperature=tuple(checked("temperature", lambda x: 0 < number(x) < math.inf, "above 0")),
        smooth=bool(values["smooth"]),
    )


def _linear(scales: Scales, ramp: Ramp) -> list[float]:
    """In float32, as a compiled program would multiply: one number means one ramp to the last bit,
    however given."""
    first, rise = np.float32(ramp.first), np.float32(ramp.last - ramp.first)
    return [float(first + rise * np.float32(scales.progress(k))) for k in range(len(scales))]


def parse(text: str, kind: type[float] | type[int] = float) -> Schedule:
    """A schedule as the command line writes it: `1.5`, `0:3` (a ramp) or `0,0,1.5` (a list).

    Raises:
      ValueError: a part is no number of that kind.
    """

    def one(part: str) -> float:
        try:
            return kind(part)
        except ValueError:
            raise ValueError(
                f"invalid {kind.__name__} value: {part!r}; write a number, a ramp such as 0:3 from the "
                "first scale to the last, or a list of one number a scale, separated by commas"
            ) from None

    if ":" in text:
        first, _, last = text.partition(":")
        return Ramp(one(first), one(last))
    return tuple(one(part) for part in text.split(",")) if "," in text else one(text)


def number(value: Any) -> float:
    """NaN, which is in no range, for what is no number."""
    try:
        return math.nan if isinstance(value, str) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def whole(value: Any) -> bool:
    return number(value).is_integer()
