"""Checkpoints: what is kept, restored, damaged and removed."""

import logging
import resource
import shutil
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from helpers.trees import assert_same
from var_jax.errors import UserError
from var_jax.io import storage_messages
from var_jax.io.checkpoint import Checkpoints


@flax.struct.dataclass
class State:
    step: Any
    params: Any
    ema: Any
    opt_state: Any


OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))


def make_state(step: int, ema: bool = True, rows: int = 64) -> State:
    key = jax.random.key(step)
    params = {
        "blocks": {
            "kernel": jax.random.normal(key, (rows, 24)),
            "bias": jnp.full(3, step, jnp.bfloat16),
        }
    }
    average = jax.tree.map(lambda x: x * 2, params) if ema else None
    return State(jnp.int32(step), params, average, OPTIMIZER.init(params))


def abstract(state: State) -> State:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def saved(directory, steps, keep=3) -> Checkpoints:
    checkpoints = Checkpoints(directory, keep)
    for step in steps:
        checkpoints.save(step, make_state(step), {"images": step * 10})
    checkpoints.wait()
    return checkpoints


def data_files(directory, step):
    """The largest file of a checkpoint first: that is where the arrays are."""
    files = [f for f in (directory / str(step)).rglob("*") if f.is_file()]
    return sorted(files, key=lambda f: -f.stat().st_size)


def truncate(directory):
    file = data_files(directory, 3)[0]
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(directory):
    file = data_files(directory, 3)[0]
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)


def lose_data(directory):
    data_files(directory, 3)[0].unlink()


def lose_state(directory):
    shutil.rmtree(directory / "3" / "state")


def lose_everything(directory):
    shutil.rmtree(directory / "3")
    (directory / "3").mkdir()


def halve_note(directory):
    note = directory / "3" / "note" / "metadata"
    note.write_text(note.read_text()[:20])


@pytest.mark.parametrize("ema", [True, False])
def test_restore_reads_what_save_wrote(tmp_path, ema):
    """A state with and without an average, and what is saved beside it, are read as they were
    written, in a directory that is made."""
    state = make_state(5, ema)
    checkpoints = Checkpoints(tmp_path / "new" / "checkpoints", keep=2)
    assert checkpoints.latest_step() is None
    checkpoints.save(5, state, {"data": [1, "x"]}, wait=True)
    restored, extra = Checkpoints(tmp_path / "new" / "checkpoints", keep=2).restore(abstract(state))
    assert_same(restored, state)
    assert extra == {"data": [1, "x"]}


def test_checkpoints_keep_the_newest(tmp_path):
    """Of four saves with two to keep, the last two are there."""
    checkpoints = saved(tmp_path, [1, 2, 3, 4], keep=2)
    checkpoints.close()
    assert checkpoints.steps() == [3, 4] and checkpoints.latest_step() == 4


def test_checkpoints_keep_the_best_and_requested_ones(tmp_path):
    """Beside the newest stay the step of the lowest loss, which a later process reads from the
    checkpoints, and the steps named by `keep_steps`."""
    checkpoints = Checkpoints(tmp_path, keep=1, keep_steps=(2,))
    for step, loss in enumerate([3.0, 2.0, 0.5, None, 1.0, 1.5], start=1):
        if step == 6:  # what is best is known after a restart too
            checkpoints.close()
            checkpoints = Checkpoints(tmp_path, keep=1, keep_steps=(2,))
        checkpoints.save(step, make_state(step), {})
        if loss is not None:
            checkpoints.note_loss(step, loss)
    checkpoints.close()
    assert checkpoints.steps() == [2, 3, 6]
    assert_same(checkpoints.restore(abstract(make_state(0)), step=3)[0], make_state(3))


