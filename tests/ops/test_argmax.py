"""The index of the largest number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from var_jax.devices import target
from var_jax.ops.argmax import argmax

ROWS = {
    "ties": [[1.0, 3.0, 3.0, 2.0], [0.0, 0.0, 0.0, 0.0]],
    "minus infinity": [[-np.inf, -np.inf, -np.inf, -np.inf], [-np.inf, -1.0, -np.inf, -2.0]],
    "NaN": [[1.0, np.nan, 5.0, np.nan], [np.nan, np.nan, np.nan, np.nan]],
}


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_argmax_is_that_of_numpy_in_both_forms(rows, dtype):
    """The two reductions of a CPU and the one of other devices give numpy's index: the first of
    equal numbers, and of NaN where there is one; by `vmap` too, and as int32."""
    x = jnp.array(rows, dtype)
    expected = np.argmax(np.asarray(x, np.float32), axis=-1)
    for result in (argmax(x), jax.jit(argmax)(x), jax.vmap(argmax)(x)):
        assert result.dtype == jnp.int32
        np.testing.assert_array_equal(result, expected)
    with target.tracing_for_other_devices():
        np.testing.assert_array_equal(jax.jit(lambda x: argmax(x))(x), expected)
