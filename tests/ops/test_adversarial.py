"""Adversarial losses against numpy: a linear discriminator, whose gradients are written down by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from var_jax.errors import UserError
from var_jax.ops import adversarial, augment

B, H, W, C, N = 3, 4, 5, 2, 6


@pytest.fixture(scope="module")
def linear():
    """(real images, fakes, matrix): logits are flattened images times the matrix."""
    random = np.random.default_rng(0)
    images = [random.normal(size=(B, H, W, C)).astype(np.float32) for _ in range(2)]
    return *images, 0.3 * random.normal(size=(H * W * C, N)).astype(np.float32)


def logits(images, matrix):
    return images.reshape(images.shape[0], -1) @ matrix


def relu(x):
    return np.maximum(x, 0)


def test_hinge_loss_and_its_gradient(linear):
    real, fake, matrix = linear
    d_real, d_fake = logits(real, matrix), logits(fake, matrix)
    loss, gradient = jax.value_and_grad(
        lambda m: adversarial.hinge_loss(logits(real, m), logits(fake, m)))(jnp.asarray(matrix))
    assert 0.1 < (d_real > 1).mean() + (d_fake < -1).mean() < 1.9  # both sides of both hinges
    np.testing.assert_allclose(loss, (relu(1 - d_real).mean() + relu(1 + d_fake).mean()) / 2, rtol=1e-5)
    by_hand = (fake.reshape(B, -1).T @ (d_fake > -1) - real.reshape(B, -1).T @ (d_real < 1)) / (2 * B * N)
    np.testing.assert_allclose(gradient, by_hand, atol=1e-6)


def test_generator_loss_and_its_gradient(linear):
    _, fake, matrix = linear
    loss, gradient = jax.value_and_grad(
        lambda x: adversarial.generator_loss(logits(x, matrix)))(jnp.asarray(fake))
    np.testing.assert_allclose(loss, -logits(fake, matrix).mean(), rtol=1e-5)
    by_hand = np.broadcast_to(-matrix.mean(axis=1) / B, (B, H * W * C)).reshape(fake.shape)
    np.testing.assert_allclose(gradient, by_hand, atol=1e-7)


def test_adaptive_weight():
    random = np.random.default_rng(1)
    pixels, gan = random.normal(size=(3, 3, 4, 1)), 0.01 * random.normal(size=(3, 3, 4, 1))
    ratio = np.sqrt((pixels**2).sum()) / (np.sqrt((gan**2).sum()) + 1e-6)
    for lowest, highest, expected in ((0.015, 1e4, ratio), (0.015, 5.0, 5.0), (2 * ratio, 1e6, 2 * ratio)):
        np.testing.assert_allclose(adversarial.adaptive_weight(pixels, gan, lowest, highest), expected, rtol=1e-5)
    np.testing.assert_allclose(adversarial.adaptive_weight(pixels, 0 * gan, 0.015, 1e4), 1e4)  # a flat discriminator
    slope = jax.grad(lambda x: adversarial.adaptive_weight(x, jnp.asarray(gan), 0.0, 1e4))(jnp.asarray(pixels))
    assert not np.asarray(slope).any()


def test_ramp():
    assert [float(adversarial.ramp(step, 3, 4)) for step in range(9)] == [0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1]
    assert [float(adversarial.ramp(step, 2, 0)) for step in range(4)] == [0, 0, 1, 1]


def test_lecam(linear):
    real, fake, matrix = linear
    d_real, d_fake = logits(real, matrix), logits(fake, matrix)
    averages = np.array([0.4, -0.3], np.float32)
    expected = (relu(d_real + 0.3) ** 2).mean() + (relu(0.4 - d_fake) ** 2).mean()
    loss, (to_logits, to_averages) = jax.value_and_grad(
        lambda d, a: adversarial.lecam(d, d_fake, a), argnums=(0, 1))(jnp.asarray(d_real), jnp.asarray(averages))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(to_logits, 2 * relu(d_real + 0.3) / d_real.size, atol=1e-6)
    assert not np.asarray(to_averages).any()


def test_lecams_averages_start_at_the_first_logits():
    averages, by_hand = jnp.array([9.0, 9.0]), None
    for updates, (real, fake) in enumerate([(1.0, -1.0), (2.0, 0.5), (-1.0, 3.0)]):
        averages = adversarial.lecam_averages(averages, jnp.float32(real), jnp.float32(fake), 0.1, updates)
        kept = min(0.1, updates / (10 + updates))
        now = np.array([real, fake])
        by_hand = now if by_hand is None else kept * by_hand + (1 - kept) * now
        np.testing.assert_allclose(averages, by_hand, rtol=1e-6)


def test_r1_of_a_linear_and_of_a_quadratic_discriminator(linear):
    real, _, matrix = linear
    penalty = adversarial.r1_penalty(lambda x: logits(x, jnp.asarray(matrix)), jnp.asarray(real))
    np.testing.assert_allclose(penalty, (matrix.mean(axis=1) ** 2).sum() / 2, rtol=1e-5)  # the same at every image
    # D(x) = |x|^2 has the gradient 2x, and the penalty 2 |x|^2 the gradient 4x / b.
    value, slope = jax.value_and_grad(lambda x: adversarial.r1_penalty(
        lambda y: jnp.sum(y**2, axis=(1, 2, 3))[:, None], x))(jnp.asarray(real))
    np.testing.assert_allclose(value, 2 * (real**2).sum() / B, rtol=1e-5)
    np.testing.assert_allclose(slope, 4 * real / B, rtol=1e-4)


@pytest.fixture(params=[1, 3], ids=["grey", "rgb"])
def images(request):
    return np.random.default_rng(2).uniform(0.1, 1, (64, 16, 12, request.param)).astype(np.float32)


def test_no_augmentation_leaves_images_alone(images):
    for policy, probability in (("", 1.0), ("color,translation,cutout", 0.0)):
        np.testing.assert_array_equal(augment.diff_augment(jax.random.key(0), images, policy, probability), images)


def test_color_is_affine_in_each_image(images):
    out = np.asarray(augment.color(jax.random.key(1), images), np.float64)
    gains, shifts = [], []
    for before, after in zip(images.astype(np.float64), out, strict=True):
        grey, grey_after = before.mean(-1).ravel(), after.mean(-1).ravel()
        (gain, shift), residual = np.polyfit(grey, grey_after, 1, full=True)[:2]
        assert residual.size == 0 or residual[0] < 1e-8  # saturation does not touch the grey
        gains.append(gain)
        shifts.append(grey_after.mean() - grey.mean())
        spread = (after - after.mean(-1, keepdims=True)) / gain
        whole = before - before.mean(-1, keepdims=True)
        if before.shape[-1] == 3:
            factor = (spread * whole).sum() / (whole**2).sum()
            assert 0 <= factor <= 2
            np.testing.assert_allclose(spread, factor * whole, atol=1e-5)
    assert 0.5 <= min(gains) < 0.7 and 1.3 < max(gains) <= 1.5
    assert -0.5 <= min(shifts) < -0.3 and 0.3 < max(shifts) <= 0.5


def test_translation_moves_whole_pixels(images):
    out = np.asarray(augment.translation(jax.random.key(3), images))
    found = []
    for before, after in zip(images, out, strict=True):
        matches = []
        for down in range(-2, 3):  # an eighth of 16 and of 12, rounded
            for right in range(-2, 3):
                moved = np.zeros_like(before)
                h, w = before.shape[:2]
                moved[max(down, 0):h + min(down, 0), max(right, 0):w + min(right, 0)] = before[
                    max(-down, 0):h + min(-down, 0), max(-right, 0):w + min(-right, 0)]
                if np.array_equal(moved, after):
                    matches.append((down, right))
        assert len(matches) == 1
        found += matches
    assert {d for d, _ in found} == {r for _, r in found} == set(range(-2, 3))


def test_cutout_leaves_a_hole(images):
    out = np.asarray(augment.cutout(jax.random.key(4), images))
    hole = (out == 0).all(-1)
    np.testing.assert_array_equal(out, np.where(hole[..., None], 0, images))
    for one in hole:
        rows, columns = one.any(1), one.any(0)
        assert one.sum() == rows.sum() * columns.sum()  # a rectangle
        assert rows.sum() <= 8 and columns.sum() <= 6  # half of each side, less where it hangs over
    assert {8} <= set(hole.any(2).sum(1)) and len(set(hole.any(2).sum(1))) > 2


def test_augmentations_are_differentiable_and_drawn_an_image(images):
    policy = "color,translation,cutout"
    random = np.random.default_rng(5)
    cotangent = random.normal(size=images.shape).astype(np.float32)
    run = jax.jit(lambda x: augment.diff_augment(jax.random.key(6), x, policy, 0.5))
    base, back = jax.vjp(run, jnp.asarray(images))
    direction = random.normal(size=images.shape).astype(np.float32)
    # Every augmentation is affine in the image, so that a difference is the derivative, whatever its length.
    difference = np.asarray(run(images + direction), np.float64) - np.asarray(base, np.float64)
    np.testing.assert_allclose((np.asarray(back(cotangent)[0], np.float64) * direction).sum(),
                               (cotangent * difference).sum(), rtol=1e-3)
    same = (np.asarray(base) == images).all(axis=(1, 2, 3))
    assert 0.25 < same.mean() < 0.75


def test_an_unknown_augmentation_is_named():
    with pytest.raises(UserError, match=r"diffaugment names 'colour'; did you mean 'color'\?"):
        augment.policy_names("colour,cutout")
