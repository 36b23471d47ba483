"""What a run says when it starts and when it is done."""

import json
import shlex
from types import SimpleNamespace

import numpy as np
import pytest
from etils import epath

from helpers import adapters, diffusion, masked, small
from var_jax.objectives import registry
from var_jax.train import terminal_messages

IDENTITY = {"name": "digits", "class_names": ["a"], "train": 1437, "held_out": 360}


@pytest.mark.parametrize(
    ("stage", "first", "words"),
    [
        ("tokenizer", 0, ["training the tokenizer on digits; ", "images of 6x8x1, 17 tokens each"]),
        (
            "transformer",
            2,
            ["training the transformer on digits from step 2 on; ", "depth 2, width 16"],
        ),
    ],
)
def test_opening_is_one_line_that_describes_the_run(stage, first, words):
    """It says the stage, the data, the model's size, the devices, the steps and the workdir."""
    config = small.train_config(stage, "nowhere", steps=100, batch_size=8)
    params = {"a": np.zeros((3, 4)), "b": np.zeros(5)}
    line = terminal_messages.opening_line(
        registry.with_frozen_shapes(config), IDENTITY, params, epath.Path("runs/x"), first
    )
    assert "\n" not in line and all(word in line for word in words)
    for word in (
        "17 parameters",
        "8 devices (cpu)",
        "100 steps of 8 images (0.557 passes",
        "in runs/x",
    ):
        assert word in line


def test_opening_counts_the_patches_of_diffusion():
    """Its tokens are squares of the latents: 2x2 patches of 4x4 places, and not the 21 tokens of
    the tokenizer's maps 1, 2 and 4."""
    config = small.train_config(
        "transformer",
        "nowhere",
        tokenizer=diffusion.TOKENIZER,
        transformer=diffusion.transformer(patch=2),
    )
    objective = registry.with_frozen_shapes(config)
    line = terminal_messages.opening_line(objective, IDENTITY, {}, epath.Path("runs/x"), 0)
    assert "4 patches each" in line and "tokens" not in line


def test_closing_of_a_tokenizer(tmp_path):
    """The next command has the next stage's config and flags, quoted as a shell reads them."""
    workdir = tmp_path / "my run"
    (workdir / "samples").mkdir(parents=True)
    picture = workdir / "samples" / "step_0000003.png"
    config = small.train_config("tokenizer", "nowhere")
    overrides = ["--config.data.source_dir=my photos"]
    kind = registry.find(config)
    done, following = terminal_messages.closing_lines(
        kind,
        config,
        {"psnr": 21.239, "loss": 0.5, "images": 12},
        str(workdir),
        "configs/a b.py:d2",
        overrides,
    )
    assert "step 3, held-out PSNR 21.24 dB on 12 images" in done and "picture" not in done
    assert shlex.split(following) == [
        "next:",
        "var-jax",
        "train",
        "--config",
        "configs/a b.py:d2",
        f"--config.tokenizer_dir={workdir}",
        "--config.data.source_dir=my photos",
        "--workdir",
        f"{workdir}-transformer",
    ]
    picture.touch()
    assert (
        f"picture: {picture}"
        in terminal_messages.closing_lines(kind, config, {"loss": 0.5}, str(workdir), "a.py")[0]
    )


@pytest.mark.parametrize(
    ("classes", "labels"), [(12, "0-9 --num 40"), (3, "0-2 --num 12"), (1, "0 --num 4")]
)
def test_closing_of_a_transformer(classes, labels, tmp_path):
    """The command draws classes that the data have, which may be fewer than the model's."""
    (tmp_path / "data.json").write_text(
        json.dumps({"class_names": [str(i) for i in range(classes)]})
    )
    config = small.train_config("transformer", "nowhere")
    done, following = terminal_messages.closing_lines(
        registry.find(config), config, {"loss": 2.34567}, str(tmp_path), "a.py:d2"
    )
    assert "held-out loss 2.346" in done
    assert (
        following == f"next: var-jax sample --model {tmp_path} --labels {labels} --out samples.png"
    )


def test_closing_of_an_adapter_does_not_need_its_base(tmp_path):
    """A run that is done ends with its lines although the model that it adapts has moved
    meanwhile."""
    base = tmp_path / "base"
    masked.pipeline().save(base)
    config = adapters.training(small.train_config("transformer", ""), base, classes="mug,12")
    kind = registry.find(config)
    base.rename(tmp_path / "moved")
    done, following = terminal_messages.closing_lines(
        kind, config, {"loss": 2.34567}, str(tmp_path / "run"), "configs/adapters.py"
    )
    assert "held-out loss 2.346" in done
    assert f"--model {base} --adapter {tmp_path / 'run'} --labels 'mug,\"12\"'" in following


def test_data_lines_have_the_models_ids():
    """The ids are those that `--labels` reads, where a class's place in the data is another."""
    data = SimpleNamespace(
        class_names=("3", "cross"), class_counts=(5, 24), identity={"name": "digits"}
    )
    line = terminal_messages.data_lines(small.train_config("transformer", ""), data, [3, 10])[1]
    assert line.endswith(": 3 (5), 10 cross (24)")
