"""A training step on a mesh of this host's devices, and the comparison of two."""

import dataclasses

import jax
import numpy as np

from helpers import small
from var_jax.config.train import MeshConfig, TrainConfig
from var_jax.devices.mesh import make_mesh
from var_jax.objectives import registry
from var_jax.objectives.frozen_tokenizer import FrozenTokenizer
from var_jax.train.program import Program


def one_step(data: int, model: int, batch, start, config: TrainConfig, objective=None):
    """Returns (parameters after, metrics, program text) of a step on a data x model mesh.

    The frozen weights are those of the objective, or without one the small tokenizer's.
    """
    return step_on(MeshConfig(data, model), batch, start, config, objective)


def step_on(layout: MeshConfig, batch, start, config: TrainConfig, objective=None):
    """Returns what `one_step` does, on the mesh and under the policy of a config."""
    mesh = make_mesh(layout, jax.devices()[: layout.data * layout.model])
    config = dataclasses.replace(config, mesh=layout)
    with jax.set_mesh(mesh):
        program = Program(objective or registry.with_frozen_shapes(config), mesh)
        run = program.first_state(start)
        if objective is None:
            frozen = FrozenTokenizer(small.pipeline().params["tokenizer"])
            frozen = jax.device_put(frozen, program.replicated)
        else:
            frozen = objective.step_frozen()
            frozen = jax.device_put(frozen, objective.frozen_shardings(frozen, mesh))
        rows = jax.device_put(batch, program.rows)
        step = program.step()
        compiled = step.lower(run, rows, frozen).compile()
        after, metrics = compiled(run, rows, frozen, step.placed_numbers)
    return (
        jax.tree.map(np.asarray, after.params),
        jax.tree.map(np.asarray, metrics),
        compiled.as_text(),
    )


def assert_same_step(actual, reference, start):
    """Asserts that two results of `one_step` agree to rounding."""
    (expected, expected_metrics, _), (params, metrics, _) = reference, actual
    for name, value in expected_metrics.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    for (path, actual), reference, before in zip(
        jax.tree_util.tree_leaves_with_path(params),
        jax.tree.leaves(expected),
        jax.tree.leaves(start),
        strict=True,
    ):
        moved = np.abs(reference - before).max()
        np.testing.assert_allclose(
            actual,
            reference,
            rtol=0,
            atol=1e-6 * np.abs(reference).max() + 1e-3 * moved,
            err_msg=jax.tree_util.keystr(path),
        )
