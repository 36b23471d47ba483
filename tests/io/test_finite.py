"""Weights that are not finite are named and refused, wherever they are read."""

import dataclasses
import json

import jax
import ml_dtypes
import numpy as np
import pytest
from etils import epath
from flax.traverse_util import flatten_dict

from helpers import small
from helpers.cases import combinations
from reference import torch_writer
from var_jax import Pipeline
from var_jax.cli.main import main
from var_jax.config.strict import plain
from var_jax.errors import UserError
from var_jax.io import model_directory, torch_convert
from var_jax.io.checkpoint import Checkpoints
from var_jax.io.finite import ELEMENTS_AT_ONCE, not_finite
from var_jax.objectives.step_types import TrainState
from var_jax.pretrained.weights import State
from var_jax.train import resume

BAD = (np.nan, np.inf, -np.inf)


def spoiled(array, value=np.nan, count=1):
    array = np.array(array)
    array.reshape(-1)[:count] = value
    return array


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
@pytest.mark.parametrize("value", BAD)
def test_not_finite_counts_every_kind_in_every_dtype(dtype, value):
    """Values that are not finite are counted at both ends of an array of more than one part, and
    the largest finite number beside them is not."""
    array = np.zeros(ELEMENTS_AT_ONCE + 3, dtype)
    array[1] = ml_dtypes.finfo(dtype).max
    assert not_finite(array) == 0
    array[[0, -1]] = value
    assert not_finite(array) == 2 and not_finite(array[::-1].reshape(-1, 1)) == 2
    assert not_finite(np.arange(3)) == not_finite(np.array([True])) == 0


@pytest.mark.long
@pytest.mark.parametrize(
    ("value", "part", "ending"),
    combinations(BAD, ["tokenizer", "transformer"], ["", ".pth", ".safetensors", ".npz"]),
)
def test_from_torch_names_the_tensor_that_is_not_finite(tmp_path, value, part, ending):
    """Weights are checked as arrays and in every kind of file."""
    states = dict(zip(("tokenizer", "transformer"), small.pipeline().to_torch(), strict=True))
    key = {"tokenizer": "decoder.conv_in.bias", "transformer": "head.weight"}[part]
    states[part] = {**states[part], key: spoiled(states[part][key], value, 2)}
    size = states[part][key].size
    if ending == ".safetensors":
        torch_convert.write_torch(tmp_path, *states.values())
    for name, state in states.items():
        if ending == ".npz":
            np.savez(tmp_path / f"{name}.npz", **state)
        elif ending == ".pth":
            torch_writer.save(tmp_path / f"{name}.pth", state)
    values = [tmp_path / f"{name}{ending}" for name in states] if ending else states.values()
    with pytest.raises(
        UserError, match=f"the {part}.*not finite.* in {key} \\(2 of {size}\\)"
    ) as error:
        Pipeline.from_torch(*values, scales=small.SCALES, norm_groups=4)
    assert "\n" not in str(error.value)


def test_from_torch_takes_buffers_that_are_infinite_by_intent():
    """The published mask holds minus infinity and is no weight."""
    states = small.pipeline().to_torch(with_buffers=True)
    assert np.isinf(states[1]["attn_bias_for_masking"]).any()
    Pipeline.from_torch(*states, scales=small.SCALES, norm_groups=4)


def test_from_torch_names_what_overflows_in_the_dtype_that_it_is_stored_in():
    """A float64 beyond float32's range is finite in the file and infinite in the model."""
    states = small.pipeline().to_torch()
    states[1]["head.bias"] = spoiled(states[1]["head.bias"].astype(np.float64), 1e300)
    with pytest.raises(UserError, match="not finite.* in head.bias"):
        Pipeline.from_torch(*states, scales=small.SCALES, norm_groups=4)


@pytest.fixture
def spoiled_dir(tmp_path):
    """A model directory with one NaN in the transformer's head."""
    model = small.pipeline()
    params = jax.tree.map(np.asarray, model.params)
    params["transformer"]["head"]["kernel"] = spoiled(params["transformer"]["head"]["kernel"])
    model_directory.save(epath.Path(tmp_path / "spoiled"), model.config, params)
    return tmp_path / "spoiled"


def test_commands_refuse_a_model_directory_that_is_not_finite(spoiled_dir, tmp_path, capsys):
    """A sample would be drawn from it without a word, the same for every seed."""
    out = tmp_path / "out.png"
    assert main(["sample", "--model", str(spoiled_dir), "--labels", "0", "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert (
        "transformer.safetensors holds values that are not finite" in error
        and "head/kernel (1 of" in error
    )
    assert error.count("\n") == 1 and not out.exists()


def test_train_refuses_to_start_from_weights_that_are_not_finite(spoiled_dir):
    """Every step of a run from such an `init_from` would be lost."""
    config = small.train_config("transformer", "", init_from=str(spoiled_dir))
    with pytest.raises(UserError, match="not finite.* in head/kernel"):
        # The weights are refused before the program is asked for.
        resume.initial_weights(small.next_scale(config), program=None)


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_pipeline_refuses_a_workdir_whose_checkpoint_is_not_finite(tmp_path, ema):
    """The part that a model is made of is looked at: averaged weights where the run keeps them."""
    params = jax.tree.map(np.asarray, small.pipeline().params["tokenizer"])
    name = next(iter(flatten_dict(params, sep="/")))
    bad = jax.tree_util.tree_map_with_path(
        lambda path, x: (
            spoiled(x) if jax.tree_util.keystr(path, simple=True, separator="/") == name else x
        ),
        params,
    )
    config = small.train_config("tokenizer", "", ema=ema)
    (tmp_path / "config.json").write_text(json.dumps(plain(config)))
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    checkpoints.save(1, {"params": params if ema else bad, "ema": bad}, {}, wait=True)
    checkpoints.close()
    with pytest.raises(UserError, match=f"newest checkpoint in .*not finite.* in {name} "):
        model_directory.load(epath.Path(tmp_path))


def test_train_refuses_to_resume_from_weights_that_are_not_finite():
    """The restored values are counted on the devices, and the error has the array's name, the step
    and the remedy."""
    params = {
        "a": {"kernel": np.array([1.0, np.nan, np.inf], np.float32)},
        "b": np.ones(2, np.float32),
    }
    fields = {field.name: None for field in dataclasses.fields(TrainState)}
    run = TrainState(
        **{**fields, "step": np.int32(7), "params": params, "ema": {"c": np.ones(1, np.float32)}}
    )
    with pytest.raises(
        UserError, match=r"of step 7 holds .* in params/a/kernel \(2 of 3\), .*; remove it"
    ):
        resume._require_finite(run, "the run's checkpoint")
    resume._require_finite(
        dataclasses.replace(run, params=run.ema, ema=None), "the run's checkpoint"
    )


@pytest.mark.parametrize("value", BAD)
def test_feature_networks_refuse_weights_that_are_not_finite(value):
    """Each tensor that a network takes is looked at, and named with the file."""
    with pytest.raises(UserError, match="net.pth holds .* in conv.weight"):
        State({"conv.weight": spoiled(np.zeros((2, 3), np.float32), value)}, "net.pth").take(
            "conv.weight", 2, 3
        )
