"""Fits any form of a law to the points of a sample, and draws noisy copies of their losses."""

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy import special

from var_jax.scaling import curve_fit, laws, whitening
from var_jax.scaling.forms import Form
from var_jax.scaling.select_runs import Sample
from var_jax.scaling.solver import Array
from var_jax.scaling.whitening import Whitening

REFIT_ITERATIONS = 8  # of a refit to noisy losses, which starts at the form's fit
SMALLEST_NOISE = 1e-8  # losses are written with about seven digits
OUTLIER, OUTLIER_ITERATIONS = 4.0, 4
MOST_SHARED = 0.95
CLEAR_SHARE = 0.05  # probability below which a form's residuals show that runs share noise


class Points(NamedTuple):
    """The points that forms are fitted to.

    Attributes:
      z: centered log inputs.
      center: the mean log inputs of the points that forms are fitted to.
      logy: log losses.
      weights: weights of the points; a run that the law's likelihood takes for an outlier has less,
        and so has a run whose size it takes for noisy.
      inside: the points that forms are fitted to; the others are left out.
      near: the law of those points, [E, log A, alpha, ...] of centered inputs.
      share: fraction of the noise's variance that runs of one size have in common.
      whitening: the map by which fits make such noise independent, or None where they are by
        squares of single runs.
      floor: a fixed value of E, or None where it is fitted.
    """

    z: Float[Array, "n j"]
    center: Float[Array, " j"]
    logy: Float[Array, " n"]
    weights: Float[Array, " n"]
    inside: Bool[Array, " n"]
    near: Float[Array, " p"]
    share: float
    whitening: Whitening | None
    floor: float | None

    def free(self, form: Form) -> int:
        """Number of parameters of the form that are fitted."""
        return len(form.names) - (form.has_floor and self.floor is not None)


def points(
    sample: Sample,
    inside: Bool[Array, " n"],
    fit: laws.Fit,
    noise: float,
    nu: float,
    floor: float | None,
) -> Points:
    """Returns the points of which the kept ones have this law and noise.

    Args:
      inside: the points that are kept.
      fit: the law of the kept points.
      noise: standard deviation of their log losses.
      nu: degrees of freedom of that noise.
      floor: a fixed value of E, or None where it is fitted.
    """
    logx, logy = np.log(sample.x), np.log(sample.y)
    center = logx[inside].mean(axis=0)
    weights, precision, share = sample.weights.astype(float), np.ones(len(logy)), 0.0
    if fit.whitening is not None:
        share = float(fit.whitening.share)
        # As for predictions, the noise beyond the runs is that of the last.
        size = np.clip(logx[:, 0], logx[inside, 0].min(), logx[inside, 0].max()) - center[0]
        precision = np.exp(fit.whitening.exponent * size)
    if np.isfinite(nu):
        off = (logy - np.log(fit.predict(sample.x))) * precision / max(noise, SMALLEST_NOISE)
        weights = weights * (nu + 1) / (nu + off**2)
    # The weights of the kept points still add up to their number.
    weights = (
        weights * precision**2 * weights[inside].sum() / (weights * precision**2)[inside].sum()
    )
    z, near = logx - center, laws.shift(fit.theta, -center)
    return Points(z, center, logy, weights, inside, near, share, None, floor)


