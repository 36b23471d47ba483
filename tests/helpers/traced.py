"""Counts over traced programs."""

import numpy as np
from jax.extend.core import jaxprs_in_params


def product_flops(jaxpr) -> int:
    """Returns the FLOPs of every matrix product of a traced program, loops counted as often as they
    run."""
    count = 0
    for equation in jaxpr.eqns:
        for inner in jaxprs_in_params(equation.params):
            count += equation.params.get("length", 1) * product_flops(inner)
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            summed = [equation.invars[0].aval.shape[axis] for axis in contracted]
            count += 2 * int(np.prod(summed)) * equation.outvars[0].aval.size
    return count
