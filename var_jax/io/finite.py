"""Checks that weights are finite: those of a diverged run or a damaged file are not."""

from collections.abc import Iterable

import ml_dtypes
import numpy as np

from var_jax.errors import UserError

ELEMENTS_AT_ONCE = 2**22  # elements per chunk
BFLOAT16_EXPONENT = 0x7F80  # all ones only in infinities and NaN
ARRAYS_SHOWN = 5  # names in one message


def not_finite(array: np.ndarray) -> int:
    """Returns the number of elements that are NaN or infinite; 0 for an array without floats.

    It works in chunks, as a model's largest array may be a large part of the memory. For bfloat16,
    on which numpy's own test is slow, it looks at the exponent's bits.
    """
    kind = np.dtype(array.dtype)
    if kind.kind != "f" and kind != ml_dtypes.bfloat16:
        return 0
    flat, count = np.ravel(array), 0
    for start in range(0, flat.size, ELEMENTS_AT_ONCE):
        part = flat[start : start + ELEMENTS_AT_ONCE]
        if kind == ml_dtypes.bfloat16:
            exponents = part.view(np.uint16) & np.uint16(BFLOAT16_EXPONENT)
            count += int(np.count_nonzero(exponents == BFLOAT16_EXPONENT))
        else:
            count += part.size - int(np.count_nonzero(np.isfinite(part)))
    return count


def require_finite(arrays: Iterable[tuple[str, np.ndarray]], name: str):
    """Raises UserError if any of the weights is not finite.

    Args:
      arrays: names and arrays.
      name: the name of the file or model, for the message.
    Raises:
      UserError: some values are not finite; the message names the arrays and counts the values.
    """
    counts = {}
    for key, array in arrays:
        bad = not_finite(array)
        if bad:
            counts[key] = bad, np.size(array)
    refuse(counts, name)


def refuse(counts: dict[str, tuple[int, int]], name: str, remedy: str = "give sound weights"):
    """Raises UserError if there are arrays with values that are not finite.

    Args:
      counts: {array: (number of values that are not finite, number of values)} of such arrays.
      name: the name of the file or model, for the message.
      remedy: the correction, for the message.
    """
    if not counts:
        return
    listed = ", ".join(
        f"{key} ({bad} of {size})" for key, (bad, size) in list(counts.items())[:ARRAYS_SHOWN]
    )
    more = f" and {len(counts) - ARRAYS_SHOWN} more" if len(counts) > ARRAYS_SHOWN else ""
    raise UserError(
        f"{name} holds values that are not finite (NaN or infinity) in {listed}{more}, as a run "
        f"that diverged or a damaged file leaves them; {remedy}"
    )
