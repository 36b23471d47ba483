"""Options of the compiler for programs on a CPU."""

import jax
import numpy as np
import pytest

from var_jax.config.train import MeshConfig
from var_jax.devices import cpu_compiler
from var_jax.devices.mesh import make_mesh


def test_options_of_run_once_give_the_same_bits(monkeypatch):
    """Weights that are drawn by a program of the lower level of optimization are those of the
    highest one, bit by bit: a run begins as it did in earlier versions."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    monkeypatch.delenv("XLA_FLAGS", raising=False)  # JAX has read it by now
    options = cpu_compiler.options_of_run_once(mesh)

    def draw(key):
        keys = jax.random.split(key, 3)
        return (
            0.02 * jax.random.normal(keys[0], (3, 65)),
            jax.random.truncated_normal(keys[1], -2, 2, (129,)) * 0.1,
            jax.random.uniform(keys[2], (5, 7, 3), minval=-0.3, maxval=0.3),
        )

    lowered = jax.jit(draw).lower(jax.random.key(3))
    highest = dict.fromkeys(cpu_compiler.RUN_ONCE, 3)
    results = [
        lowered.compile(compiler_options=some)(jax.random.key(3)) for some in (options, highest)
    ]
    assert options and all(np.array_equal(*pair) for pair in zip(*results, strict=True))


def test_options_of_run_once_leave_a_level_of_the_user(monkeypatch):
    """XLA_FLAGS that choose the level of optimization stay as they are."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    assert cpu_compiler.options_of_run_once(mesh) is None


@pytest.mark.parametrize("count", [1, 8])
def test_several_cpu_devices_compute_in_a_thread_each(count):
    """Devices that wait for each other in collectives keep to one thread, in which the order of a
    program's collectives is the same on all of them; a single device may use more threads."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:count])
    several = count > 1
    expected = cpu_compiler.IN_ORDER if several else None
    assert cpu_compiler.options_of_collectives(mesh) == expected
    for options in (cpu_compiler.options_of_step(mesh), cpu_compiler.options_of_run_once(mesh)):
        assert (cpu_compiler.IN_ORDER.keys() <= (options or {}).keys()) == several
