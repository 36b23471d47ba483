"""State dicts are found below whatever wrappers and containers a training script put around
them."""

import itertools

import numpy as np
import pytest

from helpers import small
from helpers.cases import combinations
from reference import torch_writer
from var_jax.errors import UserError
from var_jax.io import torch_convert
from var_jax.io.state_dicts import unwrapped
from var_jax.pretrained.weights import State

ANCHORS = ("head.weight", "pos")
OWN = ("head.weight", "blocks.0.attn.weight", "pos")
WRAPPED = [
    ".".join(parts) + "."
    for count in (1, 2, 3)
    for parts in itertools.permutations(("module", "_orig_mod", "model", "state_dict"), count)
]


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        *WRAPPED,
        "model_state_dict.",
        "trainer.var_wo_ddp._orig_mod.",
        "ema.",
        "ema_model.module.",
        "state_dict_ema.",
        "net.generator.",
        "_fsdp_wrapped_module._orig_mod.",
    ],
)
def test_unwrapped_finds_names_below_any_nesting(prefix):
    """The names are the model's own, and each leads to the one in the file."""
    assert unwrapped([prefix + name for name in OWN], ANCHORS, "x") == {
        name: prefix + name for name in OWN
    }


@pytest.mark.parametrize(
    "inner", ["_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "module"]
)
def test_unwrapped_takes_wrappers_out_of_the_middle_of_names(inner):
    """A block may be compiled, sharded or wrapped by itself."""
    name = f"blocks.0.{inner}.attn.weight"
    assert unwrapped(["head.weight", name, "pos"], ANCHORS, "x")["blocks.0.attn.weight"] == name


def test_unwrapped_leaves_out_what_lies_beside_the_model():
    """An optimizer's state, another model and a counter are left out."""
    names = [
        *(f"model.module.{name}" for name in OWN),
        "optimizer.state.0.exp_avg",
        "vae.encoder.weight",
        "n_averaged",
    ]
    assert set(unwrapped(names, ANCHORS, "x")) == set(OWN)
    assert set(unwrapped(["n_averaged", *(f"module.{name}" for name in OWN)], ANCHORS, "x")) == set(
        OWN
    )


@pytest.mark.parametrize("plain", ["model.", "", "state_dict."])
@pytest.mark.parametrize("averaged", ["ema.", "model_ema.", "ema_model.module."])
def test_unwrapped_takes_averaged_weights_and_says_so(plain, averaged, caplog):
    """A file that holds both gives its averaged weights, as those of a run are sampled from."""
    names = [place + name for place in (plain, averaged) for name in OWN]
    assert unwrapped(names, ANCHORS, "x.pth") == {name: averaged + name for name in OWN}
    assert "x.pth" in caplog.text and "averaged" in caplog.text


def test_unwrapped_refuses_to_choose():
    """A file with two models of which neither is averaged is refused, and so is one with a name and
    its wrapped double."""
    with pytest.raises(
        UserError, match=r"x.pth holds the weights 2 times, as student\.\* and teacher\.\*"
    ):
        unwrapped(
            [f"{place}.{name}" for place in ("teacher", "student") for name in OWN],
            ANCHORS,
            "x.pth",
        )
    with pytest.raises(UserError, match="x.pth has pos twice, as pos and as module.pos"):
        unwrapped([*OWN, "module.pos"], ANCHORS, "x.pth")


@pytest.mark.long
@pytest.mark.parametrize(
    ("prefix", "ending"),
    combinations(
        [
            "module.",
            "_orig_mod.",
            "module._orig_mod.",
            "_orig_mod.module.",
            "model.",
            "state_dict.",
            "state_dict.model.module._orig_mod.",
            "ema.",
        ],
        ["pth", "safetensors", "npz"],
    ),
)
def test_wrapped_state_dicts_convert_to_the_same_weights(tmp_path, prefix, ending):
    """Both models, in every kind of file, have the same weights to the last bit."""
    states = small.pipeline().to_torch(with_buffers=False)
    wrapped = [{prefix + key: array for key, array in state.items()} for state in states]
    if ending == "safetensors":
        torch_convert.write_torch(tmp_path, *wrapped)
    else:
        for name, state in zip(("tokenizer", "transformer"), wrapped, strict=True):
            if ending == "npz":
                np.savez(tmp_path / f"{name}.npz", **state)
            else:
                torch_writer.save(tmp_path / f"{name}.pth", state)
    paths = [tmp_path / f"{name}.{ending}" for name in ("tokenizer", "transformer")]
    config, params = torch_convert.from_torch(*paths, scales=small.SCALES, norm_groups=4)
    for back, state in zip(torch_convert.to_torch(config, params), states, strict=True):
        assert back.keys() == state.keys()
        for key in state:
            np.testing.assert_array_equal(back[key], state[key])


def test_state_dicts_finds_both_models_of_one_file(tmp_path):
    """A script may keep tokenizer, transformer and optimizer together."""
    tokenizer, transformer = small.pipeline().to_torch()
    torch_writer.save(
        tmp_path / "run.pth",
        {
            **{f"state_dict.vae.{key}": array for key, array in tokenizer.items()},
            **{f"state_dict.var._orig_mod.{key}": array for key, array in transformer.items()},
            "optimizer.state.0.exp_avg": np.zeros(3, np.float32),
        },
    )
    config, _ = torch_convert.from_torch(
        tmp_path / "run.pth", tmp_path / "run.pth", scales=small.SCALES, norm_groups=4
    )
    assert config.transformer.depth == 2


@pytest.mark.parametrize("prefix", ["module.", "state_dict.", "model._orig_mod."])
def test_feature_networks_are_found_below_wrappers_too(prefix):
    """Every network's weights are taken through one reader."""
    state = State(
        {
            f"{prefix}conv.weight": np.ones((2, 3)),
            f"{prefix}conv.bias": np.zeros(2),
            "epoch.x": np.zeros(1),
        },
        "net.pth",
        ("conv.weight",),
    )
    assert "conv.weight" in state and state.take("conv.weight", 2, 3).sum() == 6
    assert state.take("conv.bias", 2).shape == (2,)
    state.finish()
