"""Publishes a model on the Hugging Face hub: its directory and a model card, in one commit.

The card has the license, tags, an example and, where the model's directory has them, its figures
and its grid of samples. Log in by `hf auth login` before, or set HF_TOKEN.

example:
  var-jax publish --model runs/quickstart --to OWNER/digits --license apache-2.0
  var-jax sample --model hf://OWNER/digits --labels 0-9 --out samples.png
"""

import argparse

from var_jax.cli import models


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument(
        "--model", required=True, metavar="DIR", help="model directory or training workdir"
    )
    parser.add_argument(
        "--to", required=True, metavar="OWNER/NAME", help="the repository; created if it is missing"
    )
    parser.add_argument(
        "--license",
        default="unknown",
        metavar="ID",
        help="license of the weights, an identifier of the hub such as mit (default unknown)",
    )
    parser.add_argument(
        "--tags", default="", metavar="A,B", help="further tags of the card, with commas between"
    )
    parser.add_argument(
        "--private", action="store_true", help="make a repository that is created private"
    )


def run(args: argparse.Namespace) -> int:
    from var_jax import Pipeline
    from var_jax.io import hub_publish

    hub_publish.require_repository(args.to, "--to")
    models.fetch(args)
    model = Pipeline.from_pretrained(args.model)
    published = model.push_to_hub(
        args.to,
        license=args.license,
        tags=[tag for tag in args.tags.split(",") if tag],
        private=args.private,
        figures_from=args.model,
    )
    sizes = ", ".join(f"{name} {size:,} bytes" for name, size in published.sizes.items())
    print(f"published as hf://{args.to} ({published.url}): {sizes}")
    return 0
