"""Forms of scaling laws beside the reported ones, to be compared with them on held-out sizes.

A form is a function of the logarithms of the inputs, which are centered: z = log x - log of their
geometric mean. Amplitude and exponent hardly correlate there.
"""

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from var_jax.scaling.solver import ALPHA_RANGE

Array = np.ndarray

HIGHEST_LIMIT = 1e3  # largest L0 of M4 over the largest loss; beyond it M4 is the law with a floor
BREAK_WIDTHS = (0.05, 5.0)  # f of the broken law: 0.05 is a corner, 5 is no break that one can see
NEWTON_ITERATIONS = 20
NEWTON_TOLERANCE = 1e-6  # the step after it squares the error
BEND = 3.0  # largest |exponent| by which a coefficient of Farseer's law may vary with size
LARGEST = 300.0  # of a logarithm, so that no exponential overflows


@dataclasses.dataclass(frozen=True)
class Form:
    """A form of a law.

    Attributes:
      name: its name in fit.json.
      text: its formula, in the parameters that `published` returns.
      source: where it is from.
      names: names of its fitted parameters.
      log_loss: log loss of rows of parameters at centered log inputs, given their centers.
      starts: rows of parameters to start from, given the law with a floor, [E, log A, alpha, ...]
        of centered inputs, and the ranges of z.
      bounds: lowest and highest parameters, given the largest loss and the ranges of z.
      published: the parameters of `text` by name, given fitted ones and the centers of log x.
    """

    name: str
    text: str
    source: str
    names: tuple[str, ...]
    log_loss: Callable[[Float[Array, "r p"], Float[Array, "n j"], Float[Array, " j"]], Array]
    starts: Callable[[Float[Array, " q"], Float[Array, "2 j"]], list[list[float]]]
    bounds: Callable[[float, Float[Array, "2 j"]], tuple[list[float], list[float]]]
    published: Callable[[Float[Array, " p"], Float[Array, " j"]], dict[str, float]]

    @property
    def has_floor(self) -> bool:
        """Whether the first parameter is E."""
        return self.names[0] == "E"


def _exp(value):
    return np.exp(np.clip(value, -LARGEST, LARGEST))


def _power_log_loss(theta, z, center):
    return theta[:, :1] - theta[:, 1:] * z[:, 0]


POWER = Form(
    "power",
    "A x^-alpha",
    "Kaplan et al. 2020",
    ("log A", "alpha"),
    _power_log_loss,
    lambda law, z: [[np.log(law[0] + np.exp(law[1])), law[2] / 2]],
    lambda most, z: ([-LARGEST, ALPHA_RANGE[0]], [LARGEST, ALPHA_RANGE[1]]),
    lambda theta, center: {"A": float(_exp(theta[0] + theta[1] * center[0])), "alpha": theta[1]},
)


def _sum_of_powers(theta, z, center):
    total = theta[:, :1] + 1e-300
    for i in range(z.shape[1]):
        total = total + _exp(theta[:, 1 + 2 * i, None] - theta[:, 2 + 2 * i, None] * z[:, i])
    return np.log(total)


def _sum_bounds(most, z):
    terms = z.shape[1]
    return (
        [0.0, *[-LARGEST, ALPHA_RANGE[0]] * terms],
        [most, *[LARGEST, ALPHA_RANGE[1]] * terms],
    )


def _sum_starts(law, z):
    rows = [list(law)]
    for share, alpha in itertools.product((0.0, 0.9), (0.5, 2.0)):
        row = np.array(law)
        row[0] *= share
        row[2::2] *= alpha
        rows.append(list(row))
    return rows


def _sum_published(theta, center):
    parameters = {"E": theta[0]}
    for i, (amplitude, exponent) in enumerate((("A", "alpha"), ("B", "beta"))[: len(center)]):
        log_a, alpha = theta[1 + 2 * i : 3 + 2 * i]
        parameters |= {amplitude: float(_exp(log_a + alpha * center[i])), exponent: alpha}
    return parameters


FLOOR = Form(
    "floor",
    "E + A x^-alpha",
    "Hoffmann et al. 2022; the form of the reported law, here with independent noise",
    ("E", "log A", "alpha"),
    _sum_of_powers,
    _sum_starts,
    _sum_bounds,
    _sum_published,
)
JOINT = Form(
    "joint",
    "E + A N^-alpha + B D^-beta",
    "Hoffmann et al. 2022; the form of the reported law, here with independent noise",
    ("E", "log A", "alpha", "log B", "beta"),
    _sum_of_powers,
    _sum_starts,
    _sum_bounds,
    _sum_published,
)


