"""Checks options of the compiler before a run begins, as only the compiler knows which it has."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from var_jax.errors import UserError


def require_known(options: Mapping[str, str], mesh: Mesh):
    """Raises UserError for an option or value that the compiler of a mesh's devices does not take.

    A program of one number is compiled with each option alone.
    """
    replicated = NamedSharding(mesh, PartitionSpec())
    number = jax.ShapeDtypeStruct((), jnp.float32, sharding=replicated)
    for name, value in options.items():
        one = jax.jit(lambda x: x, compiler_options={name: value}).lower(number)
        try:
            one.compile()
        except jax.errors.JaxRuntimeError as error:
            platform = mesh.devices.flat[0].platform
            reason = str(error).splitlines()[0]
            raise UserError(
                f"mesh.compiler_options has {name}={value}, which the compiler for {platform} does "
                f"not take ({reason}); leave it out"
            ) from error
