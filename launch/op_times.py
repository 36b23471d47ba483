"""Time of every XLA operation within one row of `cpu_bench.py`, from a trace.

  python launch/op_times.py d16_train --num 40

Call it to see where a step's or a generation's time goes. On a CPU, a program's operations run one
after the other, and JAX's profiler writes when each begins and ends. The sums are printed by
operation, then by kind of operation. Start it with the tunables that `var-jax` sets for itself, as
`cpu_bench.py` does: GLIBC_TUNABLES from `python -c "from var_jax.cli import allocator;
print(allocator.FOR_XLA)"`.
"""

import argparse
import collections
import gzip
import json
import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

RUNTIME = re.compile(r"^(\$|ThunkExecutor|end: )|::")  # and Python: no operations


class OpTime(NamedTuple):
    """Calls of one operation: how many, and their seconds without those of operations inside."""

    count: int
    seconds: float


def op_times(events: Iterable[Mapping[str, Any]]) -> dict[str, OpTime]:
    """Returns the time of each operation, the longest first.

    Args:
      events: of a trace in Chrome's format, with microseconds; within a thread they nest.
    """
    seconds, counts = collections.Counter(), collections.Counter()
    threads = collections.defaultdict(list)
    for event in events:
        if event.get("ph") == "X":
            threads[event["pid"], event["tid"]].append(event)
    for thread in threads.values():
        ends: list[tuple[float, str]] = []  # of the events that are open, the innermost last
        for event in sorted(thread, key=lambda event: (event["ts"], -event["dur"])):
            while ends and ends[-1][0] <= event["ts"]:
                ends.pop()
            if ends:
                seconds[ends[-1][1]] -= event["dur"] / 1e6
            seconds[event["name"]] += event["dur"] / 1e6
            counts[event["name"]] += 1
            ends.append((event["ts"] + event["dur"], event["name"]))
    return {
        name: OpTime(counts[name], time)
        for name, time in seconds.most_common()
        if not RUNTIME.search(name)
    }


def by_kind(times: Mapping[str, OpTime]) -> dict[str, OpTime]:
    """Returns the sums over operations whose names differ by their numbers alone."""
    sums: dict[str, OpTime] = {}
    for name, time in times.items():
        kind = re.sub(r"[.\d]+$", "", name)
        before = sums.get(kind, OpTime(0, 0.0))
        sums[kind] = OpTime(before.count + time.count, before.seconds + time.seconds)
    return dict(sorted(sums.items(), key=lambda item: -item[1].seconds))


def trace(row: str) -> list[dict[str, Any]]:
    """Returns the events of one run of a row's work, compiled and run once before."""
    import cpu_bench
    import jax

    work = cpu_bench.jax_work(cpu_bench.ROWS[row])
    jax.block_until_ready(work())
    with tempfile.TemporaryDirectory() as directory:
        with jax.profiler.trace(directory):
            jax.block_until_ready(work())
        (path,) = Path(directory).rglob("*.trace.json.gz")
        return json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]


def main():
    import cpu_bench

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("row", choices=tuple(cpu_bench.ROWS))
    parser.add_argument("--num", type=int, default=40, help="operations to print (%(default)s)")
    args = parser.parse_args()
    times = op_times(trace(args.row))
    print(f"{sum(time.seconds for time in times.values()):.3f} s in all")
    for part in (times, by_kind(times)):
        print("\n seconds  calls")
        for name, time in list(part.items())[: args.num]:
            print(f"{time.seconds:8.4f} {time.count:6d}  {name}")


if __name__ == "__main__":
    main()
