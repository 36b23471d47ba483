"""Fits the law of a sweep by the likelihood of its noise, and names that estimator.

The degrees of freedom of heavy tails, the growth of noise over sizes and the share that runs of one
size have in common (`noise`) are then those of the likelihood for intervals, bootstrap and plots:
they and the law are nearly uncorrelated, as the distribution is symmetric.
"""

import dataclasses

import numpy as np

from var_jax.scaling import laws, losses, noise, whitening
from var_jax.scaling.solver import Problem


def fit(p: Problem, floor: float | None = None, *, check: bool = True) -> laws.Fit:
    """Returns the most likely law, under the noise that the runs show.

    Its `loss` is the `losses.StudentT` that was chosen, and its `whitening` the runs' unequal or
    shared noise, if any.

    Args:
      p: the problem in raw units, without a batch axis; its loss is replaced.
      floor: a fixed value of E, or None to fit it.
      check: whether variable projection checks the optima, as in `laws.fit`.
    """
    p = dataclasses.replace(p, loss=losses.StudentT(), whitening=None)
    normal = laws.fit(p, floor, check=False)
    held = np.arange(p.parameters) < (floor is not None)
    centered, mean = laws.center(p)
    near = laws.shift(normal.theta, -mean)
    batch = dataclasses.replace(centered, logy=centered.logy[None])
    choice = noise.choose(batch, near[None, None], held)
    degrees, growth, share = (
        float(values[0]) for values in (choice.degrees, choice.growth, choice.share)
    )
    loss = losses.StudentT(degrees)
    if loss == normal.loss and not growth and not share:
        return laws.checked(p, normal, floor) if check else normal
    maps = None
    if growth or share:
        maps = dataclasses.replace(
            whitening.independent(p.logx, p.weights),
            growth=np.array(growth),
            share=np.array(share),
        )
    chosen = dataclasses.replace(p, loss=loss, whitening=maps)
    return laws.fit(chosen, floor, near=laws.shift(choice.theta, mean), check=check)


def describe(fit: laws.Fit, size: str = "size") -> str:
    """Returns the name of the estimator of values and intervals, for reports.

    Args:
      fit: a law by this estimator.
      size: name of the first input.
    """
    assert isinstance(fit.loss, losses.StudentT)
    text = "maximum likelihood, normal noise of log loss"
    if np.isfinite(fit.loss.freedom):
        text = (
            "maximum likelihood, Student's t noise of log loss with "
            f"{fit.loss.freedom:g} degrees of freedom"
        )
    if fit.whitening is None:
        return text
    if fit.whitening.growth:
        text += f", its standard deviation as {size}^{-fit.whitening.exponent:+.2f}"
    if fit.whitening.is_shared:
        share = f"{float(fit.whitening.share):.0%}"
        text += f", {share} of its variance common to runs of the same {size}"
    return text