def _m4_log_loss(theta, z, center):
    """Solves (L - E) / (L0 - L)^alpha = A x^-c for L = E + (L0 - E) s(t), s the logistic function.

    Its logarithm, log s(t) - alpha log s(-t), rises with t at a rate between 1 and alpha, so that
    Newton's method converges.
    """
    floor, alpha = theta[:, :1], np.exp(theta[:, 2:3])
    reach = np.maximum(np.exp(theta[:, 1:2]) - floor, 1e-12)
    target = theta[:, 3:4] - theta[:, 4:5] * z[:, 0] - (1 - alpha) * np.log(reach)
    t = np.where(target < 0, target, target / alpha)
    for _ in range(NEWTON_ITERATIONS):
        below = np.log1p(np.exp(-np.abs(t))) + np.maximum(t, 0)  # -log s(-t)
        error = t - below + alpha * below - target
        share = np.exp(-below)
        t -= error / (share + alpha * (1 - share))
        if np.all(np.abs(error) < NEWTON_TOLERANCE):
            break
    return np.log(floor + reach / (1 + _exp(-t)) + 1e-300)


def _m4_starts(law, z):
    floor, log_a, alpha = law
    largest = floor + np.exp(log_a - alpha * z[0, 0])
    return [
        # At the middle the law holds: L - E = exp(log_a).
        [floor, limit, log_power, log_a - np.exp(log_power) * np.log(rest), alpha]
        for factor, log_power in itertools.product((1.3, 4.0), (-2.0, 0.0))
        for limit in [np.log(factor * largest)]
        for rest in [factor * largest - floor - np.exp(log_a)]
    ]


M4 = Form(
    "m4",
    "(L - E) / (L0 - L)^alpha = A x^-c",
    "Alabdulmohsin et al. 2022",
    ("E", "log L0", "log alpha", "log A", "c"),
    _m4_log_loss,
    _m4_starts,
    lambda most, z: (
        [0.0, np.log(most), np.log(1e-2), -LARGEST, ALPHA_RANGE[0]],
        [most, np.log(HIGHEST_LIMIT * most), np.log(10.0), LARGEST, ALPHA_RANGE[1]],
    ),
    lambda theta, center: {
        "E": theta[0],
        "L0": float(np.exp(theta[1])),
        "alpha": float(np.exp(theta[2])),
        "A": float(_exp(theta[3] + theta[4] * center[0])),
        "c": theta[4],
    },
)


def _broken_log_loss(theta, z, center):
    floor, log_b, c0, c1, log_d, log_f = (theta[:, i, None] for i in range(6))
    width = np.exp(log_f)
    beyond = width * np.logaddexp(0, np.clip((z[:, 0] - log_d) / width, -LARGEST, LARGEST))
    return np.log(floor + _exp(log_b - c0 * z[:, 0] - c1 * beyond) + 1e-300)


def _broken_starts(law, z):
    floor, log_a, alpha = law
    places = z[0, 0] + np.ptp(z[:, 0]) * np.array([0.25, 0.5, 0.75])
    return [
        [share * floor, np.log(np.exp(log_a) + (1 - share) * floor), alpha * share, bend, at, -1.0]
        for share in (1.0, 0.5)
        for bend in (-0.05, 0.05)
        for at in places
    ]


BROKEN = Form(
    "broken",
    "E + b x^-c0 (1 + (x / d)^(1 / f))^(-c1 f)",
    "Caballero et al. 2022, one break",
    ("E", "log b", "c0", "c1", "log d", "log f"),
    _broken_log_loss,
    _broken_starts,
    lambda most, z: (
        [0.0, -LARGEST, -BEND, -BEND, z[0, 0], np.log(BREAK_WIDTHS[0])],
        [most, LARGEST, ALPHA_RANGE[1], ALPHA_RANGE[1], z[1, 0], np.log(BREAK_WIDTHS[1])],
    ),
    lambda theta, center: {
        "E": theta[0],
        "b": float(_exp(theta[1] + theta[2] * center[0])),
        "c0": theta[2],
        "c1": theta[3],
        "d": float(_exp(theta[4] + center[0])),
        "f": float(np.exp(theta[5])),
    },
)


