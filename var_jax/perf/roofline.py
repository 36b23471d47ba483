"""Compares a program's time with the machine's roofline: the times of its FLOPs and its bytes.

The bound is the analytic FLOPs of each part over the rate of a large matrix product in its dtype,
on as many devices at once as the program runs on; on a CPU always in float32, since the speed of
bfloat16 there says little about the machine. Both are measured in turn in one run and their medians
compared, so that a busy or throttled machine slows both.
"""

import functools
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

MATRIX = {"cpu": 4096}  # side of the matrix product that the rate is taken from
LARGE_MATRIX = 8192
COPY_BYTES = {"cpu": 2**27}  # copy that the rate of memory is taken from: beyond every cache
LARGE_COPY_BYTES = 2**30
RATE_DTYPE = {"cpu": "float32"}  # on other platforms a part's own dtype


class Part(NamedTuple):
    """The FLOPs of a batch in one of the two models, in its compute dtype."""

    flops: float
    dtype: str


def compare_to_roofline(
    run: Callable[[], Any],
    parts: Mapping[str, Part],
    batch: int,
    repeats: int,
    *,
    moved: int | None = None,
    alone: Mapping[str, Callable[[], Any]] | None = None,
) -> dict[str, Any]:
    """Returns the time of `run`, which computes a batch, and the roofline of its parts.

    Args:
      batch: images of `run`.
      repeats: measurements, whose median counts.
      moved: least bytes that it moves, over all devices.
      alone: parts of a generation that are timed separately; "sampling" is the rest.
    Returns:
      seconds, floor_seconds, ratio, images_per_s and more; `bench.sample` describes them.
    """
    backend, alone = jax.default_backend(), alone or {}
    side = MATRIX.get(backend, LARGE_MATRIX)
    rate_dtypes = {part.dtype: RATE_DTYPE.get(backend, part.dtype) for part in parts.values()}

    # The first run compiles, and shows which devices are used
    start = time.perf_counter()
    devices = jax.tree.leaves(jax.block_until_ready(run()))[0].sharding.device_set
    compile_seconds = time.perf_counter() - start
    products = {dtype: _product(dtype, side, devices) for dtype in rate_dtypes.values()}
    copy = None if moved is None else _copy(COPY_BYTES.get(backend, LARGE_COPY_BYTES), devices)
    jax.block_until_ready([part() for part in alone.values()])

    # Everything in turn
    times, copy_times = [], []
    product_times: dict[str, list[float]] = {dtype: [] for dtype in products}
    alone_times: dict[str, list[float]] = {name: [] for name in alone}
    for _ in range(repeats):
        for dtype, product in products.items():
            product_times[dtype].append(_seconds(product))
        times.append(_seconds(run))
        for name, part in alone.items():
            alone_times[name].append(_seconds(part))
        if copy is not None:
            copy_times.append(_seconds(copy))

    seconds = statistics.median(times)
    rates = {
        dtype: 2 * len(devices) * side**3 / statistics.median(some)
        for dtype, some in product_times.items()
    }
    floor = sum(part.flops / rates[rate_dtypes[part.dtype]] for part in parts.values())
    report = {
        "device": jax.devices()[0].device_kind,
        "devices": len(devices),
        "seconds": seconds,
        "floor_seconds": floor,
        "ratio": seconds / floor,
        "images_per_s": batch / seconds,
        "flops": sum(part.flops for part in parts.values()),
        "parts": {
            name: {"flops": part.flops, "rate": rate_dtypes[part.dtype]}
            for name, part in parts.items()
        },
        "matmul_flops_per_s": rates,
        "matrix": side,
        "compile_seconds": compile_seconds,
        "all_seconds": times,
    }
    if moved is not None:
        copied = 2 * len(devices) * COPY_BYTES.get(backend, LARGE_COPY_BYTES)  # read and written
        rate = copied / statistics.median(copy_times)
        report |= {"bytes": moved, "bytes_per_s": rate, "byte_floor_seconds": moved / rate}
    if alone:
        by_part = {name: statistics.median(some) for name, some in alone_times.items()}
        report["seconds_by_part"] = {**by_part, "sampling": seconds - sum(by_part.values())}
    return report


def _copy(size: int, devices: set[jax.Device]) -> Callable:
    """Returns a compiled pass that reads and writes `size` bytes on every device."""
    mesh = Mesh(np.array(sorted(devices, key=lambda device: device.id)), ("devices",))
    rows = NamedSharding(mesh, PartitionSpec("devices"))
    array = jax.device_put(jnp.ones((len(devices), size // 4)), rows)
    add = jax.jit(lambda x: x + 1, out_shardings=rows)
    jax.block_until_ready(add(array))
    return functools.partial(add, array)


def _product(dtype: str, side: int, devices: set[jax.Device]) -> Callable:
    """Returns a compiled product of square matrices, one on every device at once."""
    mesh = Mesh(np.array(sorted(devices, key=lambda device: device.id)), ("devices",))
    rows = NamedSharding(mesh, PartitionSpec("devices"))
    replicated = NamedSharding(mesh, PartitionSpec())
    right = jax.random.normal(jax.random.key(0), (side, side), jnp.dtype(dtype))
    arguments = (
        jax.device_put(jnp.tile(right, (len(devices), 1)), rows),
        jax.device_put(right, replicated),
    )
    product = jax.jit(jnp.matmul, out_shardings=rows)
    jax.block_until_ready(product(*arguments))
    return functools.partial(product, *arguments)


def _seconds(run: Callable) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start
