"""Adversarial losses against numpy: a linear discriminator, whose gradients are written down by
hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from var_jax.errors import UserError
from var_jax.ops import diffaugment, gan_losses
from var_jax.ops.resize import resize

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
    """Loss and gradient of a linear discriminator are those written down by hand, with logits on
    both sides of both hinges."""
    real, fake, matrix = linear
    d_real, d_fake = logits(real, matrix), logits(fake, matrix)
    loss, gradient = jax.value_and_grad(
        lambda m: gan_losses.hinge_loss(logits(real, m), logits(fake, m))
    )(jnp.asarray(matrix))
    assert 0.1 < (d_real > 1).mean() + (d_fake < -1).mean() < 1.9  # both sides of both hinges
    np.testing.assert_allclose(
        loss, (relu(1 - d_real).mean() + relu(1 + d_fake).mean()) / 2, rtol=1e-5
    )
    by_hand = (fake.reshape(B, -1).T @ (d_fake > -1) - real.reshape(B, -1).T @ (d_real < 1)) / (
        2 * B * N
    )
    np.testing.assert_allclose(gradient, by_hand, atol=1e-6)


def test_hinge_loss_may_be_the_sum_of_its_two_means(linear):
    """vaex adds both hinges where VQGAN takes their mean: twice the value, and twice the
    gradient."""
    real, fake, matrix = linear

    def loss(m, halved):
        return gan_losses.hinge_loss(logits(real, m), logits(fake, m), halved=halved)

    (mean, slope), (both, steeper) = (
        jax.value_and_grad(loss)(jnp.asarray(matrix), halved) for halved in (True, False)
    )
    np.testing.assert_allclose(both, 2 * mean, rtol=1e-6)
    np.testing.assert_allclose(steeper, 2 * slope, rtol=1e-6)


def test_consistency_and_its_gradient(linear):
    """The discriminator is linear and each image has a second view; the gradient goes through both
    passes, so that with W the matrix it is 2 (x' - x)^T (x' - x) W over the number of logits, real
    and fake."""
    real, fake, matrix = linear
    random = np.random.default_rng(3)
    again = [random.normal(size=x.shape).astype(np.float32) for x in (real, fake)]
    loss, gradient = jax.value_and_grad(
        lambda m: gan_losses.consistency(*(logits(x, m) for x in (real, fake, *again)))
    )(jnp.asarray(matrix))
    differences = [
        (two - one).reshape(B, -1).astype(np.float64)
        for one, two in zip((real, fake), again, strict=True)
    ]
    np.testing.assert_allclose(
        loss, sum(((x @ matrix) ** 2).mean() for x in differences), rtol=1e-4
    )
    by_hand = sum(2 * x.T @ (x @ matrix) / (B * N) for x in differences)
    np.testing.assert_allclose(gradient, by_hand, rtol=0, atol=1e-5 * np.abs(by_hand).max())


def test_blur_strength_fades_from_the_start_on():
    """The strength is 1 until the first adversarial step and falls to 0 linearly over the length,
    at once where the length is 0."""
    assert [float(gan_losses.blur_strength(step, 3, 4)) for step in (2, 3, 4, 5, 7, 9)] == [
        1,
        1,
        0.75,
        0.5,
        0,
        0,
    ]
    assert [float(gan_losses.blur_strength(step, 3, 0)) for step in (2, 3, 4)] == [0, 0, 0]


def test_generator_loss_and_its_gradient(linear):
    """The loss is minus the mean logit, whose gradient is the same at every image."""
    _, fake, matrix = linear
    loss, gradient = jax.value_and_grad(lambda x: gan_losses.generator_loss(logits(x, matrix)))(
        jnp.asarray(fake)
    )
    np.testing.assert_allclose(loss, -logits(fake, matrix).mean(), rtol=1e-5)
    by_hand = np.broadcast_to(-matrix.mean(axis=1) / B, (B, H * W * C)).reshape(fake.shape)
    np.testing.assert_allclose(gradient, by_hand, atol=1e-7)


def test_adaptive_weight_is_the_ratio_of_gradient_norms():
    """The adaptive weight is the ratio of the gradients' norms within its bounds.

    It has no gradient of its own.
    """
    random = np.random.default_rng(1)
    pixels, gan = random.normal(size=(3, 3, 4, 1)), 0.01 * random.normal(size=(3, 3, 4, 1))
    ratio = np.sqrt((pixels**2).sum()) / (np.sqrt((gan**2).sum()) + 1e-6)
    for lowest, highest, expected in (
        (0.015, 1e4, ratio),
        (0.015, 5.0, 5.0),
        (2 * ratio, 1e6, 2 * ratio),
    ):
        np.testing.assert_allclose(
            gan_losses.adaptive_weight(pixels, gan, lowest, highest), expected, rtol=1e-5
        )
    np.testing.assert_allclose(
        gan_losses.adaptive_weight(pixels, 0 * gan, 0.015, 1e4), 1e4
    )  # a flat discriminator
    slope = jax.grad(lambda x: gan_losses.adaptive_weight(x, jnp.asarray(gan), 0.0, 1e4))(
        jnp.asarray(pixels)
    )
    assert not np.asarray(slope).any()


def test_ramp_is_linear_from_its_start():
    """The ramp is 0 up to its first step and 1 from its last one on; a ramp of no length jumps."""
    assert [float(gan_losses.ramp(step, 3, 4)) for step in range(9)] == [
        0,
        0,
        0,
        0.25,
        0.5,
        0.75,
        1,
        1,
        1,
    ]
    assert [float(gan_losses.ramp(step, 2, 0)) for step in range(4)] == [0, 0, 1, 1]


def test_lecam_and_its_gradient_equal_the_formula(linear):
    """Squared hinges between logits and the averages of the other kind, by numpy; the averages
    themselves have no gradient."""
    real, fake, matrix = linear
    d_real, d_fake = logits(real, matrix), logits(fake, matrix)
    averages = np.array([0.4, -0.3], np.float32)
    expected = (relu(d_real + 0.3) ** 2).mean() + (relu(0.4 - d_fake) ** 2).mean()
    loss, (to_logits, to_averages) = jax.value_and_grad(
        lambda d, a: gan_losses.lecam(d, d_fake, a), argnums=(0, 1)
    )(jnp.asarray(d_real), jnp.asarray(averages))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(to_logits, 2 * relu(d_real + 0.3) / d_real.size, atol=1e-6)
    assert not np.asarray(to_averages).any()


def test_lecams_averages_start_at_the_first_logits():
    """The first update forgets the initial averages, and later ones are numpy's moving averages."""
    averages, by_hand = jnp.array([9.0, 9.0]), None
    for updates, (real, fake) in enumerate([(1.0, -1.0), (2.0, 0.5), (-1.0, 3.0)]):
        averages = gan_losses.lecam_averages(
            averages, jnp.float32(real), jnp.float32(fake), 0.1, updates
        )
        decay = min(0.1, updates / (10 + updates))
        now = np.array([real, fake])
        by_hand = now if by_hand is None else decay * by_hand + (1 - decay) * now
        np.testing.assert_allclose(averages, by_hand, rtol=1e-6)


