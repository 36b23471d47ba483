r"""Compares the time of this project's models on one CPU core with plain PyTorch ones.

  pip install --editable '.[torch]'
  python launch/cpu_bench.py --rows small_train_8,d16_train --json docs/results/bench/cpu.json

The PyTorch side is `torch_transformer.py` and `torch_tokenizer.py` beside this file, which
`tests/launch/test_cpu_bench.py` holds to the arrays of the published code. Each side is a process
of its own on one core with one thread, in float32, and takes turns with the other. Both do the same
work: a training step is forward, backward, clipping by the norm and AdamW from tokens; generation
has guidance 1.5, top-k 900 and top-p 0.96, and ends with the image. Ours also reports its accuracy
at every step, as it does in training.

For each side the medians of the seconds of the clock and of the processor count: the processor's
compare where other programs use the machine. The figures are written after each row, and rows that
the file holds are not measured again.
"""

import argparse
import dataclasses
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SMALL = "small"  # depth 4, width 256, 155 tokens
SMALL_SCALES = "1,2,3,4,5,6,8"
CFG, TOP_K, TOP_P = 1.5, 900, 0.96
MATRIX = 2048  # side of the square product that the core's rate is taken from


@dataclasses.dataclass(frozen=True)
class Row:
    """One kind of work.

    Attributes:
      work: "train", "generate", "encode" or "decode".
      model: "d16" or "small".
    """

    work: str
    model: str
    batch: int


ROWS = {
    "small_train_8": Row("train", SMALL, 8),
    "small_train_32": Row("train", SMALL, 32),
    "small_generate_8": Row("generate", SMALL, 8),
    "encode": Row("encode", "d16", 1),
    "decode": Row("decode", "d16", 1),
    "d16_train": Row("train", "d16", 1),
    "d16_generate": Row("generate", "d16", 1),
}


def config_of(row: Row):
    """Returns the run's config of a row: ImageNet's, in float32, without recomputation."""
    from var_jax.cli.args import read_sized_config

    depth = {SMALL: "d4", "d16": "d16"}[row.model]
    flags = ["--config.transformer.dtype=float32", "--config.transformer.remat=none"]
    flags += [f"--config.batch_size={row.batch}"]
    if row.model == SMALL:
        flags += [f"--config.tokenizer.scales={SMALL_SCALES}", "--config.tokenizer.channels=32"]
    return read_sized_config(f"{ROOT}/configs/imagenet256.py:{depth}", flags)


def row_flops(row: Row) -> float:
    """Returns the FLOPs of a row's work, a batch."""
    from var_jax.models import flops

    config = config_of(row)
    per_image = {
        "train": lambda: flops.train_flops_per_image(config.transformer),
        "generate": lambda: (
            flops.generation_flops(config.transformer) + flops.decode_flops(config.tokenizer)
        ),
        "encode": lambda: flops.encode_flops(config.tokenizer),
        "decode": lambda: flops.decode_flops(config.tokenizer),
    }[row.work]()
    return row.batch * per_image


