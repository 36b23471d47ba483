import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, PartitionSpec

from var_jax.errors import UserError
from var_jax.ops import partition


def mesh(data, model):
    return jax.make_mesh((data, model), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def boxed(shape, names):
    return {"layer": {"kernel": nn.LogicallyPartitioned(jax.ShapeDtypeStruct(shape, jnp.float32), names)}}


def test_names_become_mesh_axes():
    assert partition.spec(("layers", "embed", "mlp")) == PartitionSpec(None, "data", "model")


def test_an_unmapped_name_raises_with_the_closest_one():
    with pytest.raises(ValueError, match="'embedd' has no rule; did you mean 'embed'"):
        partition.spec(("embedd",))


def test_a_collision_raises():
    with pytest.raises(ValueError, match="collide"):
        partition.spec(("heads", "mlp"))


def test_a_dimension_that_does_not_divide_names_the_parameter_and_what_fits():
    with pytest.raises(UserError, match=r"layer/kernel has a dimension of 6, .* axis data=4 .* data=2 would fit"):
        partition.shardings(boxed((6, 8), ("embed", "mlp")), mesh(4, 2))


def test_shardings_split_the_parameter():
    sharding = partition.shardings(boxed((8, 6), ("embed", "mlp")), mesh(4, 2))["layer"]["kernel"]
    assert sharding.shard_shape((8, 6)) == (2, 3)


def test_constrain_is_the_identity_without_a_mesh_and_shards_with_one():
    x = jnp.zeros((8, 4))
    assert partition.constrain(x, "batch", None) is x
    with jax.set_mesh(mesh(8, 1)):
        y = jax.jit(lambda x: partition.constrain(x, "batch", None))(x)
    assert y.sharding.shard_shape(y.shape) == (1, 4)
