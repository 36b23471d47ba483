"""The entries of the sampling settings study: which settings are varied, and their values."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from var_jax.sampling import settings
from var_jax.sampling.settings import Ramp, Settings

BASE = "fid"
VALUES: dict[str, tuple[Any, ...]] = {
    # For cfg, a number is the published ramp from 0; Ramp(1.5, 1.5) is 1.5 at every scale.
    "cfg": (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, Ramp(1.5, 1.5)),
    "top_k": (0, 10, 50, 200, 900, Ramp(200, 10), Ramp(10, 200)),
    "top_p": (0.0, 0.5, 0.8, 0.9, 0.96, Ramp(0.99, 0.8), Ramp(0.8, 0.99)),
    "temperature": (0.7, 0.85, 1.0, 1.15, 1.3, Ramp(1.3, 0.85), Ramp(0.85, 1.3)),
    "smooth": (False, True),
}
LATER = {"ssg": "off"}
PRESET, THEN = "preset", "then"
PANELS = (*VALUES, PRESET, THEN)
LAST_SCALES = 3  # most scales that the small model samples after the large one


class Entry(NamedTuple):
    """A row of a table.

    Attributes:
      panel: the setting that is varied.
      label: its value, for readers.
      settings: all settings.
      sampler: the model that samples: "large", "small", or the number of scales after which the
        small model continues.
    """

    panel: str
    label: str
    settings: Settings
    sampler: str | int = "large"

    @property
    def row(self) -> str:
        """The name of the entry's row, which entries of the same settings share.

        Settings of `LATER` are named where they do something: files of rows that were measured
        before these settings existed go on.
        """
        named = {name: text(name, value) for name, value in self.settings.items()}
        shown = {name: value for name, value in named.items() if (name, value) not in LATER.items()}
        name = ", ".join(f"{name} {value}" for name, value in shown.items())
        return name if self.sampler == "large" else f"{sampler_name(self.sampler)}: {name}"


def entries(panels: Sequence[str], vocab: int, scales: int) -> list[Entry]:
    """Returns the entries of panels, in order.

    Args:
      vocab: number of codes; values of top_k that are at least as large are off, and are left out.
      scales: number of scales.
    """
    result = []
    for panel in panels:
        if panel == PRESET:
            for preset in settings.PRESETS:
                result.append(Entry(panel, preset, _settings(preset, {}, vocab)))
        elif panel == THEN:
            keep_scales = reversed(range(max(1, scales - LAST_SCALES), scales))
            base = _settings(BASE, {}, vocab)
            for sampler in ("large", *keep_scales, "small"):
                result.append(Entry(panel, sampler_name(sampler), base, sampler))
        else:
            for value in VALUES[panel]:
                if panel == "top_k" and _is_off(value, vocab):
                    continue
                varied = _settings(BASE, {panel: value}, vocab)
                result.append(Entry(panel, text(panel, value), varied))
    return result


def base_row(vocab: int, scales: int) -> str:
    """Returns the row of the preset that every panel varies."""
    return entries([PRESET], vocab, scales)[list(settings.PRESETS).index(BASE)].row


def text(name: str, value: Any) -> str:
    """Returns a setting's value as the command line takes it, "off" where it does nothing."""
    if isinstance(value, Ramp):
        return f"{value.first:g}:{value.last:g}"
    if isinstance(value, bool):
        return "on" if value else "off"
    return "off" if not value and name != "temperature" else f"{value:g}"


def sampler_name(sampler: str | int) -> str:
    """Returns the name of the model or models that sample an entry."""
    return f"{sampler} alone" if isinstance(sampler, str) else f"small from scale {sampler}"


def _settings(preset: str, explicit: Mapping[str, Any], vocab: int) -> Settings:
    """Returns all settings, with 0 for a top_k that is off."""
    chosen = settings.settings(preset, explicit)
    top_k = 0 if _is_off(chosen["top_k"], vocab) else chosen["top_k"]
    return Settings(**{**chosen, "top_k": top_k})


def _is_off(top_k: int | Ramp, vocab: int) -> bool:
    largest = max(top_k.first, top_k.last) if isinstance(top_k, Ramp) else top_k
    return largest >= vocab
