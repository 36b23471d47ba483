"""Measures the time from the start of a process to a run's first training step, part by part.

  python launch/first_step.py --rows digits,d16 --json docs/results/bench/first_step.json

Each row is a config's training step on a CPU, from made-up arrays and frozen weights, in
three processes: without compiled programs on the disk, with those that the first one left in the
folder of compiled programs, and with a step that `var-jax aot --save` would have written. Times are
those of the processor, of all threads of the process, as the machine's clock says little where
other programs use it. "import" includes Python's start and the reading of the config; "state" is
the compilation and the computation of fresh weights; "trace" is what JAX does until the compiler
begins; "compile" is the compiler, or the reading of its program from the disk; "first step" is the
execution of one step.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FLOAT32 = "--config.transformer.dtype=float32"
# The config and its settings. One image per step keeps the execution of d16 short.
ROWS = {
    "digits_tokenizer": ["configs/digits.py:tokenizer"],
    "digits": ["configs/digits.py:d2"],
    "d16": ["configs/imagenet256.py:d16", FLOAT32, "--config.batch_size=1"],
}
ARMS = ("cold", "cache", "executable")
PARTS = ("import", "state", "trace", "compile", "first_step")


def work(file: str, flags: list[str], executable: Path, arm: str):
    """Does one step of a run, and prints the processor time of each part as JSON.

    Args:
      executable: file of the step, which the arm "cold" writes: a program that was read from the
        folder of compiled programs cannot be written again.
    """
    marks = [0.0]
    from var_jax.cli.args import read_sized_config

    config = read_sized_config(str(ROOT / file), flags)
    import jax
    import numpy as np

    from var_jax.devices import sharding
    from var_jax.objectives import registry
    from var_jax.train import mesh_choice, saved_step
    from var_jax.train.program import Program

    marks.append(time.process_time())
    if config.stage == "tokenizer":  # the networks of its losses are those of a run
        objective = registry.with_random_frozen(config)
    else:
        of_shapes = registry.with_frozen_shapes(config)
        frozen = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), of_shapes.frozen)
        objective = type(of_shapes)(of_shapes.config, frozen)
    mesh = mesh_choice.choose(objective).mesh
    with jax.set_mesh(mesh):
        program = Program(objective, mesh)
        frozen = objective.step_frozen()
        frozen = sharding.place(frozen, objective.frozen_shardings(frozen, mesh))
        rows = jax.device_put(objective.example_batch(config.batch_size), program.rows)
        state = jax.block_until_ready(program.first_state())
        marks.append(time.process_time())
        if arm == "executable":
            marks.append(time.process_time())
            saved_step.load(executable, program, frozen)
            step = program.step()
            marks.append(time.process_time())
        else:
            lowered = program.step().lower(*program.arguments(frozen)[:3])
            marks.append(time.process_time())
            compiled = lowered.compile()
            marks.append(time.process_time())
            program.use(compiled)
            step = program.step()
        jax.block_until_ready(step(state, rows, frozen))
        marks.append(time.process_time())
        if arm == "cold":
            saved_step.save(executable, compiled, program.objective.config, mesh, "this machine")
    parts = [after - before for before, after in zip(marks, marks[1:], strict=False)]
    print(json.dumps(dict(zip(PARTS, parts, strict=True))))


def measure(name: str, cores: str) -> dict[str, Any]:
    """Returns the processor seconds of each part of a row, in each arm."""
    result: dict[str, Any] = {"config": ROWS[name]}
    with tempfile.TemporaryDirectory() as directory:
        for arm in ARMS:
            script = [sys.executable, str(Path(__file__).resolve())]
            done = subprocess.run(
                ["taskset", "-c", cores, *script, "--work", name, directory, arm],
                env=environment(Path(directory) / "programs"),
                stdout=subprocess.PIPE,
                check=True,
            )
            parts = json.loads(done.stdout.splitlines()[-1])
            result[arm] = {**parts, "total": sum(parts.values())}
    return result


def environment(programs: Path) -> dict[str, str]:
    """Returns the environment of a worker: glibc's settings as `var-jax` has them."""
    from var_jax.cli.allocator import FOR_XLA

    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(programs),
        "GLIBC_TUNABLES": FOR_XLA,
        "PYTHONPATH": str(ROOT),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default=",".join(ROWS), help="of " + ", ".join(ROWS))
    parser.add_argument("--cores", default="0", help="cores of all work, in taskset's form")
    parser.add_argument("--json", type=Path, help="file that keeps the rows")
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.work:
        name, directory, arm = args.work
        work(ROWS[name][0], ROWS[name][1:], Path(directory) / "step", arm)
        return 0
    from var_jax.perf import machine

    names = args.rows.split(",")
    if unknown := [name for name in names if name not in ROWS]:
        parser.error(f"--rows names {unknown[0]}; it must be of {', '.join(ROWS)}")
    before = json.loads(args.json.read_text()) if args.json and args.json.exists() else {}
    rows = before.get("rows", {})
    for name in names:
        rows[name] = measure(name, args.cores)
        print(name, json.dumps(rows[name]), flush=True)
        if args.json:
            command = shlex.join(["python", "launch/first_step.py", *(argv or sys.argv[1:])])
            figures = {"command": command, **machine.describe(), "rows": rows}
            args.json.write_text(json.dumps(figures, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
