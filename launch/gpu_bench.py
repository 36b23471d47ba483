"""Measures training, generation and the tokenizer on one GPU, row by row, within some minutes.

  bash launch/gpu_bench.sh
  JAX_PLATFORMS=cpu bash launch/gpu_bench.sh --small --out bench.json

It needs jax, flax, optax, orbax-checkpoint, einops and numpy, and none of the libraries that read
data or config files. Rows come in the order of their worth, each in a process of its own, so that
its peak of memory is its own and one that fails, or takes longer than --row-seconds, leaves
the others. The file is written after every row; rows that it has are not measured again,
those that failed before come last, and none is begun when the time is up. A batch of
training is the largest power of two, up to 512, that fits without recomputation by an estimate of
the memory, or half of that where the card says no.

A row of training has the model FLOPs utilization (MFU): the analytic FLOPs of a step over its
time and the card's published peak in bfloat16. A row of generation has the shares of the FLOP and
of the byte roofline, of rates that are measured in turn with it (`var-jax bench`).
"""

import argparse
import dataclasses
import importlib.util
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from var_jax.io import atomic

REQUIRED = {  # {module: wheel}
    "jax": "jax[cuda13]",
    "flax": "flax",
    "optax": "optax",
    "orbax": "orbax-checkpoint",
    "einops": "einops",
    "numpy": "numpy",
}
BATCHES = (512, 256, 128, 64, 32, 16, 8, 4, 2, 1)  # of training; the largest that fits is taken
SMALL_DEPTH, SMALL_BATCH, SMALL_SCALES = 2, 2, "1,2,4"
TRIES = 4  # batches of training
MEMORY_SHARE = 0.9  # of what JAX may allocate that the estimate of a training batch may fill
MARK = "row: "  # begins the line of a row's process that has its figures


class Row(NamedTuple):
    """One kind of work: "train", "sample", "encode" or "decode".

    A `batch` of 0 is one that fits (`_fitting`).
    """

    work: str
    depth: int
    batch: int
    attention: str = "auto"

    @property
    def name(self) -> str:
        model = "tokenizer" if self.work in ("encode", "decode") else f"d{self.depth}"
        kernel = "" if self.attention == "auto" else f"_{self.attention}"
        return f"{self.work}_{model}{kernel}" + (f"_{self.batch}" if self.batch else "")


ROWS = (
    Row("train", 16, 0),
    Row("sample", 16, 64),
    Row("train", 30, 0),
    Row("sample", 30, 64),
    Row("train", 24, 0),
    Row("sample", 16, 256),
    Row("sample", 16, 1),
    Row("train", 16, 0, "xla"),
    Row("decode", 16, 64),
    Row("encode", 16, 64),
    Row("sample", 30, 1),
    Row("sample", 16, 8),
    Row("sample", 30, 256),
    Row("sample", 30, 8),
    Row("train", 24, 0, "xla"),
    Row("train", 30, 0, "xla"),
)


def config_of(row: Row, *, small: bool):
    """Returns the run's config of a row: ImageNet's at 256 pixels, in bfloat16, or a small one."""
    from var_jax.config.model import TokenizerConfig, TransformerConfig
    from var_jax.config.scales import SCALES_256, Scales
    from var_jax.config.train import TrainConfig

    stored = "float32" if row.work == "train" else "bfloat16"
    scales = Scales.parse(SMALL_SCALES if small else SCALES_256)
    tokenizer = TokenizerConfig(dtype="bfloat16", param_dtype=stored, scales=scales)
    if small:
        tokenizer = dataclasses.replace(tokenizer, channels=32)
    transformer = TransformerConfig(
        depth=SMALL_DEPTH if small else row.depth,
        scales=scales,
        attention=row.attention,
        dtype="bfloat16",
        param_dtype=stored,
    )
    return TrainConfig(stage="transformer", tokenizer=tokenizer, transformer=transformer)


