"""The one source of truth for token-map sizes, lengths and offsets (VAR, section 3.2)."""

import dataclasses
import functools
from collections.abc import Iterable, Sequence

import numpy as np

from var_jax.errors import UserError

SCALES_256 = "1,2,3,4,5,6,8,10,13,16"
SCALES_512 = "1,2,3,4,6,9,13,18,24,32"


@dataclasses.dataclass(frozen=True)
class Scales:
    """Token-map sizes from coarse to fine, and the offsets of the scales in the sequence.

    Attributes:
      sizes: (height, width) of each token map, in tokens, none larger than the last.
    """

    sizes: tuple[tuple[int, int], ...]

    def __post_init__(self):
        if not self.sizes:
            raise UserError("scales are empty; give at least one size, such as 1,2,4")
        for h, w in self.sizes:
            if h < 1 or w < 1:
                raise UserError(f"scale {h}x{w} is not positive; sizes are whole numbers from 1")
        for (h0, w0), (h1, w1) in zip(self.sizes, self.sizes[1:], strict=False):
            if h1 < h0 or w1 < w0:
                raise UserError(f"scale {h1}x{w1} follows {h0}x{w0}; sizes go from coarse to fine")

    @classmethod
    def parse(
        cls, spec: "Scales | str | Iterable[int | str | Sequence[int]]", key: str = "scales"
    ) -> "Scales":
        """Returns scales from "1,2,4", "1,2x3" (height x width), [1, 2] or [(1, 1), (2, 3)].

        Args:
          key: the config key or argument that holds them, which an error names.
        Raises:
          UserError: an entry is neither a whole number nor a pair of them, or the sizes do not go
            from coarse to fine.
        """
        if isinstance(spec, Scales):
            return spec
        entries = spec.replace(" ", "").split(",") if isinstance(spec, str) else list(spec)
        try:
            return cls(tuple(_parse_size(entry) for entry in entries))
        except UserError as error:
            raise UserError(f"{key}: {error}") from None

    def __str__(self) -> str:
        return ",".join(str(h) if h == w else f"{h}x{w}" for h, w in self.sizes)

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def finest(self) -> tuple[int, int]:
        """(height, width) of the last token map, which is also the feature map's."""
        return self.sizes[-1]

    @functools.cached_property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each scale."""
        return tuple(h * w for h, w in self.sizes)

    @functools.cached_property
    def offsets(self) -> tuple[int, ...]:
        """The first token of each scale in the sequence, and the total as the last entry."""
        return (0, *(int(n) for n in np.cumsum(self.lengths)))

    @property
    def total(self) -> int:
        """L, the tokens of all scales."""
        return self.offsets[-1]

    @functools.cached_property
    def level_ids(self) -> np.ndarray:
        """int32 (L,): the scale that each token belongs to."""
        return np.repeat(np.arange(len(self), dtype=np.int32), self.lengths)

    def of_length(self, tokens: int) -> "Scales":
        """Returns the leading scales whose tokens add up to this number.

        Raises:
          ValueError: no first scales have.
        """
        return self if tokens == self.total else Scales(self.sizes[: self.offsets.index(tokens)])

    def span(self, k: int) -> slice:
        """Returns the span of scale k in the sequence."""
        return slice(self.offsets[k], self.offsets[k + 1])

    def progress(self, k: int) -> float:
        """Returns k / (K - 1), from 0 at the first scale to 1 at the last; 0 for a single scale."""
        return k / (len(self) - 1) if len(self) > 1 else 0.0

    def split(self, tokens):
        """Splits (B, L, ...) into one (B, h*w, ...) per scale."""
        return [tokens[:, self.span(k)] for k in range(len(self))]


def _parse_size(entry) -> tuple[int, int]:
    parts = list(entry) if isinstance(entry, list | tuple) else str(entry).split("x")
    try:
        numbers = [int(str(part)) for part in parts]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2):
        raise UserError(
            f"scale {entry!r} is not a size; write 4 for 4x4, or 2x3 for height 2 and width 3"
        )
    return numbers[0], numbers[-1]
