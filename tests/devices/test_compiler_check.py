"""Options of the compiler, which only the compiler knows: a wrong one is answered in one line."""

import jax
import pytest

from var_jax.config.train import MeshConfig
from var_jax.devices import compiler_check
from var_jax.devices.mesh import make_mesh
from var_jax.errors import UserError


def test_unknown_option_is_named():
    """The message names it and stays on one line; without options nothing is compiled."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    compiler_check.require_known({}, mesh)
    with pytest.raises(UserError, match="xla_bogus=1, which the compiler for cpu") as error:
        compiler_check.require_known({"xla_bogus": "1"}, mesh)
    assert "\n" not in str(error.value)