def test_r1_penalty_of_a_linear_and_of_a_quadratic_discriminator(linear):
    """Penalties, and the gradient of one, are those of closed forms."""
    real, _, matrix = linear
    penalty = gan_losses.r1_penalty(lambda x: logits(x, jnp.asarray(matrix)), jnp.asarray(real))
    np.testing.assert_allclose(
        penalty, (matrix.mean(axis=1) ** 2).sum() / 2, rtol=1e-5
    )  # the same at every image
    # D(x) = |x|^2 has the gradient 2x, and the penalty 2 |x|^2 the gradient 4x / b.
    value, slope = jax.value_and_grad(
        lambda x: gan_losses.r1_penalty(lambda y: jnp.sum(y**2, axis=(1, 2, 3))[:, None], x)
    )(jnp.asarray(real))
    np.testing.assert_allclose(value, 2 * (real**2).sum() / B, rtol=1e-5)
    np.testing.assert_allclose(slope, 4 * real / B, rtol=1e-4)


@pytest.fixture(params=[1, 3], ids=["gray", "rgb"])
def images(request):
    return np.random.default_rng(2).uniform(0.1, 1, (64, 16, 12, request.param)).astype(np.float32)


def test_no_augmentation_leaves_images_alone(images):
    """An empty policy and a probability of 0 return the images bit for bit."""
    for policy, probability in (("", 1.0), ("color,translation,cutout", 0.0)):
        np.testing.assert_array_equal(
            diffaugment.diff_augment(jax.random.key(0), images, policy, probability), images
        )


