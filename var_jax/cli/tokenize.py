"""Encodes the data of a config once, so that training reads tokens.

Training then needs neither images nor a tokenizer.

After a kill, start the same command again, on any number of hosts: finished files are kept. On
several hosts that see the same --out, the same command on every host divides the work: TPU pods,
SLURM and GKE are recognized; elsewhere add --num-processes N --process-id I to the I-th of N,
counted from 0. The processes share only files, and need no connection to each other.

example:
  var-jax tokenize --config configs/imagenet256.py:d16 --model models/vae --out data/tokens \\
      --views 8
  var-jax train --config configs/imagenet256.py:d16 --config.data.tokens_dir=data/tokens \\
      --workdir runs/d16
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from var_jax.cli import models
from var_jax.cli.args import add_config_argument, read_config
from var_jax.cli.divided_work import add_host_arguments, divided
from var_jax.config.strict import require

if TYPE_CHECKING:
    from var_jax.config.train import TrainConfig

ROLES = ("train", "test")


def add_arguments(parser: argparse.ArgumentParser):
    add_config_argument(parser)
    parser.add_argument(
        "--model", required=True, metavar="DIR", help="model directory or workdir of the tokenizer"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="directory of the token cache")
    parser.add_argument(
        "--views",
        type=int,
        default=1,
        help="number of passes over the training split, each with its own random crops, which the "
        "config's seed determines (default 1)",
    )
    parser.add_argument(
        "--splits",
        default="train,test",
        help="train (data.train_split), test (data.eval_split) or both (default); splits that the "
        "cache already has are kept, and generated training images (`generate --tokens-out`) take "
        "test alone",
    )
    parser.add_argument(
        "--batch", type=int, help="images per device at once (default: by their size)"
    )
    add_host_arguments(parser)


def run(args: argparse.Namespace) -> int:
    roles = tuple(args.splits.split(","))
    require(
        len(set(roles)) == len(roles) and set(roles) <= set(ROLES),
        "--splits",
        args.splits,
        "train, test or train,test",
    )
    config = read_config(args.config, args.overrides)
    from etils import epath

    from var_jax.config import idle_keys
    from var_jax.io import model_directory

    models.fetch(args)
    tokenizer = model_directory.load_config(epath.Path(args.model)).tokenizer
    idle_keys.refuse_replaced(config, tokenizer, idle_keys.flag_keys(args.overrides), args.model)
    return divided(args, lambda: _encode(args, config, roles))


def _encode(args: argparse.Namespace, config: TrainConfig, roles: tuple[str, ...]) -> int:
    from var_jax.train.tokenize import tokenize

    manifest = tokenize(
        config,
        args.model,
        args.out,
        views=args.views,
        roles=roles,
        batch=args.batch,
        shard_index=args.process_id,
        shard_count=args.num_processes,
    )
    for role in roles:
        info = getattr(manifest, role)
        state = f"{len(info.shards)} files" if info.shards else "other hosts are still at it"
        print(
            f"{role}: {info.images} images x {info.views} views of {manifest.scales.total} tokens "
            f"in {args.out}/{role} ({state})"
        )
    return 0
