"""What a model's logits lose when its weights are stored and computed in fewer bits.

  python -m var_jax.studies.lower_precision --model runs/quickstart --tokens runs/tokens

compares bfloat16 and int8 (`Pipeline.astype`) with float32 on the held-out tokens of a cache, and
prints a line each: the cross-entropy per token, the Kullback-Leibler divergence of the predicted
distributions from those of float32, the share of tokens whose likeliest code is the same, and the
bytes of the transformer's weights.
"""

import argparse
import sys
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from var_jax import Pipeline
from var_jax.config.strict import require
from var_jax.data import token_cache
from var_jax.errors import Parser
from var_jax.studies import study_command

LOWER = ("bfloat16", "int8")


class Loss(NamedTuple):
    """What one dtype gives.

    Attributes:
      cross_entropy: of the true tokens, in nats per token.
      divergence: from float32's distributions, in nats per token.
      same: share of tokens whose likeliest code is that of float32.
      weight_bytes: bytes of the transformer's parameters.
    """

    cross_entropy: float
    divergence: float
    same: float
    weight_bytes: int


def compare(
    model: Pipeline, tokens: Int[np.ndarray, "b L"], labels: Int[np.ndarray, " b"]
) -> dict[str, Loss]:
    """Returns the loss of each dtype, float32's first.

    Args:
      model: a model whose weights are floats.
      tokens: true tokens of images, for teacher forcing.
      labels: their classes.
    """
    exact = model.astype("float32")
    reference = _log_probabilities(exact.logits(tokens, labels))
    out = {"float32": _loss(exact, reference, reference, tokens)}
    for dtype in LOWER:
        lower = model.astype(dtype)
        out[dtype] = _loss(
            lower, _log_probabilities(lower.logits(tokens, labels)), reference, tokens
        )
    return out


def _loss(
    model: Pipeline,
    own: Float[np.ndarray, "b L V"],
    reference: Float[np.ndarray, "b L V"],
    tokens: Int[np.ndarray, "b L"],
) -> Loss:
    chosen = np.take_along_axis(own, tokens[..., None], axis=-1)
    return Loss(
        cross_entropy=float(-chosen.mean()),
        divergence=float((np.exp(reference) * (reference - own)).sum(axis=-1).mean()),
        same=float((own.argmax(axis=-1) == reference.argmax(axis=-1)).mean()),
        weight_bytes=sum(leaf.nbytes for leaf in jax.tree.leaves(model.params["transformer"])),
    )


def _log_probabilities(logits: Float[np.ndarray, "b L V"]) -> Float[np.ndarray, "b L V"]:
    return np.asarray(jax.nn.log_softmax(np.asarray(logits, np.float32)), np.float64)


def run(args: argparse.Namespace):
    """Compares the dtypes on the cache's held-out images, and prints a table."""
    require(args.images >= 1, "--images", args.images, "at least 1")
    model = Pipeline.from_pretrained(args.model)
    split = token_cache.open_cache(args.tokens).test
    rows = [split[i] for i in range(min(args.images, len(split)))]
    tokens = np.stack([row["tokens"] for row in rows]).astype(np.int32)
    labels = np.array([row["label"] for row in rows], np.int32)
    print(f"{len(rows)} held-out images of {args.tokens}, {tokens.shape[1]} tokens each\n")
    print("| dtype | cross-entropy | divergence | same likeliest code | MB of weights |")
    print("|---|---|---|---|---|")
    for dtype, loss in compare(model, tokens, labels).items():
        print(
            f"| {dtype} | {loss.cross_entropy:.4f} | {loss.divergence:.2e} | {loss.same:.2%} | "
            f"{loss.weight_bytes / 1e6:.2f} |"
        )


def main() -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, metavar="DIR", help="model directory or workdir")
    parser.add_argument("--tokens", required=True, metavar="DIR", help="token cache of the model")
    parser.add_argument(
        "--images", type=int, default=500, help="held-out images (default %(default)s)"
    )
    return study_command.command(parser, run)


if __name__ == "__main__":
    sys.exit(main())
