"""Merging of two models of one configuration: their weights on a line through both.

Beside a whole model there may be a tokenizer alone whose decoder was tuned: then the decoders merge
and the transformer stays.
"""

from typing import Any, NamedTuple

import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict

from var_jax.config.model import DECODING, ModelConfig
from var_jax.config.strict import differences, plain, require
from var_jax.errors import UserError
from var_jax.io import model_directory
from var_jax.io.finite import require_finite
from var_jax.io.tokenizer_fingerprint import encoding_differences


class Pair(NamedTuple):
    """Two models that merge.

    Attributes:
      config: the configuration of both.
      base: the weights of the base.
      tuned: the weights of the tuned model.
      class_names: class names by id; empty if there are none.
    """

    config: ModelConfig
    base: dict[str, Any]
    tuned: dict[str, Any]
    class_names: tuple[str, ...]


def load_pair(base: str, tuned: str) -> Pair:
    """Returns the two models of model directories or workdirs.

    Call it before several merges of the same two.

    The tuned one may be a tokenizer alone that has the base's encoder and codes.

    Raises:
      UserError: a model cannot be read, or the two differ in their configuration or class names; of
        a tokenizer alone, the encoder or the codes differ.
    """
    base_config, base_params = model_directory.load(epath.Path(base))
    tuned_config, tuned_params = model_directory.load(epath.Path(tuned))
    if tuned_config.transformer is None and base_config.transformer is not None:
        if different := encoding_differences(
            (base_config.tokenizer, base_params["tokenizer"]),
            (tuned_config.tokenizer, tuned_params["tokenizer"]),
        ):
            raise UserError(
                f"the tokenizer in {tuned} has other tokens than {base}, whose transformer knows "
                f"no others: {'; '.join(different[:4])}; give one with its encoder and codes"
            )
        decoder = {name: tuned_params["tokenizer"][name] for name in DECODING}
        tokenizer = {**base_params["tokenizer"], **decoder}
        # The classes are the transformer's, whatever those of the images that tuned the decoder.
        names = model_directory.class_names(epath.Path(base))
        return Pair(base_config, base_params, {**base_params, "tokenizer": tokenizer}, names)
    if different := differences(plain(base_config), plain(tuned_config)):
        raise UserError(
            f"{base} and {tuned} are models of different configurations, which do not merge: "
            f"{'; '.join(different[:4])}"
        )
    names = model_directory.class_names(epath.Path(base))
    tuned_names = model_directory.class_names(epath.Path(tuned))
    require(
        not names or not tuned_names or names == tuned_names,
        f"the class names of {tuned}",
        f"{', '.join(tuned_names):.60}",
        f"those of {base}: {', '.join(names):.60}",
    )
    return Pair(base_config, base_params, tuned_params, names or tuned_names)


def merge_directories(base: str, tuned: str, weight: float, out: str):
    """Writes the model A + weight * (B - A) of two model directories or workdirs, A and B.

    Call it to add a share of a fine-tuning to its base, or with a negative weight to subtract one
    (Neon, arXiv 2510.03597).

    Args:
      base: A's directory.
      tuned: B's directory.
      weight: any finite number; 0 gives A and 1 gives B, each bit for bit.
      out: the directory of the new model, which has the class names of A.
    Raises:
      UserError: a model cannot be read, the two differ in their configuration or class names, a
        merged weight is not finite, or the output cannot be written.
    """
    pair = load_pair(base, tuned)
    merged = merge(pair.base, pair.tuned, weight)
    require_finite(
        flatten_dict(merged, sep="/").items(), f"the merge of {base} and {tuned} by {weight:g}"
    )
    model_directory.save(epath.Path(out), pair.config, merged, pair.class_names)


def merge(base: Any, tuned: Any, weight: float) -> dict:
    """Returns base + weight * (tuned - base), computed in float32 and stored in the dtypes of base.

    Args:
      base: nested dicts of arrays.
      tuned: the same names and shapes.
      weight: 0 gives `base` and 1 gives `tuned`, each bit for bit.
    """
    base_leaves, tuned_leaves = flatten_dict(base), flatten_dict(tuned)
    factor = np.float32(weight)

    def between(name: tuple[str, ...]) -> np.ndarray:
        a, b = np.asarray(base_leaves[name]), np.asarray(tuned_leaves[name])
        if base_leaves[name] is tuned_leaves[name]:  # a formula would make -0 into 0
            return a
        if weight in (0, 1):
            return b if weight else a
        wide = a.astype(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):  # the caller refuses what is not finite
            merged = wide + factor * (b.astype(np.float32) - wide)
            return merged.astype(a.dtype)

    return unflatten_dict({name: between(name) for name in base_leaves})
