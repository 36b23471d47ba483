"""Compares samples of one device with those of eight, one at a time and in batches.

  python launch/same_images.py --model runs/fashion/d3

The same (seed, index, label) should give the same image wherever it is sampled. For each way to
sample, one line says how many images differ from those of one device at batch size 1, by how much
at most, and how many tokens do.
"""

import argparse
import os
import sys

os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
)

import jax  # noqa: E402
import numpy as np  # noqa: E402

from var_jax import Pipeline  # noqa: E402

WAYS = ((1, 1), (1, 64), (8, 1), (8, 8))  # (devices, images per device at once)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="model directory")
    parser.add_argument("--num", type=int, default=64, help="images (default: %(default)s)")
    args = parser.parse_args(argv)
    model = Pipeline.from_pretrained(args.model)
    labels = np.arange(args.num) % model.config.transformer.num_classes
    reference = None
    for devices, batch in WAYS:
        images, tokens = model.spread(jax.local_devices()[:devices]).sample(
            labels, batch_size=batch, return_tokens=True
        )
        if reference is None:
            reference = images, tokens
        difference = np.abs(images - reference[0]).reshape(len(images), -1).max(axis=1)
        print(
            f"{devices} devices, {batch} at once each: {np.count_nonzero(difference)} of "
            f"{len(images)} images differ, by {difference.max():.2g} of 1 at most; "
            f"{np.count_nonzero(tokens != reference[1])} of {tokens.size} tokens",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
