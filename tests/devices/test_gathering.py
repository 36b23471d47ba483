"""Sums of gradients in parts: their values, and the forms that TPUs reduce-scatter."""

import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from var_jax.config.train import MeshConfig
from var_jax.devices import gathering
from var_jax.devices.mesh import make_mesh


@pytest.mark.parametrize(
    ("rows", "columns", "expected"),
    [
        (120, 7680, 7680),  # 15 x 60 tiles
        (120, 5760, 6144),  # 15 x 45, and with them 15 x 48
        (96, 1536, 1536),  # 12 tiles of rows are a multiple of four with any columns
        (80, 1300, 1536),  # 10 x 12, the next even number above 10.2
        (8, 1024, 1024),
        (15, 5760, None),
    ],
)
def test_columns_of_tiles_make_a_multiple_of_four(rows, columns, expected):
    """The cases of d30 on rings of 16 chips, whose reduce-scatters the compiler keeps with them
    alone, and those around them."""
    assert gathering.columns_of_tiles(rows, columns) == expected
    if expected:
        assert rows * expected % (4 * 8 * 128) == 0


@pytest.fixture
def on_tpu(monkeypatch):
    """Sums take the form for TPUs, with tiles so small that weights of a test consist of some."""
    monkeypatch.setattr(gathering, "target", types.SimpleNamespace(platform=lambda: "tpu"))
    monkeypatch.setattr(gathering, "TILE", (2, 4))


@pytest.mark.parametrize(
    ("names", "shape", "terms", "columns"),
    [
        (("embed", "qkv", "heads"), (32, 3, 6), ("rw", "rnh", "wnh"), {8: 24, 4: 20}),
        (("heads", "head_dim", "embed"), (3, 6, 32), ("rhd", "rw", "hdw"), {8: 24, 4: 20}),
        (("mlp", "embed"), (16, 32), ("rm", "rw", "mw"), {8: 16, 4: 16}),
    ],
)
@pytest.mark.parametrize("mesh", [MeshConfig(8, 1), MeshConfig(8, 1, policy="hsdp", replicas=2)])
@pytest.mark.usefixtures("on_tpu")
def test_divided_sum_in_the_form_of_tpus_is_exact(mesh, names, shape, terms, columns):
    """The sum over all rows of products of small integers, which float32 holds exactly, is that of
    one device, and reduce-scatters are of matrices of whole tiles, four and their multiples per
    part: `columns` by the number of parts, reckoned by hand."""
    left, right, kernel = terms
    sizes = dict(zip(kernel, shape, strict=True)) | {"r": 16}
    operands = [
        np.random.default_rng(i).integers(-3, 4, [sizes[letter] for letter in term])
        for i, term in enumerate((left, right))
    ]
    operands = [jnp.asarray(values, jnp.float32) for values in operands]

    def product(x, y):
        return jnp.einsum(f"{left},{right}->{kernel}", x, y)

    with jax.set_mesh(make_mesh(mesh)), gathering.under("zero1"):
        plan = gathering.plan(names, shape, 16)
        assert plan is not None
        step = jax.jit(lambda *xs: plan.divided_sum(product, terms, xs))
        compiled = step.lower(*operands).compile()
        result = compiled(*operands)
    np.testing.assert_array_equal(result, product(*operands))
    scattered = re.findall(r"= f32\[([\d,]+)\]\S* reduce-scatter(?:-start)?\(", compiled.as_text())
    parts = 8 // max(mesh.replicas, 1)
    assert scattered == [f"{32 // parts},{columns[parts]}"]
