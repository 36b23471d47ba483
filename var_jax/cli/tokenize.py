"""Encodes the data of a config once, so that training reads tokens and needs neither images nor a tokenizer.

Start the same command again after a kill, on any number of hosts: finished files are kept.

example:
  var-jax tokenize --config configs/imagenet256.py:d16 --model models/vae --out data/tokens --views 8
  var-jax train --config configs/imagenet256.py:d16 --config.data.tokens_dir=data/tokens --workdir runs/d16
"""

import argparse

from var_jax.cli.configs import add_config_argument, read_config
from var_jax.config import require

ROLES = ("train", "test")


def add_arguments(parser: argparse.ArgumentParser):
    add_config_argument(parser)
    parser.add_argument("--model", required=True, metavar="DIR", help="model directory or workdir of the tokenizer")
    parser.add_argument("--out", required=True, metavar="DIR", help="the cache")
    parser.add_argument("--views", type=int, default=1, help="passes over the training split, each with random crops "
                        "of its own, drawn by the config's seed (default 1)")
    parser.add_argument("--splits", default="train,test", help="train (data.train_split), test (data.eval_split) or "
                        "both (default); what the cache has already is kept")
    parser.add_argument("--batch", type=int, help="images a device encodes at once (default: by their size)")


def run(args: argparse.Namespace) -> int:
    roles = tuple(args.splits.split(","))
    require(len(set(roles)) == len(roles) and set(roles) <= set(ROLES), "--splits", args.splits,
            "train, test or train,test")
    config = read_config(args.config, args.overrides)
    from var_jax.tokenize import tokenize

    manifest = tokenize(config, args.model, args.out, views=args.views, roles=roles, batch=args.batch)
    for role in roles:
        info = getattr(manifest, role)
        state = f"{len(info.shards)} files" if info.shards else "other hosts are still at it"
        print(f"{role}: {info.images} images x {info.views} views of {manifest.scales.total} tokens in "
              f"{args.out}/{role} ({state})")
    return 0
