"""The health of a codebook: how many codes are in use, how codes start, and how dead ones come
back.

All arrays are global: under `jax.jit` with a sharded batch every count is over the whole batch on
all hosts, and every host draws the same vectors. Vectors are what `vq.quantize` looked up
(`searched`), the residuals of all scales.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from var_jax.config.scales import Scales
from var_jax.ops import vq
from var_jax.ops.normalize import l2_normalize

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

NOISE = 0.1  # of a vector that is taken twice, in standard deviations of its channel
VECTORS_A_CODE = 32  # of k-means
CHUNK = 2**25  # probabilities that `entropy_penalty` holds at once, over all devices


def used(counts: Int[Array, "*k v"]) -> Int[Array, "*k"]:
    """How many codes were chosen at all."""
    return jnp.sum(counts > 0, axis=-1)


def perplexity(counts: Int[Array, "*k v"]) -> Float[Array, "*k"]:
    """exp of the entropy of the chosen codes: as many codes in equal use would vary as much; 1
    where none was."""
    shares = counts / jnp.maximum(jnp.sum(counts, axis=-1, keepdims=True), 1)
    return jnp.exp(-jnp.sum(jax.scipy.special.xlogy(shares, shares), axis=-1))


def code_metrics(counts: Int[np.ndarray, "k v"]) -> dict[str, Any]:
    """Returns the share of the vocabulary in use and the perplexity, per scale and over all
    scales."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    total = counts.sum(axis=0)
    return {
        "code_usage": (counts > 0).mean(axis=1).tolist(),
        "code_usage_all": float((total > 0).mean()),
        "perplexity": [perplexity_of_shares(share) for share in shares],
        "perplexity_all": perplexity_of_shares(total / max(total.sum(), 1)),
    }


def perplexity_of_shares(shares: Float[np.ndarray, " v"]) -> float:
    """Returns exp of the entropy of shares that sum to 1."""
    return float(np.exp(-np.sum(shares * np.log(np.where(shares > 0, shares, 1)))))


def collapsed(
    counts: Int[np.ndarray, "k v"], share: float, perplexity_floor: float = 2.0
) -> list[int]:
    """Scales (from 0) whose codes have collapsed, of counts over many images.

    A scale may at most use `allowed` = min(V, tokens counted) codes. It has collapsed when it uses
    fewer than `share` of those, or when its perplexity is below the floor (or below `allowed`,
    where that is less). A scale of which nothing was counted has not.
    """
    counts = np.asarray(counts)
    total = counts.sum(axis=-1)
    allowed = np.minimum(counts.shape[-1], total)
    found = np.asarray(used(jnp.asarray(counts))) < share * allowed
    flat = (
        np.asarray(perplexity(jnp.asarray(counts))) < np.minimum(perplexity_floor, allowed) - 1e-3
    )
    return [int(k) for k in np.nonzero((found | flat) & (total > 0))[0]]


def candidates(
    vectors: Float[Array, "b L c"],
    key: PRNGKeyArray,
    count: int,
    scales: Scales,
    counted: Bool[Array, "b L"] | None = None,
    needs: Float[Array, " k"] | None = None,
) -> Float[Array, "n c"]:
    """`count` of the vectors in random order, every scale as likely as the others to give the next
    one, or in proportion to its `needs`.

    Without replacement, so none twice while there are others (a scale of few vectors may run out);
    beyond that, copies with noise. The finest scales would otherwise give nearly all. Vectors that
    are not `counted` come last.
    """
    weights = np.concatenate([np.full(length, 1 / length) for length in scales.lengths])
    log_weights = jnp.log(jnp.asarray(weights, jnp.float32))
    if needs is not None:
        log_weights += jnp.log(needs)[scales.level_ids]
    log_weights = jnp.broadcast_to(log_weights, vectors.shape[:2])
    if counted is not None:
        log_weights = jnp.where(counted, log_weights, -jnp.inf)
    return _draw(vectors.reshape(-1, vectors.shape[-1]), log_weights.reshape(-1), key, count)


def sampled_init(
    features: Float[Array, "n c"], key: PRNGKeyArray, vocab_size: int
) -> Float[Array, "v c"]:
    """Codes that are `vocab_size` of the features, none twice; where there are fewer, all of them
    and copies with noise of a tenth of each channel's standard deviation."""
    return _draw(features, jnp.zeros(features.shape[0]), key, vocab_size)


def kmeans_init(
    features: Float[Array, "n c"],
    key: PRNGKeyArray,
    vocab_size: int,
    iterations: int = 10,
) -> Float[Array, "v c"]:
    """Codes by Lloyd's k-means (scikit-learn's, on the host) from `sampled_init`.

    Hosts may round differently: of several, one has to compute it for all. Fewer features than
    codes are not clustered.
    """
    from sklearn.cluster import KMeans

    first = sampled_init(features, key, vocab_size)
    if features.shape[0] <= vocab_size:
        return first
    seed = int(jax.random.randint(key, (), 0, np.iinfo(np.int32).max))
    settings: dict[str, Any] = {
        "init": np.asarray(first),
        "n_init": 1,
        "max_iter": iterations,
        "random_state": seed,
    }
    fitted = KMeans(vocab_size, **settings)
    return jnp.asarray(fitted.fit(np.asarray(features)).cluster_centers_, first.dtype)


