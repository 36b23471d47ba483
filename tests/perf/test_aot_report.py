"""One small program by the real TPU compiler, for two of the command's reports."""

import dataclasses
import json

import pytest

from helpers import small
from var_jax.cli.main import main
from var_jax.devices.chips import CHIPS
from var_jax.models import flops
from var_jax.objectives import registry
from var_jax.perf import aot, aot_lines, aot_report, tpu_slices
from var_jax.train import memory_estimate, mesh_choice

pytest.importorskip(
    "libtpu", reason="libtpu, the TPU compiler, is not installed (pip install 'var-jax[aot]')"
)

KEYS = {
    "fits",
    "devices",
    "hbm_bytes",
    "peak_bytes",
    "flops",
    "collectives",
    "step_seconds",
    "mfu_bound",
    "step_seconds_exposed",
    "mfu_bound_exposed",
}


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    directory = tmp_path_factory.mktemp("aot")
    (directory / "config.py").write_text(small.CONFIG_FILE)
    args = [
        "aot",
        "--config",
        str(directory / "config.py"),
        "--topology",
        "v5e:2x2",
        "--json",
        str(directory / "a.json"),
        "--config.transformer.dtype=bfloat16",
    ]
    assert main(args) == 0
    return json.loads((directory / "a.json").read_text())


@pytest.mark.long
def test_report_of_a_step_that_fits(result):
    """Devices, memory and FLOPs are those of the slice and of the model, and the arguments lie
    within the peak, which lies within the memory."""
    assert result.keys() >= KEYS and result["fits"] is True
    assert (result["devices"], result["hbm_bytes"], result["mesh"]) == (
        4,
        CHIPS["v5e"].hbm_bytes,
        {"data": 4, "model": 1},
    )
    assert 0 < result["argument_bytes"] < result["peak_bytes"] < result["hbm_bytes"]
    assert result["flops"] == 8 * flops.train_flops_per_image(small.TRANSFORMER)


def test_report_has_times_that_follow_from_its_figures(result):
    """Each time is FLOPs or bytes over the chip's rate, and a step takes the longest of the
    three."""
    chip = CHIPS["v5e"]
    assert result["compute_seconds"] == pytest.approx(
        result["executed_flops"] / 4 / chip.peak_flops
    )
    assert result["hbm_seconds"] == pytest.approx(result["hbm_traffic_bytes"] / chip.hbm_bandwidth)
    assert result["interconnect_seconds"] == pytest.approx(
        sum(result["collective_seconds"].values())
    )
    terms = [result[f"{term}_seconds"] for term in ("compute", "hbm", "interconnect")]
    assert result["step_seconds"] == max(terms) <= result["step_seconds_exposed"]
    at_peak = result["flops"] / 4 / chip.peak_flops
    assert result["mfu_bound"] == pytest.approx(at_peak / result["step_seconds"])
    # What is executed is what the model needs, and no replica of it: padding of tiny tiles apart
    assert result["executed_flops"] > result["flops"]


def test_gradients_and_weights_cross_the_network(result):
    """Every weight is gathered and its gradient reduced: at least two bytes a parameter, each
    way."""
    parameters = flops.param_count(small.TRANSFORMER)["total"]
    assert sum(result["collectives"].values()) > 2 * 2 * parameters


def test_gradients_are_reduced_in_float32(result):
    """The compiled program sums the gradients of bfloat16 weights over chips in float32, as the
    report says."""
    parameters = flops.param_count(small.TRANSFORMER)["total"]
    assert (
        result["reduced_bytes"]["f32"] > 4 * parameters / 2
    )  # AdaLN's partial products are summed instead
    [line] = [line for line in aot_lines.lines(result) if line.startswith("reductions")]
    assert "f32" in line


@pytest.mark.slow
def test_report_of_bfloat16_gradients_reduces_fewer_bytes(result, tmp_path):
    """Less than half of the float32 bytes remain, and all collectives together move less."""
    (tmp_path / "config.py").write_text(small.CONFIG_FILE)
    assert (
        main(
            [
                "aot",
                "--config",
                str(tmp_path / "config.py"),
                "--topology",
                "v5e:2x2",
                "--json",
                str(tmp_path / "a.json"),
                "--config.transformer.dtype=bfloat16",
                "--config.transformer.gradient_dtype=bfloat16",
            ]
        )
        == 0
    )
    narrow = json.loads((tmp_path / "a.json").read_text())
    assert narrow["reduced_bytes"].get("f32", 0) < result["reduced_bytes"]["f32"] / 2
    assert sum(narrow["collectives"].values()) < sum(result["collectives"].values())


