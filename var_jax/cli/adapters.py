"""The option `--adapter` of commands that use a trained model."""

import argparse
import logging
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from var_jax import Pipeline

log = logging.getLogger(__name__)


class WeightedAdapter(NamedTuple):
    """An adapter's directory, and the weight that it is merged with."""

    directory: str
    weight: float


def add_adapter_argument(parser: argparse.ArgumentParser):
    """Adds the option `--adapter DIR[=W]`, which may be given several times."""
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        type=parse,
        metavar="DIR[=W]",
        help="merge an adapter of the model into its weights, with any weight W (default 1): "
        "between 0 and 1 for a part of what was learned, below 0 to go away from it; give the "
        "option again for a further one",
    )


def parse(text: str) -> WeightedAdapter:
    """Returns the directory and weight of DIR or DIR=W.

    A directory whose own name ends in =NUMBER is taken whole where it exists.

    Raises:
      ArgumentTypeError: W is no number, or there is no directory.
    """
    directory, equals, weight = text.rpartition("=")
    if not equals or os.path.isdir(text):
        directory, weight = text, "1"
    try:
        value = float(weight)
    except ValueError:
        if "://" in text:  # a folder of a bucket, whose names may have any sign
            return WeightedAdapter(text, 1.0)
        raise argparse.ArgumentTypeError(
            f"the weight {weight!r} in {text!r} is no number; write DIR=WEIGHT, such as "
            "runs/mug=0.8"
        ) from None
    if not directory:
        raise argparse.ArgumentTypeError(f"{text!r} names no directory; write DIR or DIR=WEIGHT")
    return WeightedAdapter(directory, value)


def with_adapters(model: "Pipeline", adapters: Sequence[WeightedAdapter]) -> "Pipeline":
    """Returns a model with all adapters of a command line merged in.

    Raises:
      UserError: there is no such adapter, or it is of another model.
    """
    for directory, weight in adapters:
        model = model.with_adapter(directory, weight)
    return model


def warn_of_learned_guidance(adapters: Sequence[WeightedAdapter], cfg: object):
    """Warns where a model would be guided that an adapter has taught the results of guidance.

    Args:
      cfg: the option `--cfg`; None if it is not given, and the preset's guidance is used.
    """
    from var_jax.adapters import adapter_file

    for directory, _ in adapters:
        learned = adapter_file.load_header(directory).config.cfg
        if learned and cfg is None:
            log.warning(
                "the adapter %s has learned the predictions of guidance %s, and the preset guides "
                "them again: sample it with --cfg 0",
                directory,
                learned,
            )


def read_class_names(model: str, adapters: Sequence[WeightedAdapter]) -> tuple[str, ...]:
    """Returns the class names of a model with adapters, by id, without reading the model.

    Commands read them, and the labels that are given by them, before the model.

    Raises:
      UserError: there is no such model or adapter.
    """
    from var_jax.io import model_directory

    directory = model_directory.require_directory(model)
    names = model_directory.class_names(directory)
    if not adapters:
        return names
    from var_jax.adapters import adapter_file, chain

    loaded = [adapter_file.load(directory) for directory, _ in adapters]
    distinct = list({adapter.identity: adapter for adapter in loaded}.values())
    transformer = model_directory.load_config(directory).transformer
    if transformer is None or not any(adapter.config.class_names for adapter in distinct):
        return names
    return chain.extended_names(names, transformer.num_classes, distinct)
