"""Position and level embeddings for other token maps, as functions of the relative position."""

import dataclasses

import numpy as np
import pytest

from var_jax.config.model import TransformerConfig
from var_jax.config.scales import Scales
from var_jax.models import position_tables
from var_jax.ops import orders

BEFORE = TransformerConfig(depth=1, width=4, heads=1, scales=Scales.parse("1,2,3,4,6,8"))


def rescaled(scales: str, **changes) -> TransformerConfig:
    return dataclasses.replace(BEFORE, scales=Scales.parse(scales), **changes)


def tables(config: TransformerConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns random tables of a config's shapes."""
    random = np.random.RandomState(seed)
    rows = {
        "pos_start": config.scales.lengths[0],
        "pos_embed": config.scales.total,
        "level_embed": len(config.scales),
    }
    return {
        name: random.standard_normal((count, config.width)).astype(np.float32)
        for name, count in rows.items()
    }


def centers(side: int) -> np.ndarray:
    """Returns the relative positions of a side's token centers, from 0 to 1."""
    return (np.arange(side) + 0.5) / side


def test_resized_tables_of_the_same_scales_are_equal():
    """To the last bit, by the shortcut for equal scales and by the interpolation itself: every
    weight is 1 at the token's own position and 0 at all others."""
    params = tables(BEFORE)
    same = position_tables.resized(params, BEFORE, BEFORE)
    assert all(np.array_equal(same[name], params[name]) for name in params)
    assert np.array_equal(position_tables.level_weights(6, 6), np.eye(6))
    oblong = params["pos_embed"][:6]
    assert np.array_equal(position_tables.resized_map(oblong, (2, 3), (2, 3)), oblong)


def test_resized_scales_of_equal_sizes_stay_equal():
    """Where only the last maps grow, the tokens of the others keep their embeddings bit for bit."""
    params, after = tables(BEFORE), rescaled("1,2,3,4,9,12")
    changed = position_tables.resized(params, BEFORE, after)
    same = BEFORE.scales.offsets[4]
    assert np.array_equal(changed["pos_embed"][:same], params["pos_embed"][:same])
    assert np.array_equal(changed["level_embed"], params["level_embed"])
    assert changed["pos_embed"].shape == (after.scales.total, 4)
    assert changed["pos_embed"].dtype == np.float32


@pytest.mark.parametrize(
    "scales",
    ["1,2,3,4,6,9,12", "1,2x3,4x6,8x12", "1,2,3,4,6,8,12,16", "2x3,4x6,8x12", "8"],
)
def test_resized_constants_stay_constants(scales):
    """The weights of every new token sum to 1 over rows, columns and scales, for any number of
    scales."""
    constant = {name: np.full_like(table, 3.0) for name, table in tables(BEFORE).items()}
    changed = position_tables.resized(constant, BEFORE, rescaled(scales))
    after = tables(rescaled(scales))
    for name in position_tables.TABLES:
        assert changed[name].shape == after[name].shape
        np.testing.assert_allclose(changed[name], 3.0, rtol=1e-6)


def test_resized_ramp_stays_a_ramp():
    """A table that is linear in the relative row and column is so on the larger map, up to the
    error of the cubic kernel with a = -0.75, which is at most 0.5 s (1 - s) (1 - 2 s) < 0.05 of a
    token's distance at a share s between two tokens; only at the border, where the kernel reaches
    beyond the trained map, is it flat."""
    after = rescaled("1,2,3,4,6,9x12")
    row, column = np.meshgrid(centers(8), centers(8), indexing="ij")
    ramp = np.stack([row, column, row + 2 * column, 1 - row], axis=-1).reshape(64, 4)
    actual = position_tables.resized_map(ramp, (8, 8), (9, 12)).reshape(9, 12, 4)
    row, column = np.meshgrid(centers(9), centers(12), indexing="ij")
    expected = np.stack([row, column, row + 2 * column, 1 - row], axis=-1)
    inner = slice(2, -2), slice(2, -2)
    np.testing.assert_allclose(actual[inner], expected[inner], rtol=0, atol=3 * 0.05 / 8)
    params = tables(BEFORE)
    params["pos_embed"][-64:] = ramp
    changed = position_tables.resized(params, BEFORE, after)["pos_embed"]
    np.testing.assert_allclose(changed[-9 * 12 :], actual.reshape(-1, 4), rtol=1e-5)


def test_resized_levels_are_interpolated_by_relative_position():
    """Seven levels from six: the first and the last are trained ones, and the middle is, by the
    kernel's weights halfway between two, -3/32, 19/32, 19/32, -3/32."""
    levels = tables(BEFORE)["level_embed"]
    changed = position_tables.resized(tables(BEFORE), BEFORE, rescaled("1,2,3,4,6,8,12"))
    actual = changed["level_embed"]
    assert np.array_equal(actual[[0, -1]], levels[[0, -1]])
    np.testing.assert_allclose(actual[3], np.array([-3, 19, 19, -3]) / 32 @ levels[1:5], rtol=1e-5)


def test_resized_next_token_positions_follow_the_order():
    """The rows of a next-token model are those of its sequence: along a Z-curve they move to the
    same places of the larger map as in raster order."""
    raster = {"objective": "next_token", "order": "raster"}
    curve = {"objective": "next_token", "order": "zcurve"}
    table = tables(rescaled("4", **raster))["pos_embed"]
    expected = position_tables.resized_map(table, (4, 4), (6, 8))
    assert np.array_equal(
        position_tables.resized(
            {"pos_embed": table}, rescaled("4", **raster), rescaled("6x8", **raster)
        )["pos_embed"],
        expected.astype(np.float32),
    )
    along = {"pos_embed": table[orders.forward("zcurve", (4, 4))]}
    changed = position_tables.resized(along, rescaled("4", **curve), rescaled("6x8", **curve))
    back = changed["pos_embed"][orders.inverse(orders.forward("zcurve", (6, 8)))]
    assert np.array_equal(back, expected.astype(np.float32))


def test_resized_next_token_positions_follow_another_order_of_the_same_map():
    """With the map as it is and another order, every place keeps its row to the last bit: along the
    Z-curve the rows are those of the raster order at the places of the curve."""
    before = rescaled("4", objective="next_token", order="raster")
    after = dataclasses.replace(before, order="zcurve")
    table = tables(before)["pos_embed"]
    changed = position_tables.resized({"pos_embed": table}, before, after)["pos_embed"]
    assert np.array_equal(changed, table[orders.forward("zcurve", (4, 4))])
    assert not np.array_equal(changed, table)
