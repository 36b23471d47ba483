"""Settings by scale: what a number, a ramp, a list and a preset mean, and how the command line
writes them."""

import re

import numpy as np
import pytest

from var_jax.config.scales import Scales
from var_jax.errors import UserError
from var_jax.sampling.settings import PRESETS, Ramp, parse, resolve, settings

SCALES = Scales.parse("1,2,3,4,5")
FID = {"cfg": 1.5, "top_k": 900, "top_p": 0.96, "temperature": 1.0, "ssg": 0.0, "smooth": False}


def resolved(**options):
    return resolve(SCALES, settings("fid", options))


def test_resolve_makes_a_number_constant_and_guidance_a_ramp():
    """One number means every scale, but for guidance, which grows from 0 to it, as in the published
    code."""
    result = resolved(cfg=2, top_k=7, top_p=0.5, temperature=2)
    np.testing.assert_allclose(result.cfg, [0, 0.5, 1, 1.5, 2])
    assert result[1:] == ((7,) * 5, (0.5,) * 5, (2.0,) * 5, (0.0,) * 5, False)


def test_guidance_of_a_single_scale_is_the_number():
    """A ramp from 0 would switch guidance off; an explicit ramp has its first number there."""
    single = Scales.parse("4")
    assert resolve(single, settings("fid", {})).cfg == (1.5,)
    assert resolve(single, settings("fid", {"cfg": 0})).cfg == (0,)
    assert resolve(single, settings("fid", {"cfg": [2.0]})).cfg == (2,)
    assert resolve(single, settings("fid", {"cfg": Ramp(0.5, 3)})).cfg == (0.5,)


def test_resolve_reads_ramps_and_lists():
    """Values per scale are those worked out by hand, and a number, its ramp and its list agree to
    the last bit of a float32."""
    result = resolved(
        cfg=Ramp(1, 3),
        top_k=Ramp(900, 603),
        top_p=[0, 0.1, 0.2, 1, 0.5],
        temperature=Ramp(1.5, 0.5),
        ssg=Ramp(1, 0),
    )
    np.testing.assert_allclose(result.cfg, [1, 1.5, 2, 2.5, 3])
    assert result.top_k == (900, 826, 752, 677, 603)
    np.testing.assert_allclose(result.top_p, [0, 0.1, 0.2, 1, 0.5])
    np.testing.assert_allclose(result.temperature, [1.5, 1.25, 1, 0.75, 0.5])
    np.testing.assert_allclose(result.ssg, [1, 0.75, 0.5, 0.25, 0])
    assert resolved(cfg=(0, 1, 0, 2, 0)).cfg == (0, 1, 0, 2, 0)
    for third in (
        1 / 3,
        0.1,
        7.3,
    ):  # a number, its ramp and its list are one to the last bit of a float32
        number, ramp = (np.float32(resolved(cfg=values).cfg) for values in (third, Ramp(0, third)))
        np.testing.assert_array_equal(number, ramp)
        by_program = [np.float32(third) * np.float32(k / 4) for k in range(5)]
        np.testing.assert_array_equal(number, by_program)
    for scalar in (np.float32(2), np.array(2.0)):
        np.testing.assert_allclose(resolved(cfg=scalar).cfg, [0, 0.5, 1, 1.5, 2])


def test_presets_are_what_the_published_code_samples_with():
    """Values put over a preset leave the preset itself as it is."""
    assert settings("fid", {}) == FID
    assert settings("greedy", {})["top_k"] == 1 and settings("pretty", {})["smooth"]
    assert settings("pretty", {"cfg": 2.0, "smooth": False}) == {
        "cfg": 2.0,
        "top_k": 900,
        "top_p": 0.95,
        "temperature": 1.0,
        "ssg": 0.0,
        "smooth": False,
    }
    assert PRESETS["fid"] == FID  # and are left alone by what is put over them


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"cfg": [1, 2]},
            "cfg is a list of 2; it must be of 5 numbers, one for each of the scales 1,2,3,4,5",
        ),
        ({"cfg": [0, 1, -1, 0, 0]}, "cfg at scale 2 is -1; it must be 0 (off) or more"),
        ({"cfg": Ramp(0, float("inf"))}, "cfg.last is inf"),
        ({"top_p": Ramp(2, 0)}, "top_p.first is 2"),
        ({"top_k": [1, 2, 3, 4, 0.5]}, "top_k at scale 4 is 0.5; it must be a whole number"),
        (
            {"top_k": Ramp(0, 9)},
            "top_k is a ramp from 0 to 9; it must be one between whole numbers of at least 1",
        ),
        (
            {"top_p": Ramp(0, 0.9)},
            "top_p is a ramp from 0 to 0.9; it must be one between numbers above 0, as 0 is off",
        ),
        ({"top_p": Ramp(1, 0.0)}, "top_p is a ramp from 1 to 0.0"),
        ({"temperature": [1, 1, 0, 1, 1]}, "temperature at scale 2 is 0"),
        ({"temperature": "hot"}, "temperature is hot; it must be above 0"),
        ({"ssg": [0, 1, -1, 0, 0]}, "ssg at scale 2 is -1; it must be 0 (off) or more"),
        ({"cfg": [None] * 5}, "cfg at scale 0 is None"),
        ({"cgf": 3}, "unknown sampling setting 'cgf'; did you mean 'cfg'?"),
    ],
)
def test_resolve_names_mistakes(values, message):
    """The error has the setting, the scale if there is one, the value, and what would be right."""
    with pytest.raises(UserError, match=re.escape(message)):
        resolved(**values)


def test_settings_refuses_an_unknown_preset():
    """A misspelled preset is refused with the closest known one."""
    with pytest.raises(UserError, match="unknown preset 'prety'; did you mean 'pretty'"):
        settings("prety", {})


def test_parse_reads_numbers_ramps_and_lists():
    """The command line's texts become numbers, ramps and tuples of the asked type; other texts are
    refused with the three forms."""
    assert parse("1.5") == 1.5 and parse("900", int) == 900 and isinstance(parse("900", int), int)
    assert parse("0:3") == Ramp(0, 3) and parse("900,900,600", int) == (900, 900, 600)
    for text in ("much", "1:", "1,,2", "1:2:3", ""):
        with pytest.raises(
            ValueError, match="invalid float value: .*; write a number, a ramp such as 0:3"
        ):
            parse(text)
    with pytest.raises(ValueError, match="invalid int value: '0.5'"):
        parse("1,0.5", int)