@dataclasses.dataclass(frozen=True)
class FittedForm:
    """A form that is fitted to the kept points.

    Attributes:
      theta: its parameters, of centered inputs.
    """

    form: Form
    points: Points
    theta: Float[Array, " p"]

    def log_loss(self, logx: Float[Array, "m j"]) -> Float[Array, " m"]:
        """Returns the log losses that it has at log inputs."""
        return self._of_rows(self.theta[None], logx)[0]

    def _of_rows(self, theta: Float[Array, "r p"], logx: Float[Array, "m j"]):
        center = self.points.center
        return self.form.log_loss(theta, logx - center, center)

    def slopes(self, logx: Float[Array, "m j"]) -> Float[Array, "m p"]:
        """Returns the derivatives of log losses by the parameters, by central differences.

        A parameter at its bound is no degree of freedom and has none.
        """
        lower, upper = bounds(self.form, self.points)
        step = 1e-5 * np.maximum(np.abs(self.theta), 1.0)
        is_free = (self.theta - step > lower) & (self.theta + step < upper)
        change = (step * np.eye(len(step)))[is_free]
        above, below = (self._of_rows(self.theta + sign * change, logx) for sign in (1, -1))
        return ((above - below) / (2 * step[is_free, None])).T

    @property
    def residuals(self) -> Float[Array, " n"]:
        """Measured minus predicted log losses of all points."""
        return self.points.logy - self.log_loss(self.points.z + self.points.center)

    def refits(self, copies: Float[Array, "d n"]) -> Float[Array, "d p"]:
        """Returns the parameters that fit noisy copies of the losses."""
        inside = self.points.inside
        ends, _ = curve_fit.solve(
            self._function,
            self._mapped(copies[:, inside]),
            self.points.weights[inside],
            np.tile(self.theta, (len(copies), 1)),
            bounds(self.form, self.points),
            REFIT_ITERATIONS,
        )
        return ends

    def _function(self, theta: Float[Array, "r p"]) -> Float[Array, "r k"]:
        z = self.points.z[self.points.inside]
        return self._mapped(self.form.log_loss(theta, z, self.points.center))

    def _mapped(self, rows: Float[Array, "r k"]) -> Float[Array, "r k"]:
        """Returns values of the kept points such that their noise is independent."""
        maps = self.points.whitening
        return rows if maps is None else maps(rows)

    def of_copies(
        self, copies: Float[Array, "d n"], logx: Float[Array, "m j"]
    ) -> Float[Array, "d m"]:
        """Returns the log losses at log inputs that refits to noisy copies have."""
        return self._of_rows(self.refits(copies), logx)

    @property
    def noise(self) -> tuple[float, float]:
        """Standard deviation of a point of weight one about the form, and its degrees of freedom.

        The form is fitted to all points.
        """
        weights, maps = self.points.weights, self.points.whitening
        runs = float(weights.sum())
        r = self._mapped(self.residuals[None])[0]
        unit = 1.0 if maps is None else maps.unit
        squares = max(float(np.sum(weights * r**2)), runs * SMALLEST_NOISE**2)
        freedom = max(runs - self.points.free(self.form), 1.0)
        return unit * float(np.sqrt(squares / freedom)), freedom

    def freedom_at(self, logx: Float[Array, "1 j"]) -> float:
        """Returns the degrees of freedom that the variance of the log loss there has.

        Where runs of one size share noise, what sizes tell is known from their number alone.
        """
        freedom, maps = self.noise[1], self.points.whitening
        if maps is None:
            return freedom
        jacobian = self.slopes(self.points.z + self.points.center)
        own = whitening.satterthwaite(maps, jacobian, self.slopes(logx))
        return float(min(own[0], freedom))

    def copies(self, draws: int, seed: int, *, is_scaled: bool = True) -> Float[Array, "d n"]:
        """Returns draws of all log losses around the form, with noise of the size that it leaves.

        Where the law's likelihood takes small runs for noisier, or noise for common to runs of one
        size, so do the copies.

        Args:
          is_scaled: whether the size of the noise varies as it is known, by its degrees of freedom.
        """
        points, rng = self.points, np.random.default_rng(seed)
        noise, freedom = self.noise
        normal = rng.normal(size=(draws, len(points.logy)))
        if points.share:
            sizes, owner = np.unique(np.round(points.z[:, 0], 6), return_inverse=True)
            common = rng.normal(size=(draws, len(sizes)))[:, owner]
            normal = points.share**0.5 * common + (1 - points.share) ** 0.5 * normal
        scale = np.full((draws, 1), noise)
        if is_scaled:
            scale = scale * np.sqrt(freedom / rng.chisquare(freedom, size=(draws, 1)))
        curve = points.logy - self.residuals
        return curve + normal * scale / np.sqrt(np.maximum(points.weights, 1e-6))