def jax_work(row: Row) -> Callable[[], object]:
    """Returns a function that does a row's work once with the JAX models, compiled before."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from var_jax.config.model import ModelConfig
    from var_jax.models import init, programs
    from var_jax.objectives import registry
    from var_jax.perf import bench
    from var_jax.sampling import sampler
    from var_jax.sampling.image_keys import image_keys
    from var_jax.train import mesh_choice

    config = config_of(row)
    if row.work == "train":
        objective = registry.with_random_frozen(config)
        mesh = mesh_choice.choose(objective, name="the batch").mesh
        with jax.set_mesh(mesh):
            step = bench.TrainStep(objective, mesh)
            rows = jax.device_put(objective.example_batch(row.batch), step.rows)

        def train():
            with jax.set_mesh(mesh):
                return step(rows)

        return train

    model = ModelConfig(config.tokenizer, config.transformer)
    params = {"tokenizer": init.fresh_params(model.tokenizer, jax.random.key(0))}
    random = np.random.default_rng(0)
    if row.work == "encode":
        images = random.uniform(-1, 1, (row.batch, *config.tokenizer.image_shape))
        return lambda: programs.encode(model, params, jnp.float32(images))
    if row.work == "decode":
        tokens = random.integers(
            config.tokenizer.vocab_size, size=(row.batch, config.tokenizer.scales.total)
        )
        return lambda: programs.decode(model, params, jnp.int32(tokens))
    params["transformer"] = init.fresh_params(model.transformer, jax.random.key(0))
    settings = sampler.SamplerConfig(top_k=TOP_K, use_top_p=True, guided=True)
    values = sampler.SamplingParams(*map(jnp.float32, (CFG, TOP_P, 1.0)))
    labels = jnp.arange(row.batch, dtype=jnp.int32)
    keys = image_keys(0, jnp.arange(row.batch, dtype=jnp.uint32))
    return lambda: sampler.generate(model, settings, params, labels, keys, values)


def torch_work(row: Row) -> Callable[[], object]:
    """Returns a function that does a row's work once with the PyTorch models."""
    import torch
    import torch_tokenizer
    import torch_transformer

    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = config_of(row)
    tokenizer = torch_tokenizer.Tokenizer(config.tokenizer).eval()
    if row.work == "encode":
        images = torch.rand(row.batch, 3, *config.tokenizer.image_shape[:2]) * 2 - 1
        return torch.no_grad()(lambda: tokenizer.encode(images))
    tokens = torch.randint(config.tokenizer.vocab_size, (row.batch, config.tokenizer.scales.total))
    if row.work == "decode":
        return torch.no_grad()(lambda: tokenizer.decode(tokens))
    transformer = torch_transformer.Transformer(config.transformer)
    labels = torch.arange(row.batch)
    if row.work == "generate":
        transformer.eval()
        return lambda: torch_transformer.generate(
            tokenizer, transformer, labels, cfg=CFG, top_k=TOP_K, top_p=TOP_P
        )

    # Weight decay for matrices, as the published groups of parameters.
    matrices = [p for p in transformer.parameters() if p.ndim == 2]
    rest = [p for p in transformer.parameters() if p.ndim != 2]
    groups = [{"params": matrices}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=True)

    def train():
        with torch.no_grad():
            inputs = tokenizer.teacher_input(tokens)
        logits = transformer(inputs, labels)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(transformer.parameters(), config.optimizer.clip)
        optimizer.step()
        return loss

    return train


def matrix_work() -> Callable[[], object]:
    """Returns a function that does one square product, for the core's rate of multiplication."""
    import torch

    torch.set_num_threads(1)
    left, right, product = (torch.randn(MATRIX, MATRIX) for _ in range(3))
    return lambda: torch.mm(left, right, out=product)  # in memory that is there: no pages to clear


def work(side: str, name: str):
    """Does the work of a row once for every line on stdin, and prints what each time took."""
    if side == "jax":
        import jax

        run = jax_work(ROWS[name])
        wait = jax.block_until_ready
    else:
        run = matrix_work() if side == "matrix" else torch_work(ROWS[name])
        wait = id
    wait(run())  # compiles, or fills caches
    from var_jax.perf import machine

    print(
        json.dumps(machine.versions(("jax", "jaxlib") if side == "jax" else ("torch",))), flush=True
    )
    for _ in sys.stdin:
        before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        wait(run())
        seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
        figures = {
            "seconds": seconds,
            "cpu_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
            "user_seconds": after.ru_utime - before.ru_utime,
            "system_seconds": after.ru_stime - before.ru_stime,
            "page_faults": after.ru_minflt - before.ru_minflt,
            "peak_bytes": 1024 * after.ru_maxrss,
        }
        print(json.dumps(figures), flush=True)