def measure(row: Row, *, small: bool, repeats: int) -> dict[str, Any]:
    """Measures a row in this process, and returns its figures."""
    import jax

    from var_jax.devices.chips import chip_of_kind
    from var_jax.perf import bench

    config = config_of(row, small=small)
    batch = SMALL_BATCH if small else row.batch
    if row.work == "train":
        report = _train(config, batch, repeats)
    elif row.work == "sample":
        report = bench.sample(config, batch, repeats)
    else:
        report = bench.encode_or_decode(config, row.work, batch, repeats)
    device = jax.local_devices()[0]
    chip = chip_of_kind(device.device_kind)
    peak = (device.memory_stats() or {}).get("peak_bytes_in_use")
    report |= {
        "row": row.name,
        "depth": config.transformer.depth,
        "remat": config.transformer.remat,
        # After a larger batch that did not fit, the peak is that one's.
        "peak_bytes": None if report.get("too_large") else peak,
    }
    report["flop_share"] = report["floor_seconds"] / report["seconds"]
    if "byte_floor_seconds" in report:
        report["byte_share"] = report["byte_floor_seconds"] / report["seconds"]
    if chip is not None:
        at_peak = report["flops"] / (chip.peak_flops * report["devices"])
        report["mfu"] = at_peak / report["seconds"]
    return report


def _train(config, batch: int, repeats: int) -> dict[str, Any]:
    """Measures a training step with a batch, or with one that fits if it is 0.

    Returns:
      the report, with "too_large", the batches that were tried before and did not fit.
    """
    import jax

    from var_jax.perf import bench

    choices, too_large = [batch] if batch else _fitting(config), []
    for choice in choices:
        try:
            return bench.train(config, choice, repeats) | {"too_large": too_large}
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) or choice == choices[-1]:
                raise
            too_large.append(choice)
    raise AssertionError


def _fitting(config) -> list[int]:
    """Returns batches from the largest that fits by the estimate downwards, at most four."""
    import jax

    from var_jax.objectives import registry
    from var_jax.train import memory_estimate

    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", 16 * 2**30)
    memory = memory_estimate.of_training(
        registry.with_frozen_shapes(config), {"data": 1, "model": 1}, "gpu", "bfloat16"
    )
    most = memory.most_images(config.transformer.remat, MEMORY_SHARE * limit)
    return [batch for batch in BATCHES if batch <= max(most, 1)][:TRIES]


def missing_wheels() -> list[str]:
    """Returns the wheels of required packages that are not installed."""
    return [wheel for module, wheel in REQUIRED.items() if importlib.util.find_spec(module) is None]


def device() -> tuple[str, str]:
    """Returns JAX's backend and the name of its first device, which another process asks for.

    This one leaves the card's memory to the rows.
    """
    code = "import jax; print(jax.default_backend(), jax.local_devices()[0].device_kind)"
    run = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    backend, _, kind = (run.stdout.strip().splitlines() or ["none none"])[-1].partition(" ")
    return backend, kind


