"""Corrects IsoFLOP minima for the bias of their parabolas.

Loss over log size is no parabola: it rises by one power of size on one side and by another on the
other. So the minimum of a parabola is off even without noise, the more so the wider the grid of
sizes, the farther the optimum from its center, and the more the two exponents differ. How far is
known where a joint law of size and tokens describes the runs: the same parabolas are fitted to the
losses that this law has at the same sizes and budgets, and their minima compared with the law's own
optimum.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from var_jax.scaling import frontier, solver
from var_jax.scaling.frontier import Cost, Curve
from var_jax.scaling.solver import Array

UNCORRECTED = (
    "isoflop-uncorrected: no joint law of size and tokens is determined, so the bias of these "
    "minima is not known"
)
SHARED_RUNS = (
    "isoflop-shared-runs: these minima lie at compute between the runs' own and share runs, so the "
    "exponent's interval, which takes them for independent, is too short"
)
OTHER_FORM = (
    "isoflop-uncorrected: another form predicts the largest sizes better than the joint law, so "
    "the bias of these minima is not known"
)
MISFIT = (
    "isoflop-uncorrected: the joint law does not describe the runs (lack-of-fit), so the bias of "
    "these minima is not known"
)


def corrected(
    iso: dict,
    curves: Sequence[Curve],
    theta: Float[Array, " 5"] | None,
    cost: Cost | None,
    reason: str = UNCORRECTED,
) -> dict:
    """Returns the IsoFLOP analysis with minima that are divided by the bias of their parabolas.

    Each minimum then has its "bias" (the parabola's size over the optimal one, less 1) and the
    parabola's own "parabola_params" and "parabola_loss". "exponent" is that of the corrected
    minima, with the parabolas' as its "parabola". A level where the law's losses have no minimum by
    the same rules stays as it is, with a bias of None. "warnings" says how large the bias is.

    Args:
      iso: what `frontier.isoflop` returns for the curves.
      theta: the joint law in raw units, or None without one.
      cost: training FLOPs per token, or None if they are not known.
      reason: the warning where minima are left as they are for want of a law.
    """
    notes = [SHARED_RUNS] if iso["interpolated"] and iso["exponent"] else []
    if theta is None or cost is None or cost.slope <= 0:
        return {**iso, "warnings": [reason, *notes] if iso["minima"] else notes}
    of_law = frontier.isoflop([_curve_of_law(curve, theta, cost) for curve in curves])
    minima_of_law = {minimum["compute"]: minimum for minimum in of_law["minima"]}
    minima = []
    for minimum in iso["minima"]:
        compute = minimum["compute"]
        parabola = {f"parabola_{name}": minimum[name] for name in ("params", "loss")}
        if compute not in minima_of_law:
            minima.append({**minimum, **parabola, "bias": None})
            continue
        best = frontier.optimum(theta[None], cost, compute)[0]
        lowest = float(solver.predict(theta[None], np.log(best)[None])[0, 0])
        ratio = minima_of_law[compute]["params"] / float(best[0])
        params = minimum["params"] / ratio
        loss = minimum["loss"] * lowest / minima_of_law[compute]["loss"]
        values = {"compute": compute, "params": params, "loss": loss}
        minima.append({**values, **parabola, "bias": ratio - 1})
    exponent = frontier.optimal_size_law(minima)
    if exponent is not None:
        exponent["parabola"] = iso["exponent"]["value"]
    warnings = [*_warnings(minima, exponent), *notes]
    return {**iso, "minima": minima, "exponent": exponent, "warnings": warnings}


def _curve_of_law(curve: Curve, theta: Float[Array, " 5"], cost: Cost) -> Curve:
    """Returns the curve with the losses that the joint law has at its points."""
    tokens = curve.compute / cost.per_token(np.array(curve.params))
    logx = np.log(np.stack([np.full_like(tokens, curve.params), tokens], axis=1))
    return dataclasses.replace(curve, loss=solver.predict(theta[None], logx)[0])


def _warnings(minima: list[dict], exponent: dict | None) -> list[str]:
    biases = [abs(minimum["bias"]) for minimum in minima if minimum["bias"] is not None]
    unknown = len(minima) - len(biases)
    warnings = []
    if biases:
        text = f"isoflop-bias: parabolas miss the optimal size by up to {max(biases):.1%}"
        if exponent is not None:
            text += f" and its exponent by {exponent['parabola'] - exponent['value']:+.3f}"
        warnings.append(f"{text} even without noise; the values are corrected for it")
    if unknown:
        warnings.append(
            f"isoflop-uncorrected: at {unknown} of {len(minima)} budgets the joint law has no "
            "minimum to compare with, and the parabola's is given"
        )
    return warnings
