"""Downloads released weights from the Hugging Face hub and converts them to a model directory.

Files go to the hub's cache, where a second call finds them. Their sizes and hashes must be those
that the hub declares, and their tensors those of the release. `var-tokenizer` is the tokenizer of
all of them alone.

example:
  var-jax download var-d16 --out models/d16
  var-jax sample --model models/d16 --labels 207,250,360 --out dogs.png
"""

import argparse

from var_jax.cli.evaluate import require_writable
from var_jax.io import releases


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("name", metavar="NAME", help=f"one of {', '.join(releases.RELEASES)}")
    parser.add_argument("--out", required=True, metavar="DIR", help="the model directory")
    parser.add_argument(
        "--revision",
        default="main",
        help=f"branch, tag or commit of {releases.REPOSITORY} (default main)",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="type that the weights are stored in (default float32)",
    )


def run(args: argparse.Namespace) -> int:
    require_writable(f"{args.out}/model.json", "the model")  # before gigabytes are downloaded
    from etils import epath

    from var_jax.io import model_directory

    released = releases.load(args.name, args.revision, args.dtype)
    model_directory.save(epath.Path(args.out), released.config, released.params)
    for file in released.files:
        print(
            f"{file.name}: {file.size:,} bytes, hf://{releases.REPOSITORY} at commit {file.commit}"
        )
    print(f"written to {args.out}")
    return 0
