"""`var-jax bench` where JAX, Flax, Optax, einops, ml_collections and NumPy are installed, and
nothing else of ours."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from helpers import diffusion, small
from var_jax.cli.main import main
from var_jax.errors import UserError
from var_jax.models import flops
from var_jax.perf import bench, roofline

ROOT = Path(__file__).parents[2]
# Refuses what our own modules and configs import beyond the six (absl is ml_collections' own); what
# those six bring along for themselves is theirs. The project is not installed there either.
BARE = """
import builtins, importlib.metadata, sys
allowed = {"jax", "flax", "optax", "einops", "numpy", "var_jax", *sys.argv.pop().split()}
allowed |= sys.stdlib_module_names
plain, version = builtins.__import__, importlib.metadata.version

def guarded(name, globals=None, locals=None, fromlist=(), level=0):
    importer = (globals or {}).get("__name__", "")
    file = (globals or {}).get("__file__", "")
    is_own = importer.partition(".")[0] == "var_jax" or file.endswith("small_run.py")
    if is_own and not level and name.partition(".")[0] not in allowed:
        raise ModuleNotFoundError(f"{importer} imports {name}")
    return plain(name, globals, locals, fromlist, level)

def missing(name):
    if name == "var-jax":
        raise importlib.metadata.PackageNotFoundError(name)
    return version(name)

