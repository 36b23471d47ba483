"""Converts published PyTorch weights to a model directory, or a model directory back.

example:
  var-jax convert --tokenizer vae_ch160v4096z32.pth --transformer var_d16.pth \\
      --scales 1,2,3,4,5,6,8,10,13,16 --out models/d16
  var-jax convert --to-torch --model models/d16 --out torch/d16
"""

import argparse
import shlex
from typing import TYPE_CHECKING, Any

from var_jax.cli import models
from var_jax.cli.args import require_apart
from var_jax.config.strict import require

if TYPE_CHECKING:
    from var_jax.config.model import ModelConfig


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument(
        "--tokenizer",
        metavar="F",
        help="published tokenizer weights (.pth, .pt, .safetensors, .npz)",
    )
    parser.add_argument("--transformer", metavar="F", help="published transformer weights")
    parser.add_argument(
        "--scales",
        help="sizes of the token maps, coarse to fine, such as 1,2,3,4; needed, since the weights "
        "do not hold them",
    )
    parser.add_argument(
        "--num-heads", type=int, help="number of heads; needed only for weights without QK-norm"
    )
    parser.add_argument(
        "--cosine-codes", action="store_true", help="for a tokenizer that compares codes by cosine"
    )
    parser.add_argument(
        "--norm-groups",
        type=int,
        default=32,
        help="groups of the tokenizer's GroupNorms, which the weights do not hold (default 32)",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="type that the weights are stored in (default float32)",
    )
    parser.add_argument(
        "--to-torch",
        action="store_true",
        help="convert back: write tokenizer.safetensors and transformer.safetensors with the "
        "published keys",
    )
    parser.add_argument(
        "--model",
        metavar="DIR",
        help="with --to-torch: model directory or training workdir to convert",
    )
    parser.add_argument(
        "--out",
        required=True,
        metavar="DIR",
        help="the model directory, or with --to-torch the directory of the two files",
    )


def run(args: argparse.Namespace) -> int:
    if args.to_torch:
        require(bool(args.model), "--model", args.model, "given with --to-torch")
        for name in ("tokenizer", "transformer", "scales", "num_heads"):
            value = getattr(args, name)
            require(value is None, _option(name), "given with --to-torch", "left away")
        require_apart({"--out": args.out}, {"--model": args.model})
    else:
        require(args.model is None, "--model", "given without --to-torch", "given with it")
        weights = {name: getattr(args, name) for name in ("tokenizer", "transformer")}
        # A model directory's files, which are named as the published ones may be.
        written = {f"--out's {name}": f"{args.out}/{name}.safetensors" for name in weights}
        require_apart(written, {_option(name): path for name, path in weights.items()})
        require(
            bool(args.tokenizer and args.scales), "--tokenizer and --scales", "missing", "given"
        )
    from var_jax import Pipeline
    from var_jax.io import torch_convert

    if args.to_torch:
        models.fetch(args)
        model = Pipeline.from_pretrained(args.model)
        torch_convert.write_torch(args.out, *model.to_torch(with_buffers=True))
        print(f"written to {args.out}; to load it again:\n  {_reload(args.out, model.config)}")
    else:
        model = Pipeline.from_torch(
            args.tokenizer,
            args.transformer,
            scales=args.scales,
            num_heads=args.num_heads,
            cosine_codes=args.cosine_codes,
            norm_groups=args.norm_groups,
            dtype=args.dtype,
        )
        model.save(args.out)
        print(f"written to {args.out}")
    return 0


def _reload(directory: str, config: "ModelConfig") -> str:
    """Returns the command that makes a model directory from the files of `--to-torch`."""
    from var_jax.io import torch_convert

    parts = ["tokenizer", *["transformer"] * (config.transformer is not None)]
    words = ["var-jax convert"]
    words += [f"--{part} {shlex.quote(f'{directory}/{part}.safetensors')}" for part in parts]
    words += [_flag(*item) for item in torch_convert.flags_to_reload(config).items()]
    return " ".join([*words, "--out MODEL"])


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _flag(name: str, value: Any) -> str:
    """Returns a keyword of `from_torch` as an option of the command line."""
    flag = _option(name)
    return flag if value is True else f"{flag} {value}"
