import dataclasses
import sys
import types

import pytest

from var_jax.errors import UserError
from var_jax.sweep import backend


@dataclasses.dataclass(frozen=True)
class Fake:
    partition: str = "main"
    hours: float = 1.0
    nodes: int = 1
    spot: bool = False


@pytest.fixture
def fake(monkeypatch):
    module = types.ModuleType("fake_engine")
    module.Fake = Fake
    monkeypatch.setitem(sys.modules, "fake_engine", module)
    monkeypatch.setitem(backend.ENGINES, "fake", "fake_engine:Fake")


def test_make_parses_options_as_field_types(fake):
    """The texts of options become the types of the engine's fields: the engine equals one that is
    made of a string, a float, an integer and a truth value, and without options it has its
    defaults."""
    assert backend.make("fake", {}) == Fake()
    options = {"partition": "tpu", "hours": "2", "nodes": "4", "spot": "True"}
    assert backend.make("fake", options) == Fake("tpu", 2.0, 4, True)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("fak", {}, "unknown backend 'fak'; did you mean 'fake'"),
        ("fake", {"node": "1"}, "backend fake has no option 'node'; did you mean 'nodes'"),
        ("fake", {"nodes": "two"}, "--option nodes=two: it must be a whole number"),
        ("fake", {"nodes": "1.5"}, "--option nodes=1.5: it must be a whole number"),
        ("fake", {"hours": "long"}, "--option hours=long: it must be a number"),
        ("fake", {"spot": "1"}, "--option spot=1: it must be true or false"),
        ("local", {"jobs": "2"}, "backend local has no option 'jobs'"),
    ],
)
def test_make_names_mistakes(fake, name, options, words):
    """An unknown engine or option is named with the closest known one, and a value of the wrong
    type with the right type, in one line."""
    with pytest.raises(UserError, match=words) as caught:
        backend.make(name, options)
    assert "\n" not in str(caught.value)


def test_make_names_a_missing_library(monkeypatch):
    """An engine whose module cannot be imported is refused with its name and its package; here the
    table of engines names a package that does not exist."""
    monkeypatch.setitem(backend.ENGINES, "slurm", "no_such_scheduler:Slurm")
    with pytest.raises(UserError, match="backend slurm needs the package no_such_scheduler"):
        backend.make("slurm", {})