class Side:
    """A process that does a row's work when it is told to.

    Args:
      tunables: of glibc (`GLIBC_TUNABLES`), "" for the system's.
    """

    def __init__(self, python: str, side: str, row: str, core: int, tunables: str):
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"}
        environment |= {"PYTHONPATH": str(ROOT), "GLIBC_TUNABLES": tunables}
        command = [python, str(Path(__file__).resolve()), "--work", side, row]
        self._process = subprocess.Popen(
            ["taskset", "-c", str(core), *command],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def line(self) -> dict:
        """Returns the next object that the process prints."""
        assert self._process.stdout is not None
        text = self._process.stdout.readline()
        if not text:
            raise SystemExit(f"a worker ended with code {self._process.wait()}")
        return json.loads(text)

    def measure(self) -> dict:
        assert self._process.stdin is not None
        print(file=self._process.stdin, flush=True)
        return self.line()

    def end(self):
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def measure(name: str, torch_python: str, core: int, rounds: int, *, both: bool) -> dict:
    """Returns the figures of a row: all of them, their medians, and the ratios of the medians.

    Args:
      both: whether PyTorch is also measured with the tunables that `var-jax` sets for itself.
    """
    from var_jax.cli.allocator import FOR_XLA
    from var_jax.perf import machine

    sides = {
        "jax": Side(sys.executable, "jax", name, core, FOR_XLA),
        "torch": Side(torch_python, "torch", name, core, ""),
        "matrix": Side(torch_python, "matrix", name, core, FOR_XLA),
    }
    if both:
        sides["torch_tunables"] = Side(torch_python, "torch", name, core, FOR_XLA)
    versions = {name: side.line() for name, side in sides.items()}
    figures: dict[str, list[dict]] = {side: [] for side in sides}
    for number in range(rounds):
        for side in list(sides) if number % 2 == 0 else reversed(sides):
            figures[side].append(sides[side].measure())
    for side in sides.values():
        side.end()

    medians = {
        side: {key: statistics.median(x[key] for x in some) for key in some[0]}
        for side, some in figures.items()
    }
    # The core's rate is the best of them: what slows a product is other work on the machine.
    rate = 2 * MATRIX**3 / min(x["cpu_seconds"] for x in figures["matrix"])
    ratios = {
        f"{clock}_over_{other}": medians["jax"][clock] / medians[other][clock]
        for clock in ("cpu_seconds", "user_seconds", "seconds")
        for other in ("torch", "torch_tunables")
        if other in medians
    }
    floor = row_flops(ROWS[name]) / rate
    return {
        **dataclasses.asdict(ROWS[name]),
        **machine.describe(()),
        "versions": versions["jax"] | versions["torch"],
        "ratios": ratios,
        "flops": row_flops(ROWS[name]),
        "matmul_flops_per_s": rate,
        "floor_seconds": floor,
        "over_floor": {side: medians[side]["cpu_seconds"] / floor for side in ("jax", "torch")},
        "load": os.getloadavg()[0],
        "medians": medians,
        "rounds": figures,
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rows",
        default=",".join(ROWS),
        help="of " + ", ".join(ROWS) + " (default: all)",
    )
    parser.add_argument(
        "--torch", default=sys.executable, help="interpreter that has torch (default: this one)"
    )
    parser.add_argument("--core", type=int, default=0, help="core of all work (default: 0)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side (default: 5)")
    parser.add_argument(
        "--torch-tunables",
        action="store_true",
        help="also measure PyTorch with the tunables of glibc that `var-jax` sets for itself",
    )
    parser.add_argument("--json", type=Path, help="file that keeps the rows")
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.work:
        work(*args.work)
        return 0
    names = args.rows.split(",")
    unknown = [name for name in names if name not in ROWS]
    if unknown:
        parser.error(f"--rows has {', '.join(unknown)}; they must be of {', '.join(ROWS)}")
    rows = json.loads(args.json.read_text()) if args.json and args.json.exists() else {}
    for name in names:
        if name not in rows:
            rows[name] = measure(name, args.torch, args.core, args.rounds, both=args.torch_tunables)
            if args.json:
                partial = args.json.with_suffix(".partial")
                partial.write_text(json.dumps(rows, indent=1))
                partial.replace(args.json)
        ratios = rows[name]["ratios"]
        print(
            f"{name}: ours over torch {ratios['cpu_seconds_over_torch']:.2f} of processor time, "
            f"{ratios['seconds_over_torch']:.2f} of the clock; ours over the FLOPs' time "
            f"{rows[name]['over_floor']['jax']:.2f}",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