def fit(form: Form, points: Points, near: Float[Array, " p"] | None = None) -> FittedForm:
    """Returns the form with its best parameters on the kept points.

    Args:
      near: parameters to start from, or None for the starts of the form.
    """
    starts = np.array(form.starts(points.near, _ends(points)) if near is None else [near], float)
    unfitted = FittedForm(form, points, starts[0])
    ends, costs = curve_fit.solve(
        unfitted._function,
        unfitted._mapped(points.logy[None, points.inside])[0],
        points.weights[points.inside],
        starts,
        bounds(form, points),
    )
    return dataclasses.replace(unfitted, theta=ends[int(np.argmin(costs))])


def fit_by_own_noise(form: Form, points: Points, counts: Float[Array, " n"]) -> FittedForm:
    """Returns the form with the noise that its own residuals show, fitted to all points.

    Where the law is of a wrong form, the noise that its likelihood chose is in part what that form
    leaves over. This noise is normal and of one size, but that points farther than `OUTLIER` robust
    standard deviations weigh less; a part of it is common to runs of one size where an analysis of
    variance of the residuals is clear (at `CLEAR_SHARE`), and the fit is then by generalized least
    squares.

    Args:
      counts: the weight that each point has as a run.
    """
    fitted = fit(form, points._replace(weights=counts, share=0.0))
    for _ in range(OUTLIER_ITERATIONS):
        weights = counts * _inlying(fitted)
        fitted = fit(form, fitted.points._replace(weights=weights), fitted.theta)
    share = _share(fitted)
    if not share:
        return fitted
    maps = whitening.independent(points.z, np.ones(len(counts)))
    maps = dataclasses.replace(maps, share=np.array(share))
    return fit(form, fitted.points._replace(share=share, whitening=maps), fitted.theta)


def _inlying(fitted: FittedForm) -> Float[Array, " n"]:
    """Returns the weights of points by how far they lie from the form: 1, or less for outliers."""
    r = np.abs(fitted.residuals)
    runs = len(r) / max(len(r) - fitted.points.free(fitted.form), 1)
    scale = max(1.4826 * float(np.median(r)) * np.sqrt(runs), SMALLEST_NOISE)
    return np.minimum(1.0, (OUTLIER * scale / np.maximum(r, SMALLEST_NOISE)) ** 2)


def _share(fitted: FittedForm) -> float:
    """Returns the fraction of the residuals' variance that runs of one size have in common.

    E and a term of the size use up as many as three of the sizes' means.
    """
    r, z = fitted.residuals * np.sqrt(fitted.points.weights), fitted.points.z[:, 0]
    _, owner = np.unique(np.round(z, 6), return_inverse=True)
    runs = np.bincount(owner)
    between, within = len(runs) - 3, len(r) - len(runs)
    if between < 1 or within < 1:
        return 0.0
    means = np.bincount(owner, r) / runs
    of_sizes = float(np.sum(runs * means**2)) / between
    of_runs = max(float(np.sum((r - means[owner]) ** 2)) / within, SMALLEST_NOISE**2)
    if special.fdtrc(between, within, of_sizes / of_runs) > CLEAR_SHARE:
        return 0.0
    common = (of_sizes - of_runs) / float(np.mean(runs))
    return min(common / (common + of_runs), MOST_SHARED)


def bounds(form: Form, points: Points) -> tuple[Float[Array, " p"], Float[Array, " p"]]:
    """Returns the lowest and highest parameters on the kept points."""
    most = float(np.exp(points.logy[points.inside].max()))
    lower, upper = map(np.array, form.bounds(most, _ends(points)))
    if form.has_floor:
        lower[0], upper[0] = (lower[0], most) if points.floor is None else (points.floor,) * 2
    return lower, upper


def _ends(points: Points) -> Float[Array, "2 j"]:
    z = points.z[points.inside]
    return np.stack([z.min(axis=0), z.max(axis=0)])
