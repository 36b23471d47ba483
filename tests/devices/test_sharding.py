"""From names of parameter axes to shardings, and parameters that stay whole on every device."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, PartitionSpec

from var_jax.devices import sharding
from var_jax.errors import UserError


def mesh(data, model):
    return jax.make_mesh((data, model), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def boxed(shape, names):
    return {
        "layer": {
            "kernel": nn.LogicallyPartitioned(jax.ShapeDtypeStruct(shape, jnp.float32), names)
        }
    }


def test_spec_maps_names_to_mesh_axes():
    """Each name of a parameter's axis becomes the mesh axis of its rule, and the layers, which the
    rules do not split, become None."""
    assert sharding.spec(("layers", "embed", "mlp")) == PartitionSpec(None, "data", "model")


def test_spec_names_an_unmapped_axis_and_the_closest_one():
    """A name without a rule is an error, and the message has the closest name that has one."""
    with pytest.raises(ValueError, match="'embedd' has no rule; did you mean 'embed'"):
        sharding.spec(("embedd",))


def test_spec_refuses_two_names_of_one_mesh_axis():
    """Two axes of one parameter cannot be split over the same mesh axis, so that "heads" and "mlp"
    together are an error."""
    with pytest.raises(ValueError, match="collide"):
        sharding.spec(("heads", "mlp"))


def test_shardings_replicate_a_dimension_along_an_axis_that_does_not_divide_it():
    """Six rows over four devices stay whole, the columns are divided, and the cost is that of three
    more parts."""
    tree = boxed((6, 8), ("embed", "mlp"))
    assert sharding.shardings(tree, mesh(4, 2))["layer"]["kernel"].spec == PartitionSpec(
        None, "model"
    )
    assert sharding.undivided_parameters(tree, {"data": 4, "model": 2}) == {
        "layer/kernel": 6 * 8 * 4 // 2 - 6 * 8 * 4 // 8
    }
    assert sharding.undivided_parameters(tree, {"data": 3, "model": 2}) == {}


def test_whole_share_counts_what_every_device_holds():
    """A parameter that one axis divides is not whole, one that none divides is."""
    tree = boxed((6, 8), ("embed", "mlp")) | {
        "bias": nn.LogicallyPartitioned(jax.ShapeDtypeStruct((16,), jnp.float32), ("embed",))
    }
    assert sharding.replicated_share(tree, {"data": 4, "model": 2}) == 0
    assert sharding.replicated_share(tree, {"data": 5, "model": 1}) == 1
    assert sharding.replicated_share(tree, {"data": 6, "model": 1}) == 16 / (48 + 16)


@pytest.mark.parametrize("rows", [8, 6, 1])
def test_constrain_leaves_whole_what_an_axis_does_not_divide(rows):
    """An activation whose size is no multiple of its axis is placed whole instead of being
    refused."""
    with jax.set_mesh(mesh(4, 2)):
        x = jax.jit(
            lambda: sharding.constrain(jnp.zeros((rows, 3, 2)), "batch", "tokens", "act_heads")
        )()
    assert x.sharding.shard_shape(x.shape) == (rows // 4 if rows % 4 == 0 else rows, 3, 1)


def test_shardings_split_a_parameter():
    """8 x 6 values over a 4 x 2 mesh are 2 x 3 on each device."""
    place = sharding.shardings(boxed((8, 6), ("embed", "mlp")), mesh(4, 2))["layer"]["kernel"]
    assert place.shard_shape((8, 6)) == (2, 3)


def test_constrain_is_the_identity_without_a_mesh_and_shards_with_one():
    """Without a mesh the very same array is returned, and on a mesh of eight devices each device
    holds one of eight rows."""
    x = jnp.zeros((8, 4))
    assert sharding.constrain(x, "batch", None) is x
    with jax.set_mesh(mesh(8, 1)):
        y = jax.jit(lambda x: sharding.constrain(x, "batch", None))(x)
    assert y.sharding.shard_shape(y.shape) == (1, 4)


def places(data, model, **shapes):
    """Shardings and abstract values of parameters {name: (shape, logical names)}."""
    tree = {
        name: nn.LogicallyPartitioned(jax.ShapeDtypeStruct(shape, jnp.float32), names)
        for name, (shape, names) in shapes.items()
    }
    return sharding.shardings(tree, mesh(data, model)), nn.meta.unbox(tree), mesh(data, model)


LAYERS = {
    "kernel": ((8, 24), ("embed", "mlp")),
    "table": ((10, 8), ("levels", None)),
    "bias": ((8,), (None,)),
}


def test_require_sharded_allows_a_small_share():
    """88 of 280 values are whole on each device, less than the share that is allowed."""
    sharding.require_sharded(*places(4, 2, **LAYERS), largest_share=0.4)  # 88 of 280


def test_require_sharded_does_not_count_what_is_excused():
    """Without the excused table, only 8 of 280 values are replicated."""
    sharding.require_sharded(*places(4, 2, **LAYERS), largest_share=0.1, excused=["table"])


def test_require_sharded_names_the_largest_parameters_first():
    """The error has the share of the parameters that every device holds, the largest of these
    parameters first, and the mesh."""
    output = (
        r"31% of .* each of 8 devices, more than 30%; "
        r"the largest: table \(320 bytes\), bias \(32 bytes\); "
        "the mesh is data=4, model=2"
    )
    with pytest.raises(UserError, match=output):
        sharding.require_sharded(*places(4, 2, **LAYERS), largest_share=0.3)


def test_require_sharded_counts_no_axis_of_one_device():
    """On a 1 x 8 mesh, `embed` names the axis of one device and divides nothing."""
    shardings = {"kernel": ((8, 24), ("embed", None)), "gate": ((8,), ("mlp",))}
    with pytest.raises(UserError, match="96% of .*: kernel"):
        sharding.require_sharded(*places(1, 8, **shardings), largest_share=0.5)


def test_require_sharded_allows_one_device():
    """A single device holds everything, whatever share is allowed."""
    one = jax.make_mesh(
        (1, 1), ("data", "model"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:1]
    )
    abstract = {"kernel": jax.ShapeDtypeStruct((8,), jnp.float32)}
    sharding.require_sharded(
        {"kernel": jax.NamedSharding(one, PartitionSpec())}, abstract, one, largest_share=0.0
    )


@pytest.mark.parametrize(("images", "held"), [(16, 2), (8, 1), (4, 1), (12, 3), (6, 6)])
def test_images_lie_over_as_many_axes_as_divide_them(images, held):
    """16, 8, 4, 12 and 6 images on a 4 x 2 mesh: both axes, one axis or none divide them."""
    with jax.set_mesh(mesh(4, 2)):
        x = jax.jit(lambda: sharding.constrain(jnp.zeros((images, 3)), "images", None))()
    assert x.sharding.shard_shape(x.shape) == (held, 3)