def first_codes(
    vectors: Float[Array, "b L c"],
    key: PRNGKeyArray,
    vocab_size: int,
    scales: Scales,
    how: Literal["sampled", "kmeans", "equal"],
) -> Float[Array, "v c"]:
    """Codes from what is to be represented (`vq.ideal_vectors` of many images), drawn evenly over
    the scales: drawn as often as they come, hardly any would be of the coarse ones. "kmeans" takes
    up to 32 vectors a code; "equal" has one vector for all codes, the worst start there is."""
    draw_key, key = jax.random.split(key)
    wanted = {"sampled": vocab_size, "kmeans": vocab_size * VECTORS_A_CODE, "equal": 1}[how]
    drawn = candidates(vectors, draw_key, min(vectors.shape[0] * vectors.shape[1], wanted), scales)
    if how == "equal":
        return jnp.repeat(drawn, vocab_size, axis=0)
    return {"sampled": sampled_init, "kmeans": kmeans_init}[how](drawn, key, vocab_size)


class Revived(NamedTuple):
    """What `revive` gives: the codes (V, C), their usage (K, V), and which of them (V,) were
    replaced."""

    codebook: Float[Array, "v c"]
    usage: Float[Array, "k v"]
    revived: Bool[Array, " v"]


def first_usage(scales: int, vocab_size: int) -> Float[Array, "k v"]:
    """What `revive` starts from: every code in equal use at every scale."""
    return jnp.full((scales, vocab_size), 1 / vocab_size, jnp.float32)


def needs(usage: Float[Array, "k v"]) -> Float[Array, " k"]:
    """How much each scale wants for codes: 1 / perplexity of its running usage, so that a scale
    that few codes serve is where dead ones go. Drawn evenly, a coarse scale whose few codes are all
    in use would get no more of them than a fine one that has hundreds."""
    return 1 / perplexity(usage)


def revive(
    codebook: Float[Array, "v c"],
    usage: Float[Array, "k v"],
    counts: Int[Array, "j v"],
    vectors: Float[Array, "n c"],
    *,
    decay: float,
    threshold: float,
) -> Revived:
    """Replaces dead codes by vectors that are searched now.

    The rule: `usage` is the exponential moving average (by `decay`) of each code's share of each
    scale's searches. A code is dead when its mean over scales is below `threshold` / V, `threshold`
    times an equal share: among the searches of all together, those of the coarse scales would keep
    hardly any code
      alive. The dead code of the n-th
    lowest index becomes the n-th vector, and has its usage set to an equal share: an unused code
    lives for log(threshold) / log(decay) steps. Dead codes beyond the number of vectors wait. Codes
    that are all equal recover: all searches go to one of them, and all others die in the same step.

    Args:
      counts: of this step (`vq.code_counts`). Scales of which nothing was counted keep their usage,
        and so do those beyond the step's, where it has fewer.
      vectors: of this step (`candidates` by `needs`, V of them).
    """
    v, offered = codebook.shape[0], vectors.shape[0]
    counts = jnp.pad(counts, [(0, usage.shape[0] - counts.shape[0]), (0, 0)])
    searches = jnp.sum(counts, axis=1, keepdims=True)
    share = counts / jnp.maximum(searches, 1)
    usage = jnp.where(searches > 0, decay * usage + (1 - decay) * share, usage)
    dead = jnp.mean(usage, axis=0) < threshold / v
    rank = jnp.cumsum(dead) - 1
    revived = dead & (rank < offered)
    new = jnp.take(vectors, jnp.clip(rank, 0, offered - 1), axis=0).astype(codebook.dtype)
    return Revived(
        jnp.where(revived[:, None], new, codebook), jnp.where(revived, 1 / v, usage), revived
    )


def set_rows(tree: Any, revived: Bool[Array, " v"], rows: Float[Array, "v c"]) -> Any:
    """The tree with these rows in every leaf that is named "codebook": a running average takes
    revived codes at once, because the average of a dead code and a new one is neither."""
    return _codebooks(tree, lambda leaf: jnp.where(revived[:, None], rows.astype(leaf.dtype), leaf))


def reset_rows(tree: Any, revived: Bool[Array, " v"]) -> Any:
    """The tree with zero rows in every leaf that is named "codebook", such as the moments in an
    optimizer's state, which are about the code that was replaced."""
    return _codebooks(tree, lambda leaf: jnp.where(revived[:, None], jnp.zeros_like(leaf), leaf))


