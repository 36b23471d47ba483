"""Revival of dead codes: codes that are hardly ever chosen are replaced by vectors of the batch.

All arrays are global: under `jax.jit` with a batch that is sharded over devices or hosts, every
host replaces the same codes by the same vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from var_jax.ops.codebook import perplexity

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int


class Revived(NamedTuple):
    """The result of `revive`.

    Attributes:
      codebook: the codes, with dead ones replaced.
      usage: the running usage of each code at each scale.
      revived: which codes were replaced.
    """

    codebook: Float[Array, "v c"]
    usage: Float[Array, "k v"]
    revived: Bool[Array, " v"]


def initial_usage(num_scales: int, vocab_size: int) -> Float[Array, "k v"]:
    """Returns a run's initial usage: every code in equal use at every scale."""
    return jnp.full((num_scales, vocab_size), 1 / vocab_size, jnp.float32)


def scale_weights(usage: Float[Array, "k v"]) -> Float[Array, " k"]:
    """Returns each scale's weight in `codebook_init.candidates`: 1 / perplexity of its usage.

    Dead codes then go mostly to scales where few codes are in use. With equal weights, a coarse
    scale whose few codes are all in use would get no more of them than a fine one that has
    hundreds.
    """
    return jnp.asarray(1 / perplexity(usage))


def revive(
    codebook: Float[Array, "v c"],
    usage: Float[Array, "k v"],
    counts: Int[Array, "j v"],
    vectors: Float[Array, "n c"],
    *,
    decay: float,
    threshold: float,
) -> Revived:
    """Replaces dead codes by vectors of the batch.

    `usage` is the exponential moving average, by `decay`, of each code's share of each scale's
    tokens. A code is dead when its mean over scales is below `threshold` / V, that is `threshold`
    times an equal share. Over the tokens of all scales together, those of the coarse scales would
    keep hardly any code alive.

    The dead code with the n-th lowest index becomes the n-th vector, and its usage is set to an
    equal share: a code that is never chosen lives for log(threshold) / log(decay) steps. Dead codes
    beyond the number of vectors wait. Codes that are all equal recover: all tokens choose one of
    them, and all others die in the same step.

    Args:
      counts: this step's `codebook.code_counts`. Scales where nothing was counted keep their usage,
        and so do those beyond the step's scales, where it has fewer.
      vectors: V vectors of this step, from `codebook_init.candidates` with `scale_weights`.
    """
    vocab_size, num_vectors = codebook.shape[0], vectors.shape[0]
    counts = jnp.pad(counts, [(0, usage.shape[0] - counts.shape[0]), (0, 0)])
    num_tokens = jnp.sum(counts, axis=1, keepdims=True)
    share = counts / jnp.maximum(num_tokens, 1)
    usage = jnp.where(num_tokens > 0, decay * usage + (1 - decay) * share, usage)

    dead = jnp.mean(usage, axis=0) < threshold / vocab_size
    rank = jnp.cumsum(dead) - 1
    revived = dead & (rank < num_vectors)
    replacement = jnp.take(vectors, jnp.clip(rank, 0, num_vectors - 1), axis=0)
    return Revived(
        codebook=jnp.where(revived[:, None], replacement.astype(codebook.dtype), codebook),
        usage=jnp.where(revived, 1 / vocab_size, usage),
        revived=revived,
    )


def set_rows(tree: Any, revived: Bool[Array, " v"], rows: Float[Array, "v c"]) -> Any:
    """Returns a tree with these rows in every leaf named "codebook".

    A running average of the weights takes the revived codes as they are: an average of a dead code
    and a new one would be neither.
    """
    return _map_codebooks(
        tree, lambda leaf: jnp.where(revived[:, None], rows.astype(leaf.dtype), leaf)
    )


def reset_rows(tree: Any, revived: Bool[Array, " v"]) -> Any:
    """Returns a tree with these rows zero in every leaf named "codebook".

    It resets an optimizer's moments, which belong to the code that was replaced.
    """
    return _map_codebooks(
        tree, lambda leaf: jnp.where(revived[:, None], jnp.zeros_like(leaf), leaf)
    )


def _map_codebooks(tree: Any, change: Callable[[Array], Array]) -> Any:
    """Returns a tree with `change` applied to every leaf named "codebook"."""

    def change_leaf(path, leaf):
        is_codebook = path and getattr(path[-1], "key", None) == "codebook"
        return change(leaf) if is_codebook else leaf

    return jax.tree_util.tree_map_with_path(change_leaf, tree)