def test_color_is_affine_in_each_image(images):
    """The gray part of an image is scaled and shifted, its colors are scaled around gray, and the
    factors of 0.5 to 1.5, -0.5 to 0.5 and 0 to 2 are those of DiffAugment."""
    out = np.asarray(diffaugment.color(jax.random.key(1), images), np.float64)
    gains, shifts = [], []
    for before, after in zip(images.astype(np.float64), out, strict=True):
        gray, gray_after = before.mean(-1).ravel(), after.mean(-1).ravel()
        (gain, shift), residual = np.polyfit(gray, gray_after, 1, full=True)[:2]
        assert residual.size == 0 or residual[0] < 1e-8  # saturation does not touch the gray
        gains.append(gain)
        shifts.append(gray_after.mean() - gray.mean())
        spread = (after - after.mean(-1, keepdims=True)) / gain
        colors = before - before.mean(-1, keepdims=True)
        if before.shape[-1] == 3:
            factor = (spread * colors).sum() / (colors**2).sum()
            assert 0 <= factor <= 2
            np.testing.assert_allclose(spread, factor * colors, atol=1e-5)
    assert 0.5 <= min(gains) < 0.7 and 1.3 < max(gains) <= 1.5
    assert -0.5 <= min(shifts) < -0.3 and 0.3 < max(shifts) <= 0.5


def test_translation_moves_whole_pixels(images):
    """Exactly one shift of up to an eighth of each side explains every image, zeros come in from
    outside, and all shifts occur."""
    out = np.asarray(diffaugment.translation(jax.random.key(3), images))
    shifts = []
    for before, after in zip(images, out, strict=True):
        matches = []
        for down in range(-2, 3):  # an eighth of 16 and of 12, rounded
            for right in range(-2, 3):
                moved = np.zeros_like(before)
                h, w = before.shape[:2]
                moved[max(down, 0) : h + min(down, 0), max(right, 0) : w + min(right, 0)] = before[
                    max(-down, 0) : h + min(-down, 0), max(-right, 0) : w + min(-right, 0)
                ]
                if np.array_equal(moved, after):
                    matches.append((down, right))
        assert len(matches) == 1
        shifts += matches
    assert {d for d, _ in shifts} == {r for _, r in shifts} == set(range(-2, 3))


def test_cutout_leaves_a_hole(images):
    """Each image loses one rectangle of at most half of each side and is the same elsewhere."""
    out = np.asarray(diffaugment.cutout(jax.random.key(4), images))
    hole = (out == 0).all(-1)
    np.testing.assert_array_equal(out, np.where(hole[..., None], 0, images))
    for one in hole:
        rows, columns = one.any(1), one.any(0)
        assert one.sum() == rows.sum() * columns.sum()  # a rectangle
        assert rows.sum() <= 8 and columns.sum() <= 6  # half of each side, less where it hangs over
    assert {8} <= set(hole.any(2).sum(1)) and len(set(hole.any(2).sum(1))) > 2


@pytest.mark.parametrize(("hole", "most"), [(0.2, (3, 2)), (0.5, (8, 6))])
def test_cutout_takes_its_share_of_a_side(images, hole, most):
    """The published 0.2 of 16 and 12 pixels is 3 and 2, where half of a side is 8 and 6."""
    out = np.asarray(diffaugment.diff_augment(jax.random.key(4), images, "cutout", hole=hole))
    holes = (out == 0).all(-1)
    np.testing.assert_array_equal(out, np.where(holes[..., None], 0, images))
    assert (max(one.any(1).sum() for one in holes), max(one.any(0).sum() for one in holes)) == most


def blurred_by_hand(image, strength):
    """The published blur, pixel by pixel in float64: a kernel 2 ** -(x / s)^2 up to floor(3 s),
    mirrored borders."""
    height, width, _ = image.shape
    deviation = strength * (height / 2) ** 0.5
    reach = int(3 * deviation)
    kernel = 2.0 ** -((np.arange(-reach, reach + 1) / deviation) ** 2)
    kernel /= kernel.sum()
    padded = np.pad(
        image.astype(np.float64), ((reach, reach), (reach, reach), (0, 0)), mode="reflect"
    )
    rows = sum(weight * padded[i : i + height] for i, weight in enumerate(kernel))
    return sum(weight * rows[:, i : i + width] for i, weight in enumerate(kernel))


