"""The parser of all commands: which values it takes for options."""

import pytest

from var_jax.errors import Parser, UserError


@pytest.mark.parametrize("value", ["-1", "-.5", "-5.", "-1e3", "-1E-300", "-inf", "-nan", "-1,-2"])
def test_parser_reads_every_negative_number_as_a_value(value):
    """The number stands after a space, for an option of the parser and for one of a group, with
    options after it."""
    parser = Parser()
    parser.add_argument("--weight")
    parser.add_argument_group("sampling").add_argument("--cfg")
    parser.add_argument("-v", action="store_true")
    parsed = parser.parse_args(["--weight", value, "--cfg", value, "-v"])
    assert (parsed.weight, parsed.cfg, parsed.v) == (value, value, True)


def test_parser_still_refuses_an_option_as_a_value():
    """A misspelled option after one that needs a value is no value."""
    parser = Parser(prog="x")
    parser.add_argument("--weight")
    with pytest.raises(UserError, match="--weight: expected one argument"):
        parser.parse_args(["--weight", "--weihgt"])
