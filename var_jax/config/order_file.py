"""Token orders that a config file gives as the path of a text file."""

import re

from var_jax.errors import UserError, require_path

# Names that `ops.orders` knows, which are no paths.
NAMES = ("raster", "zcurve", "spiral_out", "spiral", "spiral_in", "alternate", "subsample")
LITERAL = re.compile(r"\d+(,\d+)*")


def resolve(order: str) -> str:
    """Returns a token order in the form that a config stores: a name, or a permutation "2,0,1,3".

    The config does not depend on the file, which may be moved or changed later.

    Args:
      order: a name, a permutation, or the path of a text file of whole numbers with spaces, commas
        or lines between them.
    Raises:
      UserError: it is none of these.
    """
    if order in NAMES or LITERAL.fullmatch(order):
        return order
    # Benchmarks read configs where etils is not installed; their orders are names.
    from etils import epath

    require_path(order, "transformer.order")
    path = epath.Path(order)
    try:
        numbers = path.read_text().replace(",", " ").split()
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"transformer.order is {order!r}; it must be {', '.join(NAMES)}, a permutation such as "
            "2,0,1,3, or a text file with one"
        ) from error
    literal = ",".join(numbers)
    if not LITERAL.fullmatch(literal):
        raise UserError(f"transformer.order: {order} holds something else than whole numbers")
    return literal
