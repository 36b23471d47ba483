"""Keys that have no effect in a run are refused by name; what is harmless, and what ran before, is
not."""

import dataclasses
import runpy
from pathlib import Path

import pytest

from helpers import small
from var_jax.cli.main import main
from var_jax.config import idle_keys
from var_jax.config.train import TrainConfig, from_config_dict
from var_jax.errors import UserError
from var_jax.objectives import registry
from var_jax.sweep import plan, preflight, run_id
from var_jax.train import workdir
from var_jax.train.loop import train

CONFIGS = Path(__file__).parents[2] / "configs"
SHIPPED = [
    ("adapters", ("lora", "class_rows")),
    ("ablation", ("tokenizer", "tokenizer_next_token", "next_token", "next_scale", "qk_norm_d3")),
    ("digits", ("tokenizer", "tokenizer_map", "d2", "next_token", "masked", "diffusion")),
    ("emoji", ("tokenizer", "d4")),
    ("fashion_mnist", ("tokenizer", "d3", "tokenizer1024_l2", "tokenizer1024_full")),
    ("fashion_mnist_long", ("tokenizer", "d4")),
    ("imagenet256", ("tokenizer", "d16", "d30")),
    ("imagenet256_rivals", ("tokenizer_maskgit", "llamagen_xxl", "maskgit", "dit_xl_2")),
    ("imagenet256_rivals", ("tokenizer_dit_xl_2", "rivals")),
    ("imagenet512", ("tokenizer", "d36")),
    ("openimages", ("tokenizer",)),
    ("rivals", ("tokenizer_next_token", "next_scale", "next_token_d2", "next_token_spiral")),
    ("rivals", ("rivals_fashion", "rivals_fashion_lr")),
    ("scaling_fashion", ("sizes", "rates", "small_batches", "long_rates", "corners")),
    ("scaling", ("tokenizer", "paper", "scaling", "lr", "fashion", "fashion_lr")),
]


def run(stage: str, **sections) -> TrainConfig:
    """A run whose sections have these values changed: run("tokenizer", loss={"vq": 2.0}); others
    are top-level keys."""
    config = small.train_config(stage, "")
    return dataclasses.replace(
        config,
        **{
            name: dataclasses.replace(getattr(config, name), **value)
            if isinstance(value, dict)
            else value
            for name, value in sections.items()
        },
    )


OTHER_STAGE = [
    ("transformer", "adversarial.weight", 0.4),
    ("transformer", "adversarial.start", 0.5),
    ("transformer", "discriminator_optimizer.clip", 1.0),
    ("transformer", "codebook.init", "kmeans"),
    ("transformer", "codebook.revive_threshold", 0.2),
    ("transformer", "alignment.decay", 0.5),
    ("transformer", "progressive.scales", "1,2"),
    ("transformer", "loss.perceptual", 1.0),
    ("transformer", "loss.vq", 2.0),
    ("tokenizer", "loss.label_smoothing", 0.1),
    ("tokenizer", "tokenizer_dir", "runs/other"),
    ("tokenizer", "adapter.rank", 4),
    ("transformer", "adapter.base", "runs/other"),
    ("adapter", "tokenizer_dir", "runs/other"),
    ("adapter", "init_from", "runs/other"),
    ("adapter", "trainable", "lora"),
    ("adapter", "loss.perceptual", 1.0),
]


@pytest.mark.parametrize(("stage", "key", "value"), OTHER_STAGE)
def test_refuse_names_a_key_of_the_other_stage(stage, key, value, tmp_path):
    """Training ends with the key and its value in one line, before anything is read or written."""
    section, _, name = key.rpartition(".")
    config = run(stage, **({section: {name: value}} if section else {name: value}))
    with pytest.raises(UserError, match=rf"{key}={value}") as caught:
        train(config, tmp_path / "run")
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()
    assert idle_keys.other_stage(idle_keys.reset(config)) == {}
    assert idle_keys.reset(config) == small.train_config(stage, "")


def test_refuse_names_every_key():
    """Two keys of the other stage are refused by one error, which names both with their values."""
    config = run("transformer", adversarial={"weight": 0.4}, loss={"perceptual": 1.0})
    with pytest.raises(UserError, match=r"adversarial\.weight=0\.4, loss\.perceptual=1\.0"):
        idle_keys.refuse(config)


@pytest.mark.parametrize(("file", "arg"), [(file, arg) for file, args in SHIPPED for arg in args])
def test_shipped_configs_have_no_key_of_the_other_stage(file, arg):
    """Every config file of this repository passes the check with each of its arguments."""
    config = from_config_dict(runpy.run_path(str(CONFIGS / f"{file}.py"))["get_config"](arg))
    idle_keys.refuse(config)