def _size_exponent_log_loss(theta, z, center):
    floor, log_a, alpha, log_b, log_beta, kappa = (theta[:, i, None] for i in range(6))
    exponent = _exp(log_beta + kappa * z[:, 0])
    return np.log(floor + _exp(log_a - alpha * z[:, 0]) + _exp(log_b - exponent * z[:, 1]) + 1e-300)


SIZE_EXPONENT = Form(
    "size_exponent",
    "E + A N^-alpha + B (D / D0)^(-beta (N / N0)^kappa), N0 and D0 the runs' geometric means",
    "reduced from Li et al. 2025 (Farseer)",
    ("E", "log A", "alpha", "log B", "log beta", "kappa"),
    _size_exponent_log_loss,
    lambda law, z: [
        [*row[:4], np.log(row[4]), kappa] for row in _sum_starts(law, z) for kappa in (-0.3, 0, 0.3)
    ],
    lambda most, z: (
        [0.0, -LARGEST, ALPHA_RANGE[0], -LARGEST, np.log(ALPHA_RANGE[0]), -BEND],
        [most, LARGEST, ALPHA_RANGE[1], LARGEST, np.log(ALPHA_RANGE[1]), BEND],
    ),
    lambda theta, center: {
        "E": theta[0],
        "A": float(_exp(theta[1] + theta[2] * center[0])),
        "alpha": theta[2],
        "B": float(_exp(theta[3])),
        "beta": float(np.exp(theta[4])),
        "kappa": theta[5],
        "N0": float(np.exp(center[0])),
        "D0": float(np.exp(center[1])),
    },
)


def _bent(row, z):
    """Returns c + a (exp(b z) - 1) / b, which is a N^b + c in a parametrization that b = 0 has."""
    offset, slope, bend = (row[:, i, None] for i in range(3))
    safe = np.where(np.abs(bend) < 1e-6, 1e-6, bend)
    return offset + slope * np.expm1(np.clip(safe * z, -50, 50)) / safe


def _farseer_log_loss(theta, z, center):
    exponent = _exp(_bent(theta[:, 6:9], z[:, 0]))
    limit = np.clip(_bent(theta[:, 0:3], z[:, 0]), -LARGEST, LARGEST)
    # The amplitude is that at one token; its fitted offset is moved to the middle of the runs.
    amplitude = _bent(theta[:, 3:6], z[:, 0]) + np.exp(theta[:, 6:7]) * center[1]
    return np.logaddexp(limit, amplitude - exponent * (z[:, 1] + center[1]))


def _farseer_starts(law, z):
    rows = []
    for floor, log_a, alpha, log_b, beta in _sum_starts(law, z)[:3]:
        part = np.exp(log_a)
        limit = floor + part
        # Its bends have several optima: few sizes leave them nearly undetermined.
        for kappa, *bends in itertools.product((-0.1, 0.1), (0.1, -0.5), (0.1, -0.5)):
            first = [np.log(limit), -alpha * part / limit, -alpha * floor / limit]
            rows.append([*first, log_b, 0.0, bends[0], np.log(beta), kappa, bends[1]])
    return rows


def _farseer_published(theta, center):
    parameters = {}
    for i in range(3):
        offset, slope, bend = theta[3 * i : 3 * i + 3]
        bend = bend if abs(bend) >= 1e-6 else 1e-6
        a = slope / bend
        if i == 1:
            offset += np.exp(theta[6]) * center[1]
        parameters |= {
            f"a{i + 1}": float(a * _exp(-bend * center[0])),
            f"b{i + 1}": float(bend),
            f"c{i + 1}": float(offset - a),
        }
    return parameters


FARSEER = Form(
    "farseer",
    "exp(a1 N^b1 + c1) + exp(a2 N^b2 + c2) D^(-exp(a3 N^b3 + c3))",
    "Li et al. 2025 (Farseer)",
    tuple(f"{name}{i}" for i in (1, 2, 3) for name in ("offset", "slope", "bend")),
    _farseer_log_loss,
    _farseer_starts,
    lambda most, z: ([-20.0, -BEND, -1.0] * 3, [20.0, BEND, 1.0] * 3),
    _farseer_published,
)

FORMS = {1: (POWER, FLOOR, M4, BROKEN), 2: (JOINT, SIZE_EXPONENT, FARSEER)}
REPORTED = {1: FLOOR, 2: JOINT}  # the forms of the reported laws, by the number of inputs
