"""Whether weights are finite: what a run that diverged leaves, or a damaged file, is named and not
used."""

from collections.abc import Iterable

import ml_dtypes
import numpy as np

from var_jax.errors import UserError

CHUNK = 2**22  # elements at once
BFLOAT16_EXPONENT = 0x7F80  # all ones in infinities and NaN alone
LISTED = 5  # names in one message


def not_finite(array: np.ndarray) -> int:
    """How many elements are NaN or infinite; none are of an array that holds no floats.

    In chunks, as a model's largest array may be a large part of the memory. numpy's own test is
    slow on bfloat16, whose bits are looked at instead.
    """
    kind = np.dtype(array.dtype)
    if kind.kind != "f" and kind != ml_dtypes.bfloat16:
        return 0
    flat, count = np.ravel(array), 0
    for start in range(0, flat.size, CHUNK):
        part = flat[start : start + CHUNK]
        if kind == ml_dtypes.bfloat16:
            exponents = part.view(np.uint16) & np.uint16(BFLOAT16_EXPONENT)
            count += int(np.count_nonzero(exponents == BFLOAT16_EXPONENT))
        else:
            count += part.size - int(np.count_nonzero(np.isfinite(part)))
    return count


def require_finite(arrays: Iterable[tuple[str, np.ndarray]], name: str):
    """Checks weights by name.

    Raises:
      UserError: some are not finite; `name`, the arrays and how many of their values are in the
        message.
    """
    refuse(
        {key: (bad, np.size(array)) for key, array in arrays if (bad := not_finite(array))}, name
    )


def refuse(counts: dict[str, tuple[int, int]], name: str, remedy: str = "give sound weights"):
    """Raises UserError of {array: (values that are not finite, values)}, unless it is empty."""
    if not counts:
        return
    listed = ", ".join(
        f"{key} ({bad} of {size})" for key, (bad, size) in list(counts.items())[:LISTED]
    )
    more = f" and {len(counts) - LISTED} more" if len(counts) > LISTED else ""
    raise UserError(
        f"{name} holds values that are not finite (NaN or infinity) in {listed}{more}, as a run "
        f"that diverged or a damaged file leaves them; {remedy}"
    )
