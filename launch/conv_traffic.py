"""Memory traffic of two residual blocks of the ImageNet tokenizer at full size, as compiled.

  python launch/conv_traffic.py --topology v5e:2x2 --json docs/results/aot/conv_traffic/v5e.json

One chip has three images of 256 x 256 pixels and 160 channels in bfloat16; forward and backward
pass, with rematerialization. The blocks are compiled with the compiler's own options, and with
those of `aot_search.WITHOUT_PIECES`. No TPU is needed, and nothing is run. Rows have the bytes that
are read and written, matrix FLOPs, and the cycles that the compiler expects. Minutes of CPU.
"""

import argparse
import json
import time
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from var_jax.config.model import TokenizerConfig
from var_jax.config.scales import Scales
from var_jax.config.train import MeshConfig
from var_jax.io import atomic
from var_jax.models.cnn import ResBlock
from var_jax.perf import aot_search, hlo, tpu_slices, uncached

IMAGES, SIDE, CHANNELS = 3, 256, 160
CONFIG = TokenizerConfig(
    scales=Scales.parse("1,2,3,4,5,6,8,10,13,16"),
    in_channels=3,
    channels=CHANNELS,
    multipliers=(1, 1, 2, 2, 4),
    norm_groups=32,
    z_channels=32,
    dtype="bfloat16",
    remat="full",
)


def traffic(mesh: Mesh, options: str) -> dict[str, Any]:
    """Returns figures of the two blocks, compiled with options of the compiler."""
    block, replicated = nn.remat(ResBlock)(CHANNELS, CONFIG), NamedSharding(mesh, PartitionSpec())

    def described(shape, dtype) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=replicated)

    small = jnp.zeros((1, 8, 8, CHANNELS), jnp.bfloat16)
    params = nn.meta.unbox(jax.eval_shape(lambda key: block.init(key, small), jax.random.key(0)))
    params = jax.tree.map(lambda leaf: described(leaf.shape, leaf.dtype), params)
    maps = described((IMAGES, SIDE, SIDE, CHANNELS), jnp.bfloat16)

    def step(params, x, cotangent):
        result, pull_back = jax.vjp(lambda p, x: block.apply(p, block.apply(p, x)), params, x)
        return result, pull_back(cotangent)

    start = time.process_time()
    with jax.set_mesh(mesh):
        by_name = MeshConfig(compiler_options=options).options_of_compiler
        jitted = jax.jit(step, compiler_options=by_name or None)
        lowered = jitted.lower(params, maps, maps)
        with uncached.compilation():
            program = hlo.Program(lowered.compile().as_text() or "")
    array = float(np.prod(maps.shape)) * 2
    return {
        "options": options,
        "bytes": program.hbm_bytes(),
        "arrays": program.hbm_bytes() / array,  # of the maps' size
        "flops": program.matrix_flops(),
        "estimated_cycles": program.estimated_cycles(),
        "compile_cpu_seconds": time.process_time() - start,
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--topology", default="v5e:2x2", metavar="CHIP:SHAPE")
    parser.add_argument("--json", metavar="F", help="also write the rows to this file")
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    tpu_slice = tpu_slices.named(args.topology)
    mesh = Mesh(np.array(tpu_slice.devices[:1]).reshape(1, 1), ("data", "model"))
    rows = []
    for options in ("", aot_search.WITHOUT_PIECES):
        rows.append(traffic(mesh, options))
        print(rows[-1], flush=True)
    if args.json:
        figures = {"topology": args.topology, "rows": rows}
        atomic.save(epath.Path(args.json), json.dumps(figures, indent=1), "the rows")


if __name__ == "__main__":
    main()