@pytest.mark.parametrize("strength", [1.0, 0.61, 0.2])
def test_fading_blur_is_the_published_kernel(images, strength):
    """The blur equals the published kernel written out; because it is linear, its gradient is
    tested against its value."""
    blur = jax.jit(diffaugment.fading_blur)
    out, back = jax.vjp(lambda x: blur(x, jnp.float32(strength)), jnp.asarray(images[:3]))
    for one, image in zip(out, images, strict=False):
        np.testing.assert_allclose(one, blurred_by_hand(image, strength), atol=1e-5)
    cotangent = np.random.default_rng(7).normal(size=out.shape).astype(np.float32)
    np.testing.assert_allclose(
        np.vdot(back(cotangent)[0], images[:3]), np.vdot(cotangent, out), rtol=1e-4
    )


@pytest.mark.parametrize("strength", [0.0, 0.1])
def test_fading_blur_ends_at_the_images_themselves(images, strength):
    """A kernel of less than a pixel to either side is none: 3 * 0.1 * sqrt(8) is 0.85."""
    out = jax.jit(diffaugment.fading_blur)(images, jnp.float32(strength))
    np.testing.assert_allclose(out, images, rtol=0, atol=0 if strength == 0 else 1e-6)


def test_frames_are_crops_and_averages_in_their_shares(images):
    """Every frame of 8 pixels is a window of its image, or the image averaged down by area; half
    are each."""
    out = np.asarray(
        jax.jit(lambda x: diffaugment.crop_or_resize(jax.random.key(8), x, 8, 0.5))(images)
    )
    averaged = np.asarray(resize(jnp.asarray(images), (8, 8), "area"))
    places, resized = set(), 0
    for image, frame, whole_image in zip(images, out, averaged, strict=True):
        if np.allclose(frame, whole_image, atol=1e-6):
            resized += 1
            continue
        corners = [
            (top, left)
            for top in range(9)
            for left in range(5)
            if np.allclose(frame, image[top : top + 8, left : left + 8], atol=1e-6)
        ]
        assert len(corners) == 1
        places.update(corners)
    assert 16 < resized < 48
    assert {top for top, _ in places} == set(range(9)) and {left for _, left in places} == set(
        range(5)
    )


@pytest.mark.parametrize(("side", "crops", "method"), [(8, 0.0, "area"), (24, 0.5, "bicubic")])
def test_frames_are_resized_where_nothing_is_cropped(images, side, crops, method):
    """Images that are smaller than the frame are enlarged as published, whatever the share of
    crops."""
    out = diffaugment.crop_or_resize(jax.random.key(8), jnp.asarray(images), side, crops)
    np.testing.assert_allclose(out, resize(jnp.asarray(images), (side, side), method), atol=1e-6)


def test_frames_have_the_gradient_of_a_linear_function(images):
    """Cropping and resizing are linear: <J^T c, x> equals <c, J x>."""
    out, back = jax.vjp(
        lambda x: diffaugment.crop_or_resize(jax.random.key(9), x, 8, 0.5), jnp.asarray(images)
    )
    cotangent = np.random.default_rng(7).normal(size=out.shape).astype(np.float32)
    np.testing.assert_allclose(
        np.vdot(back(cotangent)[0], images), np.vdot(cotangent, out), rtol=1e-4
    )


def test_augmentations_are_differentiable_and_drawn_an_image(images):
    """Augmentations have exact gradients, and each image draws whether it is augmented.

    All of them are affine in the image, so that a finite difference is the derivative.
    """
    policy = "color,translation,cutout"
    random = np.random.default_rng(5)
    cotangent = random.normal(size=images.shape).astype(np.float32)
    run = jax.jit(lambda x: diffaugment.diff_augment(jax.random.key(6), x, policy, 0.5))
    base, back = jax.vjp(run, jnp.asarray(images))
    direction = random.normal(size=images.shape).astype(np.float32)
    # Every augmentation is affine in the image, so that a difference is the derivative, whatever
    # its length.
    difference = np.asarray(run(images + direction), np.float64) - np.asarray(base, np.float64)
    np.testing.assert_allclose(
        (np.asarray(back(cotangent)[0], np.float64) * direction).sum(),
        (cotangent * difference).sum(),
        rtol=1e-3,
    )
    same = (np.asarray(base) == images).all(axis=(1, 2, 3))
    assert 0.25 < same.mean() < 0.75


def test_diffaugment_names_an_unknown_augmentation():
    """The error names the unknown word and the nearest known one."""
    with pytest.raises(UserError, match=r"diffaugment names 'colour'; did you mean 'color'\?"):
        diffaugment.policy_names("colour,cutout")
