"""The costs of a run before it starts, for every kind of run."""

import dataclasses
import re

import pytest

from helpers import diffusion, masked, next_token, small
from helpers.adapters import training as adapter_run
from var_jax.config.model import TokenizerConfig
from var_jax.config.train import MeshConfig
from var_jax.devices.chips import CHIPS
from var_jax.errors import UserError
from var_jax.models import flops
from var_jax.perf import cost_lines, run_costs
from var_jax.scaling import published_log
from var_jax.train import memory_estimate

H200 = CHIPS["H200"]


def report(config, chip=H200, count=1, mfu=0.5, images=None):
    return run_costs.report(config, chip, count, mfu, images)


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setattr(run_costs, "DTYPES", ("float32",))  # half of the traces
    return small.train_config("transformer", tmp_path, steps=10)


@pytest.fixture
def untraced(monkeypatch):
    """No derivative is traced for the memory, where no test looks at it: it takes seconds."""
    memory = memory_estimate.TrainingMemory(
        state=1.0,
        frozen=1.0,
        gradients=1.0,
        gathered=0.0,
        residuals=dict.fromkeys(("none", "dots", "full"), 1.0),
        recomputed=dict.fromkeys(("none", "dots", "full"), 0.0),
        encoded=0.0,
        parts=1,
        devices=1,
        depth=2,
    )
    monkeypatch.setattr(memory_estimate, "of_training", lambda *_: memory)


@pytest.mark.usefixtures("untraced")
def test_report_has_hours_that_follow_from_flops(config):
    """Hours are the FLOPs of the run, encoding included, over the peak and the utilization; twice
    the chips take half of the hours and as many chip-hours."""
    figures, on_two = report(config), report(config, count=2)
    per_image = flops.train_flops_per_image(config.transformer)
    encoding = flops.encode_flops(config.tokenizer)
    assert figures["flops"] == 8 * per_image and figures["train_flops"] == 80 * per_image
    assert figures["encoding_flops"] == 8 * encoding
    hours = 80 * (per_image + encoding) / (H200.peak_flops * 0.5) / 3600
    assert figures["hours"] == figures["chip_hours"] == pytest.approx(hours)
    assert on_two["hours"] == pytest.approx(hours / 2)
    assert on_two["chip_hours"] == pytest.approx(hours) and on_two["mesh"]["data"] == 2
    assert figures["usable_bytes"] == 0.75 * H200.hbm_bytes
    two_devices = report(config, chip=CHIPS["tpu7x"])
    assert two_devices["devices"] == two_devices["mesh"]["data"] == 2
    assert two_devices["chip_hours"] == pytest.approx(hours * H200.peak_flops / 2307e12)


@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize(
    ("mesh", "expected"),
    [
        (MeshConfig(policy="hsdp", replicas=2), "policy hsdp, replicas 2"),
        (MeshConfig(policy="auto"), "policy zero1, replicas 1"),
    ],
)
def test_report_names_policy_and_replicas(config, mesh, expected):
    """They are those that a run has, with the choice of the rule in place of "auto"."""
    figures = {"config": "x", **report(dataclasses.replace(config, mesh=mesh), count=4)}
    assert f"policy {figures['policy']}, replicas {figures['replicas']}" == expected
    assert any(line.strip() == expected for line in cost_lines.lines(figures))


@pytest.mark.usefixtures("untraced")
def test_report_says_what_flops_count_with_trainable(config):
    """The figure counts the training of all parameters, and a line says so where some are left as
    they are; no other run has such a line."""
    words = "with trainable 'head' steps compute fewer"
    part = dataclasses.replace(config, trainable="head")
    for run, expected in ((config, False), (part, True)):
        figures = {"config": "x", **report(run, chip=None)}
        assert figures["flops"] == 8 * flops.train_flops_per_image(config.transformer)
        assert any(words in line for line in cost_lines.lines(figures)) == expected


@pytest.mark.usefixtures("untraced")
def test_report_counts_smaller_steps_of_progressive_training(config):
    """Steps that train only the first scales cost less than those of the whole sequence."""
    transformer = dataclasses.replace(config.transformer, progressive=0.8, progressive_from=0)
    gradual = dataclasses.replace(config, transformer=transformer)
    assert 0 < report(gradual)["train_flops"] < report(config)["train_flops"]


