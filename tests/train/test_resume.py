"""Weights that a run begins with reach the devices part by part, and no host asks another."""

import jax
import numpy as np
import pytest

from helpers import processes, small
from var_jax.config.train import MeshConfig
from var_jax.devices.mesh import make_mesh
from var_jax.train import resume
from var_jax.train.program import Program

COUNTED = """
import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

moved = 0

def counting(of):
    def called(tree, *rest, **named):
        global moved
        moved += sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(tree))
        return of(tree, *rest, **named)
    return called

multihost_utils.broadcast_one_to_all = counting(multihost_utils.broadcast_one_to_all)
multihost_utils.process_allgather = counting(multihost_utils.process_allgather)

from helpers import small
from var_jax.io.checkpoint import Checkpoints
from var_jax.devices import sharding
from var_jax.train import resume
from var_jax.config.train import MeshConfig
from var_jax.train.program import Program
from var_jax.devices.mesh import make_mesh

config = small.train_config("transformer", "", init_from=MODEL, tokenizer_dir=MODEL)
mesh = make_mesh(MeshConfig())
with jax.set_mesh(mesh):
    objective = small.next_scale(config)
    program = Program(objective, mesh)
    run = resume.first_state(objective, program, Checkpoints(EMPTY, keep=1)).state
    whole = small.pipeline().params
    place = jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), whole["tokenizer"])
    frozen = sharding.place(whole["tokenizer"], place)
before, held, size = moved, 0, 0
for ours, theirs in zip(jax.tree.leaves((run.params, frozen)),
                        jax.tree.leaves((whole["transformer"], whole["tokenizer"])), strict=True):
    for shard in ours.addressable_shards:
        np.testing.assert_array_equal(shard.data, np.asarray(theirs)[shard.index])
for ours in jax.tree.leaves(run.params):
    size += ours.nbytes
    held += sum(shard.data.nbytes for shard in ours.addressable_shards)
print("moved", moved, "held", held, "size", size)
"""


@pytest.mark.long
def test_first_state_of_given_weights_moves_nothing_between_hosts(model_dir, tmp_path):
    """Two processes: each puts its own part on its device, and what they tell each other is a small
    part of the weights (that these are the same)."""
    code = COUNTED.replace("MODEL", repr(str(model_dir)))
    code = code.replace("EMPTY", repr(str(tmp_path / "none")))
    for ended, output in processes.scripts(code, tmp_path / "scripts", tmp_path / "programs"):
        assert ended == 0, output
        moved, held, size = (
            int(output.split(f"{name} ")[-1].split()[0]) for name in ("moved", "held", "size")
        )
        assert size > 10_000 and moved < size / 10 and held < 0.75 * size


def test_given_weights_are_on_no_device_before_they_are_in_parts(model_dir):
    """Weights are split before any device holds them, because an array that is made on one device
    first has to fit there."""
    config = small.train_config(
        "transformer", "", init_from=str(model_dir), tokenizer_dir=str(model_dir)
    )
    mesh = make_mesh(MeshConfig())
    objective = small.next_scale(config)
    program = Program(objective, mesh)
    weights = resume.initial_weights(objective, program)
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(weights))
    sharded = [
        leaf
        for leaf in jax.tree.leaves(program.first_state(weights).params)
        if not leaf.sharding.is_fully_replicated
    ]
    assert sharded and all(
        8 * shard.data.nbytes == leaf.nbytes
        for leaf in sharded
        for shard in leaf.addressable_shards
    )