def test_checkpoint_is_evaluated_when_its_loss_is_noted(tmp_path):
    """A kill between the save and the end of the evaluation leaves a state that is not; what was
    saved with nothing left to evaluate is."""
    checkpoints = Checkpoints(tmp_path, keep=5)
    for step, evaluated in ((1, False), (2, False), (3, True)):
        checkpoints.save(step, make_state(step), {"evaluated": evaluated})
    checkpoints.note_loss(2, 0.5)
    checkpoints.close()
    later = Checkpoints(tmp_path, keep=5)
    result = [
        later.restore(abstract(make_state(0)), step=step)[1]["evaluated"] for step in (1, 2, 3)
    ]
    assert result == [False, True, True]
    later.note_loss(1, 0.25)  # as a resumed run does, before it saves anything
    assert later.restore(abstract(make_state(0)), step=1)[1]["evaluated"]


def test_restore_of_a_step(tmp_path):
    """An older step gives its own state and notes."""
    restored, extra = saved(tmp_path, [1, 2]).restore(abstract(make_state(0)), step=1)
    assert_same(restored, make_state(1))
    assert extra == {"images": 10}


def test_save_lets_the_state_be_donated_while_it_is_written(tmp_path):
    """`save` has copied the state when it returns: steps that reuse its memory meanwhile do not
    change what is read."""
    step = jax.jit(lambda s: jax.tree.map(lambda x: x * 0, s), donate_argnums=0)
    state, checkpoints = make_state(2, rows=40_000), Checkpoints(tmp_path, 1)
    expected = jax.tree.map(np.array, state)
    checkpoints.save(2, state, {})
    for _ in range(3):
        state = step(state)
    checkpoints.wait()
    assert_same(checkpoints.restore(abstract(state))[0], expected)


@pytest.mark.skipif(jax.device_count() < 2, reason="needs several devices")
def test_restore_takes_other_shardings(tmp_path):
    """An array saved in rows over the devices is read in columns, with its values."""
    mesh = jax.make_mesh((jax.device_count(),), ("data",))
    rows, columns = (
        NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data", None), (None, "data"))
    )
    array = jnp.arange(64.0 * 24).reshape(64, 24)
    checkpoints = Checkpoints(tmp_path, 1)
    checkpoints.save(1, {"x": jax.device_put(array, rows)}, {})
    checkpoints.wait()
    restored, _ = checkpoints.restore(
        {"x": jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=columns)}
    )
    assert restored["x"].sharding == columns
    np.testing.assert_array_equal(restored["x"], array)


@pytest.mark.parametrize(
    "damage", [truncate, flip, lose_data, lose_state, lose_everything, halve_note]
)
def test_restore_falls_back_from_damage_with_one_warning(tmp_path, caplog, damage):
    """Whatever of the newest checkpoint is cut, changed or lost, the one before is restored, and
    one line names the step."""
    saved(tmp_path, [1, 2, 3]).close()
    damage(tmp_path)
    checkpoints = Checkpoints(tmp_path, 3)
    with caplog.at_level(logging.WARNING):
        restored, extra = checkpoints.restore(abstract(make_state(0)))
    assert_same(restored, make_state(2))
    assert extra == {"images": 20}
    if damage is lose_everything and not caplog.records:
        return  # Orbax does not count an empty directory as a checkpoint
    (record,) = caplog.records
    assert "step 3" in record.getMessage() and "\n" not in record.getMessage()


def test_restore_names_damage_when_no_checkpoint_is_sound(tmp_path):
    """One line has the directory and the step with what is wrong with it."""
    saved(tmp_path, [3]).close()
    truncate(tmp_path)
    with pytest.raises(UserError, match=r"no checkpoint in .* can be read \(step 3: ") as caught:
        Checkpoints(tmp_path, 3).restore(abstract(make_state(0)))
    assert "\n" not in str(caught.value)


def test_save_goes_on_over_a_damaged_checkpoint(tmp_path):
    """Reading deletes nothing; the next save of the same step takes the damaged one's place."""
    saved(tmp_path, [1, 2, 3]).close()
    truncate(tmp_path)
    checkpoints = Checkpoints(tmp_path, 2)
    checkpoints.restore(abstract(make_state(0)))
    assert checkpoints.steps() == [1, 2, 3]  # reading deletes nothing
    checkpoints.save(3, make_state(30), {}, wait=True)
    assert_same(checkpoints.restore(abstract(make_state(0)))[0], make_state(30))
    assert checkpoints.steps() == [2, 3]


