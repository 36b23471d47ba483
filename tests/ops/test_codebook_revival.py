"""Revival of dead codes against its rule, written out in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from helpers.quantizers import SCALES, codes_of_data, make, normal
from var_jax.ops import codebook, codebook_entropy, codebook_init, codebook_revival, vq


def test_revive_follows_its_rule():
    """Usage, dead codes and replacements are those of the moving average in numpy; scales where
    nothing was counted, or that a step does not have, keep their usage."""
    codes, vectors = normal(0, 6, 2), normal(1, 2, 2)
    usage = np.array([[0.4, 0.02, 0.0, 0.0, 0.02, 0.0], [0.0, 0.0, 0.6, 0.0, 0.0, 0.0]], np.float32)
    counts = np.array([[1, 0, 0, 0, 0, 0], [3, 0, 4, 0, 2, 0]])
    new = codebook_revival.revive(codes, usage, counts, vectors, decay=0.9, threshold=0.1)
    expected = 0.9 * usage + 0.1 * np.array([[1, 0, 0, 0, 0, 0], np.array([3, 0, 4, 0, 2, 0]) / 9])
    dead = expected.mean(axis=0) < 0.1 / 6
    np.testing.assert_array_equal(np.nonzero(dead)[0], [1, 3, 5])
    np.testing.assert_array_equal(np.nonzero(new.revived)[0], [1, 3])  # there are two vectors
    np.testing.assert_array_equal(new.codebook[np.array([1, 3])], vectors)
    np.testing.assert_array_equal(new.codebook[np.array([0, 2, 4, 5])], codes[[0, 2, 4, 5]])
    np.testing.assert_allclose(new.usage, np.where(new.revived, 1 / 6, expected), rtol=1e-6)
    for fewer in (counts[:1], np.array([counts[0], np.zeros(6, int)])):
        new = codebook_revival.revive(codes, usage, fewer, vectors, decay=0.9, threshold=0.0)
        np.testing.assert_allclose(new.usage, [expected[0], usage[1]], rtol=1e-6)


def test_revive_lets_an_unused_code_live_for_the_documented_steps():
    """The usage starts at an equal share and falls to 0.8 of itself per step; the code is replaced
    in the first step where it is below 0.03 of that share, and in none before."""
    counts, usage = np.array([[7, 0]]), codebook_revival.initial_usage(1, 2)
    steps = 0
    while True:
        steps += 1
        new = codebook_revival.revive(
            jnp.eye(2), usage, counts, jnp.ones((2, 2)), decay=0.8, threshold=0.03
        )
        usage = new.usage
        if new.revived.any():
            break
    assert steps == int(np.ceil(np.log(0.03) / np.log(0.8))) and list(new.revived) == [False, True]


def test_revive_recovers_codes_that_are_all_equal():
    """After 25 steps nearly all codes are in use, and the error is within 10 % of codes that
    started from vectors of the data."""
    feature, v, decay, threshold = normal(0, 64, 4, 4, 6), 32, 0.8, 0.1
    codes, usage = jnp.ones((v, 6)), codebook_revival.initial_usage(3, v)

    @jax.jit
    def step(codes, usage, key):
        tokens, f_hats, residuals = vq.quantize(make(codes), feature)
        counts = codebook.code_counts(SCALES, tokens, v)
        weights = codebook_revival.scale_weights(usage)
        vectors = codebook_init.candidates(residuals, key, v, SCALES, scale_weights=weights)
        new = codebook_revival.revive(
            codes, usage, counts, vectors, decay=decay, threshold=threshold
        )
        error = jnp.mean((f_hats[-1] - feature) ** 2)
        return new.codebook, new.usage, codebook.codes_used(counts), error

    codes_used, errors = [], []
    for key in jax.random.split(jax.random.key(0), 25):
        codes, usage, used_per_scale, error = step(codes, usage, key)
        codes_used.append(used_per_scale)
        errors.append(float(error))
    np.testing.assert_array_equal(codes_used[0], [1, 1, 1])
    assert codes_used[-1].max() >= 0.95 * v and codes_used[-1].min() > v / 4
    healthy = make(codes_of_data(make(codes), feature, jax.random.key(1), "sampled"))
    f_hats = jax.jit(vq.quantize)(healthy, feature).f_hats
    healthy_error = float(jnp.mean((f_hats[-1] - feature) ** 2))
    assert errors[-1] < 1.1 * healthy_error < 0.7 * errors[0]


def test_reset_rows_and_set_rows_change_revived_rows_of_codebooks_alone():
    """Adam's moments become 0 at the revived row only; other rows of the codebook and other
    parameters stay as they were."""
    params = {"quantize": {"codebook": jnp.ones((3, 2))}, "encoder": {"kernel": jnp.ones((3, 2))}}
    state = optax.adam(0.1).update(params, optax.adam(0.1).init(params), params)[1]
    revived = jnp.array([False, True, False])
    reset = codebook_revival.reset_rows(state, revived)
    for moment in ("mu", "nu"):
        before, after = getattr(state[0], moment), getattr(reset[0], moment)
        np.testing.assert_array_equal(after["encoder"]["kernel"], before["encoder"]["kernel"])
        np.testing.assert_array_equal(after["quantize"]["codebook"][1], 0)
        np.testing.assert_array_equal(
            after["quantize"]["codebook"][::2], before["quantize"]["codebook"][::2]
        )
        assert np.all(before["quantize"]["codebook"] != 0)
    average = codebook_revival.set_rows(params, revived, jnp.full((3, 2), 7.0))
    np.testing.assert_array_equal(average["quantize"]["codebook"], [[1, 1], [7, 7], [1, 1]])
    np.testing.assert_array_equal(average["encoder"]["kernel"], params["encoder"]["kernel"])


def test_revive_of_a_batch_over_devices_matches_one_device():
    """Counts, codes, usage and the entropy penalty are those of the global batch."""
    feature, codes = normal(0, 16, 4, 4, 6), normal(1, 12, 6) * 0.1

    def step(codes, feature):
        tokens, _, residuals = vq.quantize(make(codes), feature)
        counts = codebook.code_counts(SCALES, tokens, 12)
        vectors = codebook_init.candidates(residuals, jax.random.key(3), 12, SCALES)
        penalty = codebook_entropy.entropy_penalty(make(codes), residuals, 1.0)
        usage = codebook_revival.initial_usage(3, 12)
        new = codebook_revival.revive(codes, usage, counts, vectors, decay=0.0, threshold=0.7)
        return counts, new.codebook, new.usage, penalty

    mesh = Mesh(np.array(jax.devices()[:4]), ("data",))
    rows = jax.device_put(feature, NamedSharding(mesh, PartitionSpec("data")))
    on_one, on_four = jax.jit(step)(codes, feature), jax.jit(step)(codes, rows)
    assert int(on_one[0].sum()) == 16 * 21 and not np.array_equal(on_one[1], codes)
    for one, four in zip(on_one, on_four, strict=True):
        np.testing.assert_allclose(four, one, rtol=1e-5, atol=1e-6)