def test_idle_keys_do_not_hinder_a_run_of_before(tmp_path):
    """A run of an earlier version resumes by its own command and by one without the keys; with
    other values it is refused as another run."""
    before = run(
        "transformer", loss={"label_smoothing": 0.1, "perceptual": 1.0}, codebook={"init": "kmeans"}
    ).with_tokenizer(small.MODEL.tokenizer)
    workdir.claim(tmp_path, registry.with_random_frozen(before))
    started_with = workdir.started_with(tmp_path)
    idle_keys.refuse(before, started_with)
    workdir.refuse_another_run(tmp_path, before)
    cleaned = idle_keys.reset(before)
    assert cleaned.loss.label_smoothing == 0.1
    workdir.refuse_another_run(tmp_path, cleaned)
    with pytest.raises(UserError, match=r"loss\.perceptual=2\.0"):
        idle_keys.refuse(run("transformer", loss={"perceptual": 2.0}), started_with)
    other = small.train_config("transformer", "").with_tokenizer(small.MODEL.tokenizer)
    with pytest.raises(UserError, match=r"loss\.label_smoothing: 0\.0 here, 0\.1 there"):
        workdir.refuse_another_run(tmp_path, other)


FLAGS = [
    ("tokenizer", "adversarial.start", 0.5, "adversarial.weight"),
    ("tokenizer", "discriminator_optimizer.base_lr", 1.0, "adversarial.weight"),
    ("tokenizer", "loss.perceptual_heads", "vgg.pth", "loss.perceptual"),
    ("tokenizer", "codebook.revive_decay", 0.5, "codebook.revive_threshold"),
    ("tokenizer", "alignment.decay", 0.5, "alignment.weight"),
    ("tokenizer", "codebook.entropy_temperature", 0.5, "codebook.entropy"),
    ("tokenizer", "progressive.until", 0.25, "progressive.scales"),
    ("tokenizer", "tokenizer.quantizer_dropout_from", 1, "tokenizer.quantizer_dropout"),
    ("tokenizer", "optimizer.warmup_from", 0.5, "optimizer.warmup_steps"),
    ("transformer", "optimizer.cooldown_steps", 5, "optimizer.schedule"),
    ("transformer", "transformer.progressive_warmup", 5.0, "transformer.progressive"),
    ("transformer", "optimizer.bend", 0.25, "optimizer.schedule"),
    ("transformer", "optimizer.skip_spikes_window", 7, "optimizer.skip_spikes"),
    ("transformer", "branch_step", 3, "branch_from"),
]


@pytest.mark.parametrize(("stage", "key", "value", "switch"), FLAGS)
def test_refuse_flags_names_the_key_that_turns_a_flag_off(stage, key, value, switch):
    """A flag without effect is refused; the same value from a file is not, nor beside a flag that
    turns it off."""
    section, _, name = key.rpartition(".")
    config = run(stage, **({section: {name: value}} if section else {name: value}))
    with pytest.raises(UserError, match=rf"{key}={value} has no effect while {switch} is"):
        idle_keys.refuse_flags(config, [key])
    idle_keys.refuse_flags(config, [])
    idle_keys.refuse_flags(config, [key, switch])
    idle_keys.refuse_flags(small.train_config(stage, ""), [key])  # its default
    workdir_config = {section: {name: value}} if section else {name: value}
    idle_keys.refuse_flags(config, [key], workdir_config)


