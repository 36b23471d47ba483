"""Codebook health against numpy, scipy and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
import scipy.stats
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from var_jax.config.scales import Scales
from var_jax.ops import codebook, vq

SCALES = Scales.parse("1,2,4")


def make(codes, kind="euclidean", scales=SCALES, channels=None):
    """A quantizer without convolutions' say, so that maps are the upsampled codes."""
    c = channels or codes.shape[1]
    return vq.Quantizer(
        codes,
        jnp.zeros((1, 3, 3, c, c)),
        jnp.zeros((1, c)),
        scales=scales,
        phi_ratio=0.0,
        codes=kind,
    )


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_used_and_perplexity():
    counts = np.array([[5, 0, 3, 1], [4, 4, 4, 4], [0, 9, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(codebook.used(counts), [3, 4, 1, 0])
    expected = [np.exp(scipy.stats.entropy(row)) for row in counts[:3]]
    np.testing.assert_allclose(codebook.perplexity(counts), [*expected, 1.0], rtol=1e-5)


def test_collapsed_scales_are_those_of_few_codes_for_their_tokens():
    counts = np.zeros((6, 1000), np.int64)
    counts[0, :40] = 1  # 40 of 40 tokens
    counts[1, :40] = 100  # 40 codes of 1000
    counts[2, :400] = 100
    counts[3, :400], counts[3, 0] = 1, 10**7  # many codes, but one of them nearly always
    counts[4, 0] = 1  # one token can use one code only
    assert codebook.collapsed(counts, 0.1) == [1, 3]
    assert codebook.collapsed(counts, 0.5) == [1, 2, 3]
    assert codebook.collapsed(counts, 0.0, perplexity_floor=0.0) == []


def test_candidates_come_evenly_from_the_scales_and_none_twice():
    vectors = np.arange(4 * 21, dtype=np.float32).reshape(4, 21, 1)
    places = np.arange(4 * 21).reshape(4, 21)
    drawn = np.asarray(codebook.candidates(vectors, jax.random.key(0), 40, SCALES))[:, 0].astype(
        int
    )
    assert len(set(drawn)) == 40
    assert set(places[:, 0]) <= set(drawn)  # 40 draws leave none of the 4 of the first scale
    first = jax.vmap(lambda key: codebook.candidates(vectors, key, 1, SCALES)[0, 0])(
        jax.random.split(jax.random.key(1), 900)
    )
    by_scale = np.bincount(SCALES.level_ids[np.asarray(first).astype(int) % 21], minlength=3)
    assert np.abs(by_scale - 300).max() < 5 * np.sqrt(900 * 2 / 9)


def test_scales_of_few_codes_give_most_candidates():
    """By 1 / perplexity of their usage: of codes in equal use at 2, 4 and 4 codes, the first scale
    gives half."""
    usage = np.zeros((3, 8), np.float32)
    usage[0, :2], usage[1, 2:6], usage[2, 4:] = 1 / 2, 1 / 4, 1 / 4
    needs = codebook.needs(usage)
    np.testing.assert_allclose(needs, [1 / 2, 1 / 4, 1 / 4], rtol=1e-5)
    vectors = np.arange(4 * 21, dtype=np.float32).reshape(4, 21, 1)
    first = jax.vmap(lambda key: codebook.candidates(vectors, key, 1, SCALES, needs=needs)[0, 0])(
        jax.random.split(jax.random.key(1), 900)
    )
    by_scale = np.bincount(SCALES.level_ids[np.asarray(first).astype(int) % 21], minlength=3)
    assert np.abs(by_scale - [450, 225, 225]).max() < 5 * np.sqrt(900 / 4)


def test_few_features_are_all_taken_and_their_copies_differ():
    features = normal(0, 10, 3)
    codes = np.asarray(codebook.sampled_init(features, jax.random.key(0), 25))
    np.testing.assert_array_equal(np.sort(codes[:10], axis=0), np.sort(features, axis=0))
    assert len(np.unique(codes, axis=0)) == 25
    nearest = np.linalg.norm(codes[10:, None] - features, axis=-1).min(axis=1)
    assert nearest.min() > 0 and nearest.max() < 6 * 0.1 * features.std(axis=0).max()
    whole = np.asarray(codebook.sampled_init(features, jax.random.key(0), 10))
    np.testing.assert_array_equal(np.sort(whole, axis=0), np.sort(features, axis=0))


def test_kmeans_moves_codes_to_the_means_of_what_they_serve():
    features = normal(1, 400, 4)
    start, codes = (
        np.asarray(init(features, jax.random.key(0), 8))
        for init in (
            codebook.sampled_init,
            lambda *args: codebook.kmeans_init(*args, iterations=200),
        )
    )
    squares, before = (np.sum((features[:, None] - c) ** 2, axis=-1) for c in (codes, start))
    assert squares.min(axis=1).sum() < 0.8 * before.min(axis=1).sum()
    means = [features[squares.argmin(axis=1) == i].mean(axis=0) for i in range(8)]
    np.testing.assert_allclose(codes, means, atol=1e-4)
    few = codebook.kmeans_init(features[:5], jax.random.key(0), 8)
    np.testing.assert_array_equal(few, codebook.sampled_init(features[:5], jax.random.key(0), 8))


def first_codes(q, feature, key, how):
    """In two rounds, as a run starts."""
    vectors = vq.ideal_vectors(q, feature)
    for round_key in jax.random.split(key):
        codes = codebook.first_codes(vectors, round_key, len(q.table), SCALES, how)
        vectors = vq.quantize(q.replace(codebook=codes), feature).searched
    return codes


def test_equal_codes_are_all_one_vector():
    vectors = normal(0, 2, 21, 3)
    codes = np.asarray(codebook.first_codes(vectors, jax.random.key(0), 16, SCALES, "equal"))
    assert codes.shape == (16, 3) and len(np.unique(codes, axis=0)) == 1
    assert (vectors == codes[0]).all(axis=-1).any()


@pytest.mark.parametrize("how", ["sampled", "kmeans"])
def test_first_codes_serve_features_far_from_where_codes_were(how):
    feature = 5 + 3 * normal(0, 32, 4, 4, 3)
    q, quantize = make(jnp.asarray(normal(1, 16, 3) * 0.1 - 5)), jax.jit(vq.quantize)
    codes = first_codes(q, jnp.asarray(feature), jax.random.key(0), how)
    before, after = quantize(q, feature), quantize(q.replace(codebook=codes), feature)
    errors = [float(jnp.mean((x.totals[-1] - feature) ** 2)) for x in (before, after)]
    assert errors[1] < 0.3 * errors[0]
    assert [len(np.unique(x.tokens)) >= 15 for x in (before, after)] == [False, True]


def test_revival_follows_its_rule():
    codes, vectors = normal(0, 6, 2), normal(1, 2, 2)
    usage = np.array([[0.4, 0.02, 0.0, 0.0, 0.02, 0.0], [0.0, 0.0, 0.6, 0.0, 0.0, 0.0]], np.float32)
    counts = np.array([[1, 0, 0, 0, 0, 0], [3, 0, 4, 0, 2, 0]])
    new = codebook.revive(codes, usage, counts, vectors, decay=0.9, threshold=0.1)
    expected = 0.9 * usage + 0.1 * np.array([[1, 0, 0, 0, 0, 0], np.array([3, 0, 4, 0, 2, 0]) / 9])
    dead = expected.mean(axis=0) < 0.1 / 6  # 1, 3 and 5, of which two find a vector
    np.testing.assert_array_equal(np.nonzero(dead)[0], [1, 3, 5])
    np.testing.assert_array_equal(np.nonzero(new.revived)[0], [1, 3])
    np.testing.assert_array_equal(new.codebook[np.array([1, 3])], vectors)
    np.testing.assert_array_equal(new.codebook[np.array([0, 2, 4, 5])], codes[[0, 2, 4, 5]])
    np.testing.assert_allclose(new.usage, np.where(new.revived, 1 / 6, expected), rtol=1e-6)
    # Scales of which nothing was counted, or that a step does not have, keep their usage.
    for fewer in (counts[:1], np.array([counts[0], np.zeros(6, int)])):
        kept = codebook.revive(codes, usage, fewer, vectors, decay=0.9, threshold=0.0)
        np.testing.assert_allclose(kept.usage, [expected[0], usage[1]], rtol=1e-6)


def test_an_unused_code_lives_for_as_long_as_is_said():
    counts, usage = np.array([[7, 0]]), codebook.first_usage(1, 2)
    steps = 0
    while True:
        steps += 1
        new = codebook.revive(
            jnp.eye(2), usage, counts, jnp.ones((2, 2)), decay=0.8, threshold=0.03
        )
        usage = new.usage
        if new.revived.any():
            break
    assert steps == int(np.ceil(np.log(0.03) / np.log(0.8))) and list(new.revived) == [False, True]


def test_codes_that_are_all_equal_recover():
    feature, v, decay, threshold = normal(0, 64, 4, 4, 6), 32, 0.8, 0.1
    codes, usage = jnp.ones((v, 6)), codebook.first_usage(3, v)

    @jax.jit
    def step(codes, usage, key):
        q = make(codes)
        tokens, totals, searched = vq.quantize(q, feature)
        counts = vq.code_counts(SCALES, tokens, v)
        offered = codebook.candidates(searched, key, v, SCALES, needs=codebook.needs(usage))
        new = codebook.revive(codes, usage, counts, offered, decay=decay, threshold=threshold)
        return new.codebook, new.usage, codebook.used(counts), jnp.mean((totals[-1] - feature) ** 2)

    used, errors = [], []
    for key in jax.random.split(jax.random.key(0), 25):
        codes, usage, by_scale, error = step(codes, usage, key)
        used.append(by_scale)
        errors.append(float(error))
    np.testing.assert_array_equal(used[0], [1, 1, 1])
    assert used[-1].max() >= 0.95 * v and used[-1].min() > v / 4
    # As good as codes that started from vectors of the data.
    healthy = make(first_codes(make(codes), feature, jax.random.key(1), "sampled"))
    reached = float(jnp.mean((jax.jit(vq.encode)(healthy, feature)[1][-1] - feature) ** 2))
    assert errors[-1] < 1.1 * reached < 0.7 * errors[0]


def test_rows_of_moments_and_averages_follow_the_revived_codes():
    params = {"quantize": {"codebook": jnp.ones((3, 2))}, "encoder": {"kernel": jnp.ones((3, 2))}}
    state = optax.adam(0.1).update(params, optax.adam(0.1).init(params), params)[1]
    revived = jnp.array([False, True, False])
    reset = codebook.reset_rows(state, revived)
    for moment in ("mu", "nu"):
        before, after = getattr(state[0], moment), getattr(reset[0], moment)
        np.testing.assert_array_equal(after["encoder"]["kernel"], before["encoder"]["kernel"])
        np.testing.assert_array_equal(after["quantize"]["codebook"][1], 0)
        np.testing.assert_array_equal(
            after["quantize"]["codebook"][::2], before["quantize"]["codebook"][::2]
        )
        assert np.all(before["quantize"]["codebook"] != 0)
    average = codebook.set_rows(params, revived, jnp.full((3, 2), 7.0))
    np.testing.assert_array_equal(average["quantize"]["codebook"], [[1, 1], [7, 7], [1, 1]])
    np.testing.assert_array_equal(average["encoder"]["kernel"], params["encoder"]["kernel"])


def entropies(p, weights):
    """E[H(p)] and H(E[p]) of rows of probabilities."""
    weights = weights / weights.sum()
    return weights @ scipy.stats.entropy(p, axis=-1), scipy.stats.entropy(weights @ p)


@pytest.mark.parametrize("kind", ["euclidean", "cosine"])
def test_entropy_penalty_whatever_the_chunk(kind):
    codes, vectors, counted = (
        normal(0, 11, 3),
        normal(1, 2, 21, 3),
        np.random.default_rng(2).random((2, 21)) < 0.7,
    )
    if kind == "cosine":
        unit_codes, unit = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (codes, vectors))
        score = unit @ unit_codes.T
    else:
        score = -np.sum((vectors[..., None, :] - codes) ** 2, axis=-1)
    p = scipy.special.softmax(score.astype(np.float64) / 0.7, axis=-1).reshape(-1, 11)
    for mask in (None, counted):
        sure, average = entropies(p, np.ones(42) if mask is None else mask.reshape(-1) * 1.0)
        for chunk in (1, 2 * 11 * 5, 10**6):
            ours = codebook.entropy_penalty(
                make(jnp.asarray(codes), kind), vectors, 0.7, mask, chunk
            )
            np.testing.assert_allclose(ours, sure - average, rtol=1e-4, atol=1e-6)


def test_the_penalty_of_scales_is_the_mean_of_theirs():
    codes, vectors, counted = (
        make(normal(0, 11, 3)),
        normal(1, 2, SCALES.total, 3),
        np.array([[True], [False]]),
    )
    spans = [SCALES.span(k) for k in range(len(SCALES))]
    for mask, rows in ((None, slice(None)), (counted, slice(1))):
        expected = [codebook.entropy_penalty(codes, vectors[rows, span], 0.7) for span in spans]
        ours = codebook.scale_entropy_penalty(codes, vectors, 0.7, mask)
        np.testing.assert_allclose(ours, np.mean(expected), rtol=1e-5)


def test_the_penaltys_gradient_is_the_difference_quotient():
    codes, vectors, direction = (
        normal(0, 7, 3),
        normal(1, 2, 5, 3),
        (normal(2, 7, 3), normal(3, 2, 5, 3)),
    )

    def penalty(codes, vectors):
        return codebook.entropy_penalty(make(codes), vectors, 1.0, chunk=2 * 7 * 2)

    _, slope = jax.jvp(penalty, (codes, vectors), direction)
    ahead, behind = (
        penalty(*(x + s * d for x, d in zip((codes, vectors), direction, strict=True)))
        for s in (1e-2, -1e-2)
    )
    np.testing.assert_allclose(slope, (ahead - behind) / 2e-2, rtol=2e-2)
    gradients = jax.grad(penalty, argnums=(0, 1))(codes, vectors)
    by_reverse = sum(float(jnp.vdot(g, d)) for g, d in zip(gradients, direction, strict=True))
    np.testing.assert_allclose(by_reverse, slope, rtol=1e-4)


def test_the_penalty_of_bits_is_that_of_their_codes():
    """The first entropy exactly; the second from above, and exactly where the bits are
    independent."""
    q, vectors = make(None, "bsq", channels=5), normal(1, 2, 21, 5)
    table = np.asarray(vq.code_vectors(q))

    def by_codes(vectors):
        unit = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
        p = scipy.special.softmax(unit.reshape(-1, 5) @ table.T / 0.3, axis=-1)
        return entropies(p, np.ones(len(p)))

    sure, average = by_codes(vectors)
    ours = float(codebook.entropy_penalty(q, vectors, 0.3))
    assert ours < sure - average
    unit = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    bits = scipy.special.expit(2 * unit.reshape(-1, 5) / np.sqrt(5) / 0.3).mean(axis=0)
    np.testing.assert_allclose(ours, sure - scipy.stats.bernoulli(bits).entropy().sum(), rtol=1e-4)
    every_sign = np.asarray(table, np.float32)[None]  # all corners in equal use: independent bits
    sure, average = by_codes(every_sign)
    np.testing.assert_allclose(
        codebook.entropy_penalty(q, every_sign, 0.3), sure - average, rtol=1e-4
    )


def test_a_batch_over_devices_counts_and_revives_as_one():
    feature, codes = normal(0, 16, 4, 4, 6), normal(1, 12, 6) * 0.1

    def step(codes, feature):
        tokens, _, searched = vq.quantize(make(codes), feature)
        counts = vq.code_counts(SCALES, tokens, 12)
        offered = codebook.candidates(searched, jax.random.key(3), 12, SCALES)
        penalty = codebook.entropy_penalty(make(codes), searched, 1.0)
        new = codebook.revive(
            codes, codebook.first_usage(3, 12), counts, offered, decay=0.0, threshold=0.7
        )
        return counts, new.codebook, new.usage, penalty

    mesh = Mesh(np.array(jax.devices()[:4]), ("data",))
    rows = jax.device_put(feature, NamedSharding(mesh, PartitionSpec("data")))
    whole, spread = jax.jit(step)(codes, feature), jax.jit(step)(codes, rows)
    assert int(whole[0].sum()) == 16 * 21 and not np.array_equal(whole[1], codes)
    for ours, theirs in zip(spread, whole, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