builtins.__import__, importlib.metadata.version = guarded, missing
"""
COMMAND = """
from var_jax.perf import roofline
from var_jax.cli.main import main
roofline.MATRIX["cpu"] = 64
sys.exit(main(sys.argv[1:]))
"""


def bare(
    *argv, script: str = COMMAND, further: str = "ml_collections absl"
) -> subprocess.CompletedProcess:
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.run(
        [sys.executable, "-c", BARE + script, *map(str, argv), further],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


# Of one image, by hand. A pass of the transformer: 17 tokens through two blocks of width 16 (MLP
# 64), a head of 16 codes and an embedding of 4 channels; 225 attended pairs; AdaLN's 12 linears in
# the blocks and 2 before the head.
FORWARD = (
    2 * 17 * (2 * (4 * 16**2 + 2 * 16 * 64) + 16 * 16 + 4 * 16) + 2 * 4 * 16 * 225 + 2 * 16**2 * 14
)
# Twice (guided), and the head's 2 linears at the two other scales.
GENERATED = 2 * (FORWARD + 2 * 2 * 16**2 * 2)
# A 3 x 3 convolution has 70 taps within the 3 x 4 map and 352 within the 6 x 8 image; upsampling,
# three of phi, and the decoder: two residual blocks in the middle, two at width 16, two at width 8,
# the first of which has a shortcut.
DECODED = (
    (2 * 4 * 3 * 1 * (1 + 4) + 2 * 4 * 3 * 2 * (2 + 4))
    + 3 * 2 * 70 * 4 * 4
    + 2 * 70 * (4 * 4 + 4 * 16)
    + (2 + 2) * 2 * (2 * 70 * 16**2)
    + 2 * 352 * 16 * 16
    + 2 * 352 * (16 * 8 + 8 * 8)
    + 2 * 48 * 16 * 8
    + 2 * (2 * 352 * 8 * 8)
    + 2 * 352 * 8 * 1
)

# Weights in float32: AdaLN's 12 linears in front of the blocks once; at each of 3 scales both
# blocks, the head, the embedding and the 2 linears before the head. Keys and values in bfloat16, of
# 2 images guided, in 2 blocks: 1, 1 + 4 and 1 + 4 + 12 tokens are touched.
WEIGHTS = 12 * 16**2 + 3 * (2 * (4 * 16**2 + 2 * 16 * 64) + 16 * 16 + 4 * 16 + 2 * 16**2)
CACHED = 2 * 2 * 16 * (2 * 2) * (1 + 5 + 17)


def convolution(inputs: int, outputs: int, side: int = 3) -> int:
    return side**2 * inputs * outputs + outputs


def residual_block(inputs: int, outputs: int) -> int:
    norms = 2 * inputs + 2 * outputs
    return norms + convolution(inputs, outputs) + convolution(outputs, outputs)


# Codes, two of phi and the convolution in front of the decoder; in that the blocks as above.
DECODER = (
    16 * 4
    + 3 * convolution(4, 4)
    + convolution(4, 16)
    + 4 * residual_block(16, 16)
    + convolution(16, 16)
    + residual_block(16, 8)
    + convolution(16, 8, 1)
    + residual_block(8, 8)
    + 2 * 8
    + convolution(8, 1)
)


def test_bench_imports_nothing_but_what_is_installed():
    """Every module behind the command loads, and the guard refuses the first import of another
    package by its name."""
    loaded = bare(
        script="import var_jax.cli.bench, var_jax.perf.bench, var_jax.objectives.registry"
    )
    assert loaded.returncode == 0, loaded.stderr
    refused = bare(script="import var_jax.scaling.profile_intervals")
    assert "var_jax.scaling.profile_intervals imports jaxtyping" in refused.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "parts"),
    [
        ("sample", {"transformer": GENERATED, "tokenizer": DECODED}),
        ("train", {"transformer": 3 * FORWARD}),
    ],
)
def test_bench_runs_where_little_is_installed(what, parts, tmp_path):
    """The command finds all that it needs, and the roofline of a bfloat16 model on a CPU is that of
    float32."""
    config, report = tmp_path / "small_run.py", tmp_path / "report.json"
    config.write_text(small.CONFIG_FILE)
    run = bare(
        "bench",
        what,
        "--config",
        config,
        "--batch",
        2,
        "--repeats",
        1,
        "--json",
        report,
        "--config.transformer.dtype=bfloat16",
    )
    assert run.returncode == 0, run.stderr
    parsed = json.loads(report.read_text())
    assert (parsed["batch"], parsed["dtype"], parsed["devices"]) == (2, "bfloat16", 1)
    assert parsed["parts"] == {
        name: {"flops": 2 * flops, "rate": "float32"} for name, flops in parts.items()
    }
    rates = parsed["matmul_flops_per_s"]
    assert list(rates) == ["float32"]
    assert parsed["floor_seconds"] == pytest.approx(2 * sum(parts.values()) / rates["float32"])
    if what == "sample":
        assert parsed["bytes"] == 4 * (WEIGHTS + DECODER) + 2 * CACHED
        assert parsed["byte_floor_seconds"] == pytest.approx(
            parsed["bytes"] / parsed["bytes_per_s"]
        )
        assert set(parsed["seconds_by_part"]) == {"transformer", "decoder", "sampling"}
        assert (
            min(parsed["seconds_by_part"]["transformer"], parsed["seconds_by_part"]["decoder"]) > 0
        )


@pytest.mark.parametrize("work", ["encode", "decode"])
def test_encode_or_decode_counts_its_own_work(work, monkeypatch, tmp_path):
    """Decoding has the FLOPs and the bytes of weights that are counted by hand above; encoding
    those of the encoder, and no bytes; the lines for a terminal can be made of either."""
    monkeypatch.setitem(roofline.MATRIX, "cpu", 64)
    monkeypatch.setitem(roofline.COPY_BYTES, "cpu", 2**12)
    config = small.train_config("transformer", tmp_path)
    report = bench.encode_or_decode(config, work, batch=2, repeats=1)
    per_image = DECODED if work == "decode" else flops.encode_flops(config.tokenizer)
    assert report["flops"] == 2 * per_image and report["images_per_s"] > 0
    assert report.get("bytes") == (4 * DECODER if work == "decode" else None)
    assert f"{work}, batch 2, float32" in "\n".join(bench.lines(report))


def test_compare_to_roofline_leaves_the_rest_to_sampling(monkeypatch):
    """Medians of three measurements are 2, 1.25 and 0.5 seconds, and a quarter of a second is
    left."""
    monkeypatch.setitem(roofline.MATRIX, "cpu", 64)
    array = jax.device_put(np.zeros(1))
    functions = {name: lambda: array for name in ("whole", "transformer", "decoder")}
    times = {
        functions["whole"]: iter((9.0, 2.0, 1.0)),
        functions["transformer"]: iter((1.25, 0.25, 1.5)),
        functions["decoder"]: iter((0.5, 0.25, 7.0)),
    }  # the medians are 2, 1.25 and 0.5
    monkeypatch.setattr(roofline, "_seconds", lambda run: next(times[run]) if run in times else 0.5)
    full = functions.pop("whole")
    result = roofline.compare_to_roofline(
        full, {"transformer": roofline.Part(3e6, "float32")}, batch=2, repeats=3, alone=functions
    )
    assert result["seconds"] == 2 and result["seconds_by_part"] == {
        "transformer": 1.25,
        "decoder": 0.5,
        "sampling": 0.25,
    }


def test_bench_counts_each_part_at_the_rate_of_its_dtype(monkeypatch):
    """Rates of 8 devices are measured by products of a known size and time, and the roofline is
    FLOPs over rate."""
    monkeypatch.setitem(roofline.MATRIX, "cpu", 64)
    monkeypatch.setattr(roofline, "RATE_DTYPE", {})
    monkeypatch.setattr(roofline, "_seconds", lambda run: 0.25 if run() is spread else 0.5)
    mesh = jax.make_mesh((8,), ("data",))
    spread = jax.device_put(np.zeros(8), NamedSharding(mesh, PartitionSpec("data")))
    parts = {
        "transformer": roofline.Part(3e6, "bfloat16"),
        "tokenizer": roofline.Part(5e6, "float32"),
    }
    result = roofline.compare_to_roofline(lambda: spread, parts, batch=2, repeats=1)
    rate = 8 * 2 * 64**3 / 0.5
    assert result["devices"] == 8 and result["matmul_flops_per_s"] == {
        "bfloat16": rate,
        "float32": rate,
    }
    assert {name: part["rate"] for name, part in result["parts"].items()} == {
        "transformer": "bfloat16",
        "tokenizer": "float32",
    }
    assert result["floor_seconds"] == pytest.approx(8e6 / rate) and result["images_per_s"] == 8
    assert result["ratio"] == pytest.approx(0.25 * rate / 8e6)


def test_bench_prints_a_row_per_batch_size(monkeypatch, tmp_path, capsys):
    """Rows and the report have the measured values in the order of batches; bad batches and files
    are refused before anything is measured."""

    def measured(config, batch, repeats):
        return {
            "what": "sample",
            "batch": batch,
            "dtype": "float32",
            "devices": 1,
            "device": "cpu",
            "seconds": 0.5,
            "images_per_s": batch / 0.5,
            "floor_seconds": 0.25,
            "byte_floor_seconds": 0.125,
            "seconds_by_part": {"transformer": 0.3, "decoder": 0.15, "sampling": 0.05},
        }

    config, report = tmp_path / "small_run.py", tmp_path / "report.json"
    config.write_text(small.CONFIG_FILE)
    monkeypatch.setattr(bench, "sample", measured)
    assert (
        main(
            ["bench", "sample", "--config", str(config), "--batch", "1,8,64", "--json", str(report)]
        )
        == 0
    )
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[2:] == [
        [batch, rate, "0.500", "0.250", "0.125", "0.300", "0.050", "0.150"]
        for batch, rate in (("1", "2"), ("8", "16"), ("64", "128"))
    ]
    assert [one["batch"] for one in json.loads(report.read_text())["batches"]] == [1, 8, 64]
    for what, batch, message in (
        ("sample", "0", "--batch is 0; it must be a whole number of at least 1"),
        ("sample", "1,x", "--batch is 1,x"),
        ("train", "1,8", "one number for train"),
    ):
        assert main(["bench", what, "--config", str(config), "--batch", batch]) == 2
        assert message in capsys.readouterr().err
    monkeypatch.setattr(bench, "sample", lambda *_: pytest.fail("measured before it was refused"))
    for place, message in (
        (tmp_path, "it is a directory; name a file"),
        (config / "a.json", "is a file, not a dir"),
    ):
        assert main(["bench", "sample", "--config", str(config), "--json", str(place)]) == 2
        assert message in capsys.readouterr().err


def test_bench_refuses_a_batch_that_the_devices_do_not_divide():
    """Three images cannot be split over eight devices, and the message has the multiple that is
    needed."""
    with pytest.raises(UserError, match=r"the batch is 3; it must be a multiple of 8"):
        bench.train(small.train_config("tokenizer", ""), batch=3)


def test_tokens_refuses_an_objective_that_has_no_token_cache():
    """Diffusion learns features before the quantizer, so that there is nothing to compare."""
    config = small.train_config(
        "transformer",
        "nowhere",
        tokenizer=diffusion.TOKENIZER,
        transformer=diffusion.transformer(),
    )
    with pytest.raises(UserError, match=r"transformer\.objective is 'diffusion'; it must be"):
        bench.tokens(config)


def test_guard_refuses_what_is_not_among_its_choices(tmp_path):
    """The helper that hides all other packages does hide them: another command fails there."""
    run = bare("sample", "--model", tmp_path, "--labels", "0", "--out", tmp_path / "out.png")
    assert run.returncode == 1 and "ModuleNotFoundError: var_jax" in run.stderr
