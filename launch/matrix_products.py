"""Milliseconds of the forms of a transformer's matrix products on one CPU core, in float32.

  taskset -c 0 python launch/matrix_products.py

The weight is one of a stack, and the activations are multiplied by a vector before the product, as
in a layer of a scan. Columns: tokens, inputs, outputs; the least time at 100 GFLOP/s; the forward
product by the compiler's default library and by Eigen, which training steps use; the gradient of
the activations as autodiff writes it, with a transposed copy of the weight, with padded rows, the
other way round, and as `ops.cpu_matmul` chooses; the gradient of the weight plain, with padded rows
of the activations, the other way round, and as chosen. Each is the least processor time of nine
runs.
"""

import argparse
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from var_jax.devices import cpu_compiler
from var_jax.ops import cpu_matmul

SHAPES = (
    (680, 1024, 3072),  # d16
    (680, 1024, 1024),
    (680, 1024, 4096),
    (680, 4096, 1024),
    (1240, 256, 768),  # width 256, eight images of 155 tokens
    (1240, 256, 1024),
    (1240, 1024, 256),
    (1240, 512, 1024),
    (1240, 256, 4096),
    (1, 1024, 6144),  # the class's modulations of one image
)
RUNS, LAYERS = 9, 4


def padded(x: jax.Array) -> jax.Array:
    return jnp.pad(x, ((0, 0), (0, cpu_matmul.PADDING)))


OF_ACTIVATIONS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "autodiff": lambda g, w: g @ w.T,
    "transposed": lambda g, w: g @ jax.lax.optimization_barrier(w.T),
    "padded": lambda g, w: jax.lax.dot_general(padded(g), padded(w), cpu_matmul.SUM_OVER_COLUMNS),
    "turned": lambda g, w: cpu_matmul.turned(padded(g), padded(w), cpu_matmul.SUM_OVER_COLUMNS),
    "chosen": cpu_matmul.gradient_of_activations,
}
OF_WEIGHT: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "weight": lambda x, g: jax.lax.dot_general(x, g, cpu_matmul.SUM_OVER_ROWS),
    "padded": lambda x, g: jax.lax.dot_general(padded(x), g, cpu_matmul.SUM_OVER_ROWS)[
        : x.shape[1]
    ],
    "turned": lambda x, g: cpu_matmul.turned(x, g, cpu_matmul.SUM_OVER_ROWS),
    "chosen": cpu_matmul.gradient_of_weight,
}


def milliseconds(product: Callable[..., jax.Array], options: dict | None, *args) -> float:
    """Returns the least processor time of a function's compiled program."""
    program = jax.jit(product, compiler_options=options).lower(*args).compile()
    times = []
    for _ in range(RUNS):
        start = time.process_time()
        jax.block_until_ready(program(*args))
        times.append(time.process_time() - start)
    return 1e3 * min(times)


def row(tokens: int, inputs: int, outputs: int) -> list[float]:
    """Returns the milliseconds of all forms for one shape."""
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (tokens, inputs))
    g = jax.random.normal(keys[1], (tokens, outputs))
    stack = jax.random.normal(keys[2], (LAYERS, inputs, outputs))
    before_x, before_g = jnp.ones(inputs), jnp.ones(outputs)
    eigen = cpu_compiler.OPTIONS

    def forward(x, stack, i):
        return (x * before_x) @ jax.lax.dynamic_index_in_dim(stack, i, 0, keepdims=False)

    times = [2 * tokens * inputs * outputs / 100e6]
    times += [milliseconds(forward, options, x, stack, 1) for options in (None, eigen)]
    for form in OF_ACTIVATIONS.values():

        def of_activations(g, stack, i, form=form):
            return form(g * before_g, jax.lax.dynamic_index_in_dim(stack, i, 0, keepdims=False))

        times.append(milliseconds(of_activations, eigen, g, stack, 1))
    for form in OF_WEIGHT.values():
        times.append(milliseconds(lambda x, g, form=form: form(x, g * before_g), eigen, x, g))
    return times


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    names = ["at 100", "default", "Eigen", *OF_ACTIVATIONS, *OF_WEIGHT]
    print("| tokens, in, out | " + " | ".join(names) + " |")
    print("|---" * (len(names) + 1) + "|")
    for shape in SHAPES:
        cells = [f"{value:.1f}" for value in row(*shape)]
        print(f"| {', '.join(map(str, shape))} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