def test_restore_names_a_directory_without_checkpoints(tmp_path):
    """The line has the steps that are there, and no directory is made."""
    with pytest.raises(UserError, match="no checkpoint in .*; steps there: none"):
        Checkpoints(tmp_path / "none", 1).restore(abstract(make_state(0)))
    with pytest.raises(UserError, match="no checkpoint of step 7 in .*; steps there: 1, 2"):
        saved(tmp_path, [1, 2]).restore(abstract(make_state(0)), step=7)
    assert not (tmp_path / "none").exists()


def test_restore_names_another_model(tmp_path):
    """The line has a parameter with both shapes, or one that only the checkpoint has."""
    checkpoints = saved(tmp_path, [1, 2])
    with pytest.raises(UserError, match=r"2 is of another model.*kernel is .*64, 24.*32, 24"):
        checkpoints.restore(abstract(make_state(0, rows=32)))
    with pytest.raises(UserError, match=r"ema/blocks/bias is .* in it and not there in this run"):
        checkpoints.restore(abstract(make_state(0, ema=False)))


def test_restore_part_reads_a_part(tmp_path):
    """Parameters or the average of a step are read alone, as numpy arrays; a part that there is not
    comes with those that there are."""
    checkpoints = saved(tmp_path, [1, 3])
    assert_same(checkpoints.restore_part("ema"), jax.tree.map(np.asarray, make_state(3).ema))
    assert_same(
        checkpoints.restore_part("params", step=1), jax.tree.map(np.asarray, make_state(1).params)
    )
    with pytest.raises(UserError, match="no 'weights'; it has .*'params'"):
        checkpoints.restore_part("weights")


def test_restore_part_falls_back_to_a_sound_checkpoint(tmp_path):
    """With a bit of the newest changed, the part is that of one step as a whole."""
    saved(tmp_path, [1, 3]).close()
    flip(tmp_path)
    params = Checkpoints(tmp_path, 3).restore_part("params")
    assert float(params["blocks"]["bias"][0]) in (1, 3)
    assert_same(
        params, jax.tree.map(np.asarray, make_state(int(params["blocks"]["bias"][0])).params)
    )


def test_reading_leaves_a_save_in_progress_alone(tmp_path):
    """A reader does not delete what another process is writing; the next writer does."""
    saved(tmp_path, [1]).close()
    unfinished = tmp_path / "2.orbax-checkpoint-tmp"
    unfinished.mkdir()
    reader = Checkpoints(tmp_path, 1)
    reader.restore_part("params")
    reader.close()
    assert unfinished.exists() and reader.latest_step() == 1
    Checkpoints(tmp_path, 2).save(3, make_state(3), {}, wait=True)
    assert not unfinished.exists()


def test_save_on_a_full_disk_keeps_the_checkpoints_before(tmp_path, capfd):
    """The save fails in one line with the system's reason, the earlier steps are whole, and the
    step can be saved when there is room again."""
    checkpoints = saved(tmp_path, [1, 2], keep=2)
    capfd.readouterr()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with (
            storage_messages.silenced(),
            pytest.raises(
                UserError, match=r"cannot write the checkpoint of step 3 in .*: File too large"
            ) as caught,
        ):
            checkpoints.save(3, make_state(3, rows=4000), {})
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value) and capfd.readouterr().err == ""
    assert Checkpoints(tmp_path, 2).steps() == [1, 2]
    assert_same(Checkpoints(tmp_path, 2).restore(abstract(make_state(0)))[0], make_state(2))
    checkpoints.save(3, make_state(3), {}, wait=True)  # room again
    assert_same(checkpoints.restore(abstract(make_state(0)))[0], make_state(3))


def test_checkpoints_refuse_a_directory_that_cannot_be(tmp_path):
    """A file in the place of a directory is named when a step is saved."""
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the checkpoint of step 1 in .*file"):
        Checkpoints(tmp_path / "file" / "checkpoints", 1).save(1, make_state(1), {}, wait=True)
