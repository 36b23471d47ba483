"""The options that name the networks that images are compared by, and their weights."""

import argparse
from typing import TYPE_CHECKING, Any, NamedTuple

from var_jax.config.strict import require
from var_jax.errors import did_you_mean

if TYPE_CHECKING:
    from var_jax.evaluate.features import FeatureNetwork

WITH_ALL_METRICS = ("efficientnet", "efficientnet_lite2", "inception")
BESIDE = ("dinov2", "clip")  # whose distance alone is measured, beside another network's metrics


class Choice(NamedTuple):
    """A network that is asked for, a `feature_networks.Kind`, and the path of its weights or ""."""

    kind: Any
    path: str


def add_feature_arguments(parser: argparse._ActionsContainer, *, several: bool = False):
    """Adds the options of the feature network and of its weights.

    Args:
      several: whether several networks may be named, each with its file.
    """
    if several:
        parser.add_argument(
            "--features",
            nargs="+",
            type=_read_choice,
            default=[Choice("efficientnet", "")],
            metavar="NETWORK[:FILE]",
            help="networks that images are compared by, with their weights: the first of "
            "efficientnet (Lite0 at 64 pixels, and the default), efficientnet_lite2 and "
            "inception:FILE gives all metrics, and each further one its distance beside them, "
            "dinov2:FILE FD-DINOv2 and clip:FILE CMMD",
        )
    else:
        parser.add_argument(
            "--features",
            choices=WITH_ALL_METRICS,
            default="efficientnet",
            help="network that images are compared by (default efficientnet, at 64 pixels)",
        )
    parser.add_argument(
        "--weights", default="", metavar="PATH", help="its weights; inception needs them"
    )


def files(args: argparse.Namespace) -> dict[str, str]:
    """Returns {option: path} of the files that --features names."""
    return {f"--features {choice.kind}": choice.path for choice in args.features if choice.path}


def load_all(args: argparse.Namespace) -> "list[FeatureNetwork]":
    """Returns the network of all metrics, and then those whose distances stand beside.

    Raises:
      UserError: a network is named twice, or two files are given for one, or a file is missing or
        has the weights of another network.
    """
    from var_jax.evaluate import feature_networks

    return [feature_networks.load(choice.kind, choice.path) for choice in _ordered(args)]


def require_one(args: argparse.Namespace, mode: str):
    """Raises UserError where a mode that takes one network is given several."""
    kinds = [choice.kind for choice in _ordered(args)]
    require(len(kinds) == 1, "--features", " ".join(kinds), f"one network with {mode}")


def _ordered(args: argparse.Namespace) -> list[Choice]:
    """Returns the choices, the network of all metrics first, EfficientNet where none is named."""
    choices = list(args.features)
    kinds = [choice.kind for choice in choices]
    require(len(set(kinds)) == len(kinds), "--features", " ".join(kinds), "each network once")
    first = next((choice for choice in choices if choice.kind in WITH_ALL_METRICS), None)
    others = [choice for choice in choices if choice is not first]
    first = first or Choice("efficientnet", "")
    require(
        not (first.path and args.weights),
        "--weights",
        args.weights,
        f"left out, as --features {first.kind} has the file {first.path}",
    )
    return [first._replace(path=first.path or args.weights), *others]


def _read_choice(text: str) -> Choice:
    """Returns the network and the file of "inception:FILE"; the file is "" without one."""
    kind, _, path = text.partition(":")
    known = (*WITH_ALL_METRICS, *BESIDE)
    if kind not in known:
        raise argparse.ArgumentTypeError(f"invalid choice: {kind!r}{did_you_mean(kind, known)}")
    return Choice(kind, path)