def entropy_penalty(
    q: vq.Quantizer,
    vectors: Float[Array, "b L c"],
    temperature: float,
    counted: Bool[Array, "b l"] | None = None,
    chunk: int = CHUNK,
) -> Float[Array, ""]:
    """E[H(p(code | vector))] - H(E[p(code | vector)]) in nats, to be made small: sure choices, all
    codes in equal use (MAGVIT-v2, Yu et al. 2023).

    p is the softmax over codes of -|z - code|^2 / temperature ("euclidean"), or of the cosine over
    it ("cosine", "bsq"). Of "bsq" p is a product over bits, so that the first entropy is the exact
    sum of theirs; the second is taken as if they were independent on average too, which it cannot
    exceed (BSQ, Zhao et al. 2024). Gradients flow to the vectors and to the codebook.

    Args:
      counted: which vectors count, per vector or (b, 1) per image; None for all.
      chunk: probabilities in memory at once; sequence positions are taken in turn, so that the
        batch stays sharded.
    """
    b, length, _ = vectors.shape
    weights = (
        jnp.ones((b, length)) if counted is None else jnp.broadcast_to(counted, (b, length)) * 1.0
    )
    weights = weights / jnp.maximum(jnp.sum(weights), 1)
    if q.codes == "bsq":
        logits = 2 * _unit(vectors) / (temperature * q.channels**0.5)
        sure = jnp.sum(weights[..., None] * _bit_entropy(jax.nn.sigmoid(logits)))
        return sure - jnp.sum(
            _bit_entropy(jnp.einsum("bl,blc->c", weights, jax.nn.sigmoid(logits)))
        )

    codes = _unit(q.table) if q.codes == "cosine" else q.table

    @jax.checkpoint
    def part(sums, rows):
        z, w = rows
        products = jnp.einsum(
            "blc,vc->blv", _unit(z) if q.codes == "cosine" else z, codes, precision=vq.HIGHEST
        )
        # -|z - code|^2 but for |z|^2, which the softmax does not see
        score = products if q.codes == "cosine" else 2 * products - jnp.sum(codes**2, axis=-1)
        log_p = jax.nn.log_softmax(score / temperature, axis=-1)
        p = jnp.exp(log_p)
        sure, average = sums
        return (
            sure - jnp.sum(w[..., None] * p * log_p),
            average + jnp.einsum("bl,blv->v", w, p),
        ), None

    positions = max(1, min(length, chunk // (b * codes.shape[0])))
    steps = -(-length // positions)

    def split(x):
        x = jnp.pad(x, [(0, 0), (0, steps * positions - length)] + [(0, 0)] * (x.ndim - 2))
        return x.reshape(b, steps, positions, *x.shape[2:]).swapaxes(0, 1)

    zeros = jnp.zeros(()), jnp.zeros(codes.shape[0])
    (sure, average), _ = jax.lax.scan(part, zeros, (split(vectors), split(weights)))
    return sure - _entropy(average)


def scale_entropy_penalty(
    q: vq.Quantizer,
    vectors: Float[Array, "b L c"],
    temperature: float,
    counted: Bool[Array, "b l"] | None = None,
) -> Float[Array, ""]:
    """The mean over scales of each scale's own `entropy_penalty`: among the vectors of all, those
    of the coarse scales, which collapse first, would not count."""
    b, length, _ = vectors.shape
    counted = jnp.broadcast_to(True if counted is None else counted, (b, length))
    terms = [
        entropy_penalty(q, part, temperature, kept)
        for part, kept in zip(q.scales.split(vectors), q.scales.split(counted), strict=True)
    ]
    return sum(terms, jnp.zeros(())) / len(terms)


def _draw(
    rows: Float[Array, "n c"], log_weights: Float[Array, " n"], key: PRNGKeyArray, count: int
):
    """Rows without replacement, each next one by its weight among those left (Gumbel top-k); then
    noisy copies."""
    order_key, noise_key = jax.random.split(key)
    found = min(count, rows.shape[0])
    _, order = jax.lax.top_k(log_weights + jax.random.gumbel(order_key, log_weights.shape), found)
    drawn = jnp.take(rows, jnp.resize(order, (count,)), axis=0)
    if found == count:
        return drawn
    noise = NOISE * jnp.std(rows, axis=0) * jax.random.normal(noise_key, drawn.shape)
    return jnp.where(jnp.arange(count)[:, None] < found, drawn, drawn + noise.astype(drawn.dtype))


def _codebooks(tree: Any, change) -> Any:
    def one(path, leaf):
        return change(leaf) if path and getattr(path[-1], "key", None) == "codebook" else leaf

    return jax.tree_util.tree_map_with_path(one, tree)


def _unit(x):
    return l2_normalize(x, floor=1e-6)


def _entropy(p):
    return -jnp.sum(p * jnp.log(jnp.maximum(p, 1e-30)), axis=-1)


def _bit_entropy(p):
    return _entropy(jnp.stack([p, 1 - p], axis=-1))
