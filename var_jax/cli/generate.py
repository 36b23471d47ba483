"""Draws a sample set of evaluation size, shuffled, as `.npz`.

The file holds arr_0, uint8 images (N, height, width, channels), and arr_1, labels.

After a kill, start the same command again, on any number of hosts: images that are drawn already
are kept. The file is the same to the last byte if --batch-size and the number and kind of devices
per host are the same; others may round the last bits of a pixel differently, and cannot go on with
the set. On several hosts that see the same --out, start the same command on every host: TPU pods,
SLURM and GKE are recognized; elsewhere add --num-processes N --process-id I to the I-th of N,
counted from 0. The processes share only files, and need no connection to each other.

example:
  var-jax generate --model runs/d16 --num 50000 --out samples.npz
  var-jax generate --model runs/d16 --num 500 --labels 0-9 --cfg 0 --top-k 0 --top-p 0 \\
      --out plain.npz --png plain
  var-jax generate --model runs/d16 --num 750000 --cfg 1.25 --out own/samples.npz \\
      --tokens-out own/tokens
  var-jax generate --model runs/d30 --then runs/d16 --keep-scales 7 --dtype bfloat16 --num 50000 \\
      --out fast.npz
  var-jax generate --model runs/d16 --num 50000 --reject-keep 0.5 \\
      --reject-reference imagenet2012:train[:100000] --out best.npz

With --reject-keep, a classifier of the reference's labels (logistic regression on the network's
features) judges how well an image shows its class, and the best share of each class is kept.

With --tokens-out, the tokens of the images are written as a token cache, on which `var-jax train`
tunes a model with --config.data.tokens_dir once `var-jax tokenize --splits test` has added real
held-out images to it.
"""

import argparse
import sys

from var_jax.cli import feature_options, models
from var_jax.cli.adapters import add_adapter_argument
from var_jax.cli.args import require_apart
from var_jax.cli.divided_work import add_host_arguments, divided
from var_jax.cli.evaluate import add_image_arguments
from var_jax.cli.sample import (
    add_dtype_argument,
    add_partner_arguments,
    add_refiner_argument,
    add_sampling_arguments,
    check_partner_arguments,
    load,
    load_partners,
    read_labels,
    sampling_arguments,
)
from var_jax.config.strict import require
from var_jax.errors import UserError
from var_jax.sampling import labels as class_labels


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument(
        "--model", required=True, metavar="DIR", help="model directory or training workdir"
    )
    parser.add_argument("--num", required=True, type=int, help="number of images")
    parser.add_argument(
        "--out",
        required=True,
        metavar="F.npz",
        help="the sample set; while it is incomplete, images are kept in F.npz.partial next to it",
    )
    parser.add_argument(
        "--labels",
        default="balanced",
        help=f"in turn: {class_labels.HELP} (default: balanced, every class in turn)",
    )
    parser.add_argument(
        "--png", metavar="DIR", help="also write PNG files, named by index and label"
    )
    parser.add_argument(
        "--tokens-out",
        metavar="DIR",
        help="also write the images' tokens as a token cache, which `var-jax train` reads as "
        "--config.data.tokens_dir",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        help="images per device at once (default: as many as fit; for a set that is begun, as it "
        "was begun)",
    )
    add_adapter_argument(parser)
    add_refiner_argument(parser)
    add_partner_arguments(parser)
    add_dtype_argument(parser)
    add_sampling_arguments(parser)
    reject = parser.add_argument_group("rejection")
    reject.add_argument(
        "--reject-keep",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="keep this share of the drawn images, the best of each class (default 1)",
    )
    reject.add_argument(
        "--reject-reference",
        metavar="F",
        help="labeled real images to fit the classifier on: "
        "a directory of class folders, DATASET:SPLIT, or FILE.npz with arr_1",
    )
    add_image_arguments(reject, "that reference")
    feature_options.add_feature_arguments(reject)
    add_host_arguments(parser)


def run(args: argparse.Namespace) -> int:
    rejecting = args.reject_keep != 1
    if rejecting != (args.reject_reference is not None):
        raise UserError("--reject-keep and --reject-reference go together")
    check_partner_arguments(args)
    require(
        args.batch_size is None or args.batch_size >= 1,
        "--batch-size",
        args.batch_size,
        "at least 1",
    )
    outputs = {"--out": args.out, "--png": args.png, "--tokens-out": args.tokens_out}
    require_apart(outputs, {"--model": args.model, "--then": args.then})
    models.fetch(args)
    labels = None if args.labels == "balanced" else read_labels(args)
    return divided(args, lambda: _generate_part(args, labels))


def _generate_part(args: argparse.Namespace, labels: list[int] | None) -> int:
    from var_jax.evaluate import sample_plan, sample_set, sample_tokens

    model, then = load_partners(args)
    network, reference = _judge(args, model) if args.reject_keep != 1 else (None, None)
    scorer = (
        f"{network.name} {network.weights} fitted on {reference.fingerprint}"
        if network and reference
        else ""
    )
    made = sample_plan.make_plan(
        model,
        args.num,
        labels,
        keep=args.reject_keep,
        scorer=scorer,
        then=then,
        keep_scales=args.keep_scales,
        **sampling_arguments(args),
    )
    out = sample_set.check(made, args.out, args.png)
    tokens = None
    if args.tokens_out is not None:
        exact = load(args.model, None, args.adapter, args.refiner) if args.dtype else model
        tokens = sample_tokens.prepare(args.tokens_out, exact, made, out)
    score = None
    if network and reference and not out.exists():
        from var_jax.evaluate.classifier import label_scorer

        score = label_scorer(network, reference, sorted(set(made.labels)))
    if sample_set.generate(
        model,
        made,
        out,
        then=then,
        png=args.png,
        tokens=tokens,
        score=score,
        batch_size=args.batch_size,
        shard_index=args.process_id,
        shard_count=args.num_processes,
    ):
        tokens_too = f", their tokens in {args.tokens_out}" if tokens else ""
        pictures_too = f" and {args.png}" if args.png else ""
        print(f"{args.num} images in {args.out}{pictures_too}{tokens_too}")
    else:
        print(
            f"this host's images are drawn; the last host to finish writes {args.out}",
            file=sys.stderr,
        )
    return 0


def _judge(args: argparse.Namespace, model):
    """Returns the scorer of rejection, opened before any image is sampled."""
    from var_jax.evaluate import feature_networks
    from var_jax.evaluate.image_sets import open_labeled, with_classes_of

    reference = open_labeled(
        args.reject_reference,
        shape=model.config.tokenizer.image_shape,
        resize=args.resize,
        data_dir=args.data_dir,
        source_dir=args.source_dir,
    )
    network = feature_networks.load(args.features, args.weights)
    return network, with_classes_of(reference, model.class_names)