def test_markdown_and_lines_show_a_report(result, tmp_path):
    """The row has as many cells as the head, with the slice and the bound of its MFU."""
    (tmp_path / "d2_v5e-2x2.json").write_text(json.dumps(result))
    head, _, row = aot_lines.markdown(tmp_path).splitlines()
    assert (
        head.count("|") == row.count("|")
        and "v5e:2x2" in row
        and f"{result['mfu_bound']:.1%}" in row
    )
    assert any("fits" in line for line in aot_lines.lines(result))


def test_report_of_a_step_that_does_not_fit_says_what_would_help(result):
    """What is missing is the saved activations per device; more microbatches, recomputation and a
    model axis are offered."""
    config = small.train_config("transformer", "", microbatches=1)
    remaining = memory_estimate.residual_bytes(registry.with_frozen_shapes(config), "none", 4)
    room = result["peak_bytes"] - remaining / 4
    output = aot_report._knobs(
        registry.with_frozen_shapes(config),
        {**result, "remat": "none", "hbm_bytes": room, "fits": False},
    )
    assert output["over_bytes"] == pytest.approx(remaining / 4)
    assert any("microbatches=2" in text for text in output["would_help"])
    assert any("transformer.remat=full" in text for text in output["would_help"])
    assert any("mesh.model=2" in text for text in output["would_help"])


@pytest.mark.parametrize(
    ("message", "size"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for "
            "HLO temporaries (180.76G) exceeds available HBM (15.75G).",
            180.76 * 2**30,
        ),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 18.5G of 15.75G hbm. "
            "Exceeded hbm capacity by 2.75G.",
            18.5 * 2**30,
        ),
    ],
)
def test_required_bytes_are_read_from_the_compilers_message(message, size):
    """The memory that a program needs is read from both wordings of the compiler's refusal."""
    assert aot_report._required_bytes(message) == size


@pytest.mark.long
def test_aot_exits_with_1_when_a_real_step_does_not_fit(tmp_path, capsys):
    """The compiler's own refusal becomes a report with the bytes that are missing, and exit code
    1."""
    (tmp_path / "config.py").write_text(small.CONFIG_FILE)
    assert (
        main(
            [
                "aot",
                "--config",
                str(tmp_path / "config.py"),
                "--topology",
                "v5e:2x2",
                "--json",
                str(tmp_path / "a.json"),
                "--config.batch_size=16777216",
            ]
        )
        == 1
    )
    result = json.loads((tmp_path / "a.json").read_text())
    assert result["fits"] is False and result["peak_bytes"] > result["hbm_bytes"]
    assert result["over_bytes"] == result["peak_bytes"] - result["hbm_bytes"]
    assert "DOES NOT FIT" in (printed := capsys.readouterr().out) and "would help" in printed


def test_residual_bytes_fall_with_recomputation():
    """The more of the forward pass is recomputed, the fewer bytes are saved for the backward pass:
    most without rematerialization, fewer if the products are saved, of all blocks or one, and
    fewest with full rematerialization or with the products in the host's memory."""
    objective = registry.with_frozen_shapes(small.train_config("transformer", ""))
    values = (*objective.remat_choices, "offload")
    sizes = memory_estimate.residual_bytes_by_value(objective, values, 1)
    none, dots, some, full, on_host = sizes.values()
    assert none > dots > some > full > 0
    assert on_host == full


@pytest.mark.long
def test_aot_mesh_has_a_model_axis_where_the_width_asks_for_one(result):
    """A width of 16 is not divided over 32 devices."""

    config = small.train_config("transformer", "")  # width 16 on 32 devices
    config = dataclasses.replace(config, batch_size=64)
    objective = registry.with_frozen_shapes(config)
    choice = mesh_choice.choose(objective, tpu_slices.named("v5e:4x8").devices)
    step = aot.lower_train_step(objective, choice)
    assert dict(step.mesh.shape) == {"data": 16, "model": 2}


@pytest.mark.slow
def test_report_of_a_sample_step(tmp_path):
    """8 images on each of 4 devices cost the FLOPs of guided generation and decoding."""
    (tmp_path / "config.py").write_text(small.CONFIG_FILE)
    args = [
        "aot",
        "--config",
        str(tmp_path / "config.py"),
        "--topology",
        "v5e:2x2",
        "--step",
        "sample",
        "--json",
        str(tmp_path / "a.json"),
    ]
    assert main(args) == 0
    result = json.loads((tmp_path / "a.json").read_text())
    assert result["fits"] and result["images"] == 8 * 4 and "chip_hours" not in result
    one = flops.generation_flops(small.TRANSFORMER, guided=True) + flops.decode_flops(
        small.TOKENIZER
    )
    assert result["flops"] == 32 * one