def run(args: argparse.Namespace) -> int:
    """Measures the rows that are missing, as long as there is time; returns the exit code."""
    if wheels := missing_wheels():
        print(
            f"gpu_bench.py: not installed: {', '.join(wheels)}; where nothing can be downloaded, "
            f"bring them as wheels: pip download {' '.join(map(repr, wheels))}",
            file=sys.stderr,
        )
        return 2
    backend, kind = device()
    if backend != "gpu" and not args.small:
        print(
            f"gpu_bench.py: JAX sees no GPU (its backend is {backend}); install jax[cuda13], or "
            "try the script on a CPU with --small",
            file=sys.stderr,
        )
        return 2
    out = args.out or Path("docs/results/bench") / f"{kind.lower().replace(' ', '_')}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    about = {"device": kind, "small": args.small, "repeats": args.repeats}
    file = json.loads(out.read_text()) if out.exists() else about
    if different := [name for name in about if file.get(name) != about[name]]:
        print(
            f"gpu_bench.py: {out} has rows of another {' and '.join(different)}; name another "
            "file with --out",
            file=sys.stderr,
        )
        return 2
    file["command"] = shlex.join(["python", *sys.argv])
    rows, failures = file.setdefault("rows", {}), file.setdefault("failures", {})
    failed = 0
    until = time.monotonic() + 60 * args.minutes
    for number, row in enumerate(sorted(ROWS, key=lambda row: row.name in failures), 1):
        left = until - time.monotonic()
        if row.name in rows or (args.rows and row.name not in args.rows):
            continue
        if left <= 0:
            print(f"the time is up before {row.name}; the same command goes on from there")
            break
        print(f"[{number}/{len(ROWS)}] {row.name}, {left / 60:.1f} minutes left", flush=True)
        failures.pop(row.name, None)
        try:
            rows[row.name] = _in_own_process(row, args, min(left, args.row_seconds))
            print(line(rows[row.name]), flush=True)
        except RowFailure as failure:
            failed += 1
            if left > args.row_seconds:  # else the time was up, which is no fault of the row
                failures[row.name] = str(failure)
            print(f"{row.name} {failure}", file=sys.stderr, flush=True)
        atomic.write(out, json.dumps(file, indent=1) + "\n")
    print(f"{len(rows)} rows in {out}" + (f", {failed} failed" if failed else ""))
    return 1 if failed else 0


class RowFailure(Exception):
    """A row's process that failed or did not end in time."""


def _in_own_process(row: Row, args: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """Returns the figures of a row.

    Raises:
      RowFailure: its process failed, or did not end within `seconds`.
    """
    command = [sys.executable, __file__, "--row", row.name, "--repeats", str(args.repeats)]
    command += ["--small"] if args.small else []
    start = time.monotonic()
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise RowFailure(f"did not end in {seconds:.3g} s") from None
    lines = [text for text in done.stdout.splitlines() if text.startswith(MARK)]
    if done.returncode or not lines:
        raise RowFailure(f"failed with exit code {done.returncode}")
    return {
        **json.loads(lines[-1].removeprefix(MARK)),
        "row_seconds": round(time.monotonic() - start, 1),
    }


def line(report: dict[str, Any]) -> str:
    """Returns the figures of a row for a terminal."""
    parts = [
        f"  batch {report['batch']}",
        f"{report['images_per_s']:.4g} images/s",
        f"{report['flop_share']:.1%} of the FLOP roofline",
    ]
    if "byte_share" in report:
        parts.append(f"{report['byte_share']:.1%} of the byte roofline")
    if "mfu" in report:
        parts.append(f"MFU {report['mfu']:.1%}")
    if report["peak_bytes"]:
        parts.append(f"peak {report['peak_bytes'] / 2**30:.1f} GiB")
    return ", ".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [row.name for row in ROWS]
    parser.add_argument("--rows", nargs="+", choices=names, metavar="ROW", help=", ".join(names))
    parser.add_argument(
        "--minutes", type=float, default=8.5, help="after which no row goes on (%(default)s)"
    )
    parser.add_argument(
        "--row-seconds",
        type=float,
        default=150,
        help="after which a row is ended: one that hangs would take all of the time (%(default)s)",
    )
    parser.add_argument(
        "--repeats", type=int, default=5, help="measurements, whose median counts (%(default)s)"
    )
    parser.add_argument(
        "--small", action="store_true", help="depth 2 and batch 2, to try the script on a CPU"
    )
    parser.add_argument(
        "--out", type=Path, metavar="F", help="default: docs/results/bench/ and the card's name"
    )
    parser.add_argument("--row", choices=names, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row is None:
        return run(args)
    row = ROWS[names.index(args.row)]
    print(MARK + json.dumps(measure(row, small=args.small, repeats=args.repeats)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
