"""Programs of a run on several CPU devices are compiled so that collectives keep one order.

Without that a program stops now and then, where a device waits in another collective than the rest.
A test that waits for it would pass most of the time. Here the option is one that the compiler does
not know, so that whatever it is passed to fails.
"""

from typing import Any

import jax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from helpers import small
from var_jax.config.train import MeshConfig
from var_jax.devices import cpu_compiler
from var_jax.devices.mesh import make_mesh
from var_jax.objectives import registry
from var_jax.objectives.step_types import NoFrozen
from var_jax.train.evaluation import Evaluator
from var_jax.train.program import Program

UNKNOWN = "xla_no_such_option"


@pytest.fixture
def objective(monkeypatch):
    monkeypatch.setattr(cpu_compiler, "IN_ORDER", {UNKNOWN: True})
    return registry.with_frozen_shapes(small.train_config("tokenizer", "nowhere"))


@pytest.fixture
def mesh():
    return make_mesh(MeshConfig())


def test_training_step_is_compiled_with_the_option(objective, mesh):
    """The step of a run, with its gathers inside and outside the loop over layers."""
    with jax.set_mesh(mesh):
        program = Program(objective, mesh)
        lowered = program.step().lower(
            program.abstract_state(), program.abstract_batch(), NoFrozen()
        )
        with pytest.raises(Exception, match=UNKNOWN):
            lowered.compile()


def test_first_state_is_compiled_with_the_option(objective, mesh):
    """Fresh weights are divided over the devices."""
    with jax.set_mesh(mesh), pytest.raises(Exception, match=UNKNOWN):
        Program(objective, mesh).first_state()


def test_evaluation_is_compiled_with_the_option(objective, mesh):
    """All programs of an evaluation: metrics, and those that a picture is made by."""
    replicated = NamedSharding(mesh, PartitionSpec())
    no_data: Any = None
    evaluator = Evaluator(objective, NoFrozen(), no_data, replicated)
    with pytest.raises(Exception, match=UNKNOWN):
        evaluator.compiled("any", lambda: jax.jit(lambda x: x + 1).lower(1.0))
