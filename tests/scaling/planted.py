"""Planted laws: inputs, losses and the true [E, log A, alpha, ...]."""

import numpy as np

from var_jax.scaling import solver

SINGLE = (1.8, float(np.log(400)), 0.34)
JOINT = (1.82, float(np.log(478)), 0.347, float(np.log(2143)), 0.367)


def single(runs=10, noise=0.0, seed=0, theta=SINGLE, low=2e7, high=2e9):
    x = np.geomspace(low, high, runs)[:, None]
    return x, _losses(x, theta, noise, seed), theta


def joint(shape=(6, 5), noise=0.0, seed=0, theta=JOINT):
    axes = [np.geomspace(3e7, 3e9, shape[0]), np.geomspace(6e8, 6e10, shape[1])]
    x = np.stack([a.ravel() for a in np.meshgrid(*axes)], axis=1)
    return x, _losses(x, theta, noise, seed), theta


def _losses(x, theta, noise, seed):
    exact = solver.predict(np.array([theta]), np.log(x))[0]
    return exact * np.exp(noise * np.random.default_rng(seed).normal(size=len(x)))