@pytest.mark.long
@pytest.mark.parametrize("kind", ["tokenizer", "next_token", "masked", "diffusion", "adapter"])
def test_report_serves_every_kind_of_run(kind, config, tmp_path):
    """Parameters, FLOPs and memory are those of the objective itself; only models that generate
    have sampling, and only those that read tokens a cache."""
    if kind == "tokenizer":
        config = small.train_config("tokenizer", tmp_path)
    elif kind == "adapter":
        small.pipeline().save(tmp_path / "base")
        config = adapter_run(config, tmp_path / "base")
    else:
        helper = {"next_token": next_token, "masked": masked, "diffusion": diffusion}[kind]
        tokenizer = getattr(helper, "TOKENIZER", small.TOKENIZER)
        config = dataclasses.replace(config, tokenizer=tokenizer, transformer=helper.transformer())
    figures = report(config)
    assert figures["flops"] > 0 and figures["peak_bytes"] > figures["state_bytes"] > 0
    assert figures["fits"] and figures["least_remat"] == "none"
    assert ("sampling" in figures) == (kind not in ("tokenizer", "adapter"))
    reads_tokens = kind not in ("tokenizer", "diffusion")
    assert ("token_cache_bytes_per_view" in figures) == reads_tokens
    assert figures["expected"] is None
    assert all(isinstance(line, str) for line in cost_lines.lines({"config": "c", **figures}))


def follow(advice: str, config, tokens_dir: str):
    """The run with the settings of a line of advice, as a reader would set them."""
    values = dict(re.findall(r"([\w.]+)=(\w+)", advice))
    assert values
    if "data.tokens_dir" in advice:
        config = dataclasses.replace(
            config, data=dataclasses.replace(config.data, tokens_dir=tokens_dir)
        )
    transformer = dataclasses.replace(config.transformer, remat=values["transformer.remat"])
    return dataclasses.replace(
        config,
        batch_size=int(values.get("batch_size", config.batch_size)),
        microbatches=int(values.get("microbatches", config.microbatches)),
        transformer=transformer,
    )


@pytest.mark.long
def test_report_says_what_would_help(config):
    """A run that is too large is told the settings that fit, and with each of them alone it does:
    in memory that is ever smaller, all kinds of advice come up."""
    tokens_dir = config.data.tokens_dir
    config = dataclasses.replace(
        config, data=dataclasses.replace(config.data, tokens_dir=""), batch_size=64
    )
    kinds = set()
    peak = report(config, H200)["peak_bytes"]
    for share in (0.9, 0.6, 0.4):
        chip = dataclasses.replace(H200, hbm_bytes=share * peak)
        figures = report(config, chip)
        assert not figures["fits"]
        for advice in figures["would_help"]:
            assert report(follow(advice, config, tokens_dir), chip)["fits"], advice
            kinds |= set(
                re.findall("batch_size|microbatches|tokens_dir|^transformer.remat", advice)
            )
    assert kinds == {"batch_size", "microbatches", "tokens_dir", "transformer.remat"}


@pytest.mark.usefixtures("untraced")
def test_report_without_a_chip_has_no_hours(config):
    """Memory is that of one device, and nothing says that it fits."""
    figures = report(config, chip=None)
    assert "hours" not in figures and "fits" not in figures
    assert figures["peak_bytes"] > 0
    assert not any(line.startswith("time") for line in cost_lines.lines({"config": "c", **figures}))


def test_report_refuses_chips_that_do_not_divide_the_batch(config):
    """As the run itself would be, with batches that divide."""
    with pytest.raises(UserError, match="batch_size is 8; it must be a multiple of 3"):
        report(config, count=3)


@pytest.mark.usefixtures("untraced")
def test_report_of_the_published_sizes_has_the_log(config):
    """With the log's codes and scales, its rows are the expected losses; what else differs is
    named."""
    tokenizer = TokenizerConfig(
        scales=published_log.SCALES,
        in_channels=1,
        channels=8,
        multipliers=(1, 2),
        norm_groups=4,
        vocab_size=published_log.VOCABULARY,
    )
    figures = report(config.with_tokenizer(tokenizer))
    assert figures["expected"]["training"][0] == {"epoch": 1, "loss": 7.650, "passes": 2}
    text = "\n".join(cost_lines.lines({"config": "c", **figures}))
    assert "epoch 1 7.650" in text and "last scale 7.88%)" in text
    assert "this run's data are digits" in text and "this run has depth 2" in text


@pytest.mark.usefixtures("untraced")
def test_images_of_an_epoch_are_those_that_are_given(config):
    """A number on the command line replaces that of a known data set; epochs and the token cache
    follow from it."""
    assert report(config)["epoch_images"] == 1437
    figures = report(config, images=40)
    assert figures["epochs"] == 2
    assert figures["token_cache_bytes_per_view"] == 40 * (4 + 2 * small.SCALES.total)
