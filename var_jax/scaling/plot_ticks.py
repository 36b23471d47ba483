"""Places and labels the ticks of a plot's axes, in less time than matplotlib's own choice takes."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

# The multiples of powers of ten that are labeled, by the number of decades that an axis spans.
LOG_TICKS = (
    (0.6, (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0)),
    (1.2, (1.0, 2.0, 3.0, 5.0, 7.0)),
    (2.5, (1.0, 3.0)),
    (np.inf, (1.0,)),
)
LINEAR_TICKS = 5  # most intervals between the ticks of other axes; each tick takes a millisecond
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def place(ax: Axes):
    """Labels a panel's axes: logarithmic ones at powers of ten, over few decades also between them.

    The labels are plain text. matplotlib's own ticks and mathematical text take most of the time
    that a figure takes to draw.
    """
    for axis in (ax.xaxis, ax.yaxis):
        if axis.get_scale() != "log":
            axis.set_major_locator(MaxNLocator(LINEAR_TICKS, steps=[1, 2, 2.5, 5, 10]))
            continue
        low, high = axis.get_view_interval()
        decades = np.log10(high / low)
        multiples = next(ticks for most, ticks in LOG_TICKS if decades < most)
        axis.set_major_locator(LogLocator(subs=multiples))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(_power_of_ten))


def _power_of_ten(value: float, position: int | None = None) -> str:
    """Returns a tick's label, such as 0.3, 2·10⁸ or 1.5·10⁸."""
    if 1e-3 < value < 1e4:
        return f"{value:.3g}"
    digits, exponent = f"{value:.1e}".split("e")
    digits = digits.removesuffix(".0")
    power = "10" + str(int(exponent)).translate(SUPERSCRIPTS)
    return power if digits == "1" else f"{digits}·{power}"