@pytest.mark.parametrize(
    ("changes", "key", "switch"),
    [
        (
            {"loss": {"perceptual": 1.0, "perceptual_heads": "vgg.pth"}},
            "loss.perceptual_heads",
            "loss.perceptual_network",
        ),
        (
            {"adversarial": {"weight": 1.0, "kernel": 5}},
            "adversarial.kernel",
            "adversarial.discriminator",
        ),
        (
            {"adversarial": {"weight": 1.0, "discriminator": "features", "layers": 2}},
            "adversarial.layers",
            "adversarial.discriminator",
        ),
        (
            {"adversarial": {"weight": 1.0, "adaptive": False, "adaptive_lowest": 0.5}},
            "adversarial.adaptive_lowest",
            "adversarial.adaptive",
        ),
        (
            {"adversarial": {"weight": 1.0, "feature_size": 8}},
            "adversarial.feature_size",
            "adversarial.discriminator",
        ),
        (
            {"adversarial": {"weight": 1.0, "discriminator": "features", "feature_crops": 0.5}},
            "adversarial.feature_crops",
            "adversarial.feature_size",
        ),
        (
            {
                "adversarial": {
                    "weight": 1.0,
                    "discriminator": "features",
                    "feature_readout": "patch_and_class",
                }
            },
            "adversarial.feature_readout",
            "adversarial.feature_network",
        ),
        (
            {"adversarial": {"weight": 1.0, "bcr_cutout": 0.3}},
            "adversarial.bcr_cutout",
            "adversarial.bcr",
        ),
        (
            {
                "adversarial": {
                    "weight": 1.0,
                    "bcr": 4.0,
                    "bcr_cutout": 0.3,
                    "bcr_diffaugment": "color",
                }
            },
            "adversarial.bcr_cutout",
            "adversarial.bcr_diffaugment",
        ),
        (
            {"adversarial": {"weight": 1.0, "cutout": 0.3, "diffaugment": "color"}},
            "adversarial.cutout",
            "adversarial.diffaugment",
        ),
        ({"ema": 0.0, "ema_warmup": 2}, "ema_warmup", "ema"),
        (
            {"tokenizer": {"init_gain": 0.5}, "init_from": "runs/other"},
            "tokenizer.init_gain",
            "init_from",
        ),
        (
            {"codebook": {"init": "kmeans"}, "tokenizer": {"init_codes": 0.5}},
            "tokenizer.init_codes",
            "codebook.init",
        ),
        (
            {"tokenizer": {"codes": "bsq", "vocab_size": 16, "init_codes": 0.5}},
            "tokenizer.init_codes",
            "tokenizer.codes",
        ),
        ({"codebook": {"init": "kmeans"}, "init_from": "runs/other"}, "codebook.init", "init_from"),
    ],
)
def test_refuse_flags_knows_keys_that_a_value_turns_off(changes, key, switch):
    """A key of the command line that the value of another key turns off is refused, and the message
    names both keys."""
    with pytest.raises(UserError, match=rf"{key}=.* has no effect while {switch} is"):
        idle_keys.refuse_flags(run("tokenizer", **changes), [key])


def test_refuse_flags_refuses_the_transformers_section_for_a_tokenizer():
    """A file may describe both models; a flag for the other one is a mistake."""
    with pytest.raises(
        UserError, match=r"transformer\.depth has no effect in the tokenizer's stage"
    ):
        idle_keys.refuse_flags(small.train_config("tokenizer", ""), ["steps", "transformer.depth"])
    idle_keys.refuse_flags(small.train_config("transformer", ""), ["transformer.depth"])


def test_flag_keys_are_those_of_the_command_line():
    """Keys are found in both spellings, `--config.KEY=VALUE` and `--config.KEY VALUE`."""
    assert idle_keys.flag_keys(["--config.loss.vq=2", "--config.steps", "3"]) == [
        "loss.vq",
        "steps",
    ]


@pytest.mark.parametrize(
    ("arg", "flag", "words"),
    [
        (
            "tokenizer",
            "--config.adversarial.start=0.5",
            "adversarial.start=0.5 has no effect while adversarial.weight is",
        ),
        ("tokenizer", "--config.transformer.depth=3", "transformer.depth has no effect"),
        ("tokenizer", "--config.loss.label_smoothing=0.1", "loss.label_smoothing=0.1"),
        ("d2", "--config.adversarial.weight=0.4", "adversarial.weight=0.4"),
    ],
)
def test_train_refuses_a_flag_without_effect(tmp_path, capsys, arg, flag, words):
    """The command ends with 2 and one line, and leaves no workdir behind."""
    (tmp_path / "config.py").write_text(small.CONFIG_FILE)
    config = f"{tmp_path / 'config.py'}:{arg}"
    assert main(["train", "--config", config, "--workdir", str(tmp_path / "run"), flag]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_sweep_refuses_the_keys_that_its_runs_would_refuse(tmp_path):
    """A sweep refuses such keys before it starts any run; a run that was started with them goes
    on."""
    config = run("transformer", loss={"perceptual": 1.0})
    planned = plan.Run("0123", "", config, ("--config.loss.perceptual=1.0",))
    with pytest.raises(UserError, match=r"loss\.perceptual=1\.0"):
        preflight.check_keys([planned], str(tmp_path))
    workdir.claim(tmp_path / "0123", registry.with_random_frozen(config))
    preflight.check_keys([planned], str(tmp_path))


def test_microbatches_are_no_part_of_a_sweep_runs_id():
    """Microbatches may change when a run resumes, so that a run id does not depend on them."""
    config = small.train_config("transformer", "")
    assert run_id.of_config(dataclasses.replace(config, microbatches=2)) == run_id.of_config(config)
