"""The tokenizer's losses and their gradients: reconstruction, quantizer, and a discriminator beside
it.

Gradients with respect to the reconstruction are taken term by term and pulled back through the
tokenizer once. The adaptive weight needs two of them at the decoder's last kernel besides, which
cost one small convolution each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from var_jax.config.train import TrainConfig
from var_jax.devices import sharding
from var_jax.models.tokenizer import DROPOUT, Tokenizer
from var_jax.objectives import losses
from var_jax.objectives.critic import Critic
from var_jax.objectives.frozen_networks import Networks
from var_jax.objectives.phase import Phase
from var_jax.ops import codebook, gan_losses, vq
from var_jax.ops.resize import resize

if TYPE_CHECKING:
    from var_jax.train.state import DiscriminatorState, TrainState

# The key of the residual blocks' dropout is the quantizer's with this number folded in.
BLOCKS = 2**32 - 1
# The key of an image's second augmentation is the first's with this number folded in.
AGAIN = 2**32 - 2
LAST_KERNEL = ("decoder", "conv_out", "kernel")


class Gradients(NamedTuple):
    """Of a batch, averaged over its parts.

    Attributes:
      params, discriminator: gradients of both networks; the second None before adversarial
        training.
      metrics: scalars, and arrays with a row a scale.
      counts: (K, V) uses of the codes.
      spectral: power iteration's next vectors.
    """

    params: Any
    discriminator: Any
    metrics: losses.Metrics
    counts: jax.Array
    spectral: Any


def make_gradients(config: TrainConfig, networks: Networks, critic: Critic | None, phase: Phase):
    """(state, frozen, batch, rng) -> (Gradients, vectors that dead codes may be moved onto: None
    without revival)."""
    tokenizer = phase.tokenizer(config)
    model, loss = Tokenizer(tokenizer), config.loss

    def gradients(state: TrainState, frozen: Any, batch: Mapping[str, jax.Array], rng: jax.Array):
        images = sharding.constrain(losses.to_signal(batch["image"]), "images", None, None, None)
        images = resize(images, tokenizer.image_shape[:2], "area")
        dropout_key, critic_key, revival_key = jax.random.split(rng, 3)
        rngs = {DROPOUT: jax.random.fold_in(dropout_key, BLOCKS)}

        def forward(params):
            out = model.apply({"params": params}, images, dropout_key, method="forward", rngs=rngs)
            parts, rest = {"vq": out.vq_loss}, loss.vq * out.vq_loss
            if config.codebook.entropy:
                parts["entropy"] = codebook.scale_entropy_penalty(
                    model.apply({"params": params}, method="quantizer"),
                    out.searched,
                    config.codebook.entropy_temperature,
                    out.counted,
                )
                rest += config.codebook.entropy * parts["entropy"]
            return (out.reconstruction, rest), (parts, out)

        def similar(reconstruction):
            parts = losses.image_terms(config, networks, frozen, reconstruction, images)
            means = {name: jnp.mean(value) for name, value in parts.items()}
            return losses.weighted(loss, means), means

        (rec, rest), pull_back, (parts, out) = jax.vjp(forward, state.params, has_aux=True)
        (pixels, means), d_rec = jax.value_and_grad(similar, has_aux=True)(rec)
        total, metrics, d_critic, spectral = pixels + rest, {**means, **parts}, None, None
        if phase.adversarial:

            def at_last_kernel(cotangent):
                return _at(pull_back((cotangent, jnp.zeros(())))[0], LAST_KERNEL)

            term, d_term, d_critic, spectral, found = _adversarial(
                config,
                critic,
                state.discriminator,
                state.step,
                frozen,
                images,
                rec,
                critic_key,
                at_last_kernel,
                d_rec,
            )
            total, d_rec, metrics = total + term, d_rec + d_term, {**metrics, **found}
        (grads,) = pull_back((d_rec, jnp.ones(())))
        counts = vq.code_counts(tokenizer.scales, out.tokens, tokenizer.vocab_size, out.counted)
        vectors = None
        if config.revives:
            number = -(-tokenizer.vocab_size // config.microbatches)
            needs = codebook.needs(state.usage)[: len(tokenizer.scales)]
            vectors = codebook.candidates(
                out.searched, revival_key, number, tokenizer.scales, out.counted, needs
            )
        return Gradients(grads, d_critic, {"loss": total, **metrics}, counts, spectral), vectors

    return gradients


def _adversarial(
    config: TrainConfig,
    critic: Critic,
    state: DiscriminatorState,
    step: jax.Array,
    frozen: Any,
    images: jax.Array,
    rec: jax.Array,
    key: jax.Array,
    at_last_kernel,
    d_pixels: jax.Array,
):
    """The generator's weighted term, its gradient at the reconstruction, and the discriminator's
    gradient on the same reconstructions, detached and augmented alike."""
    a, start = config.adversarial, config.adversarial_from
    real_key, fake_key = jax.random.split(key)
    blur = gan_losses.blur_strength(step, start, config.steps_of(a.blur_fade))

    def logits(params, x, key):
        return critic.logits(params, state.spectral, frozen, x, key, blur)

    def logits_again(params, x, key):
        return critic.logits_again(
            params, state.spectral, frozen, x, jax.random.fold_in(key, AGAIN)
        )

    def fools(reconstruction):
        return gan_losses.generator_loss(logits(state.params, reconstruction, fake_key)[0])

    generator, d_generator = jax.value_and_grad(fools)(rec)
    metrics = {"generator": generator}
    weight = a.weight * gan_losses.ramp(step, start, config.steps_of(a.warmup))
    if a.adaptive:
        adaptive = gan_losses.adaptive_weight(
            at_last_kernel(d_pixels),
            at_last_kernel(d_generator),
            a.adaptive_lowest,
            a.adaptive_highest,
        )
        weight, metrics["adaptive_weight"] = weight * adaptive, adaptive

    def tells_apart(params):
        detached = jax.lax.stop_gradient(rec)
        real, spectral = logits(params, images, real_key)
        fake, _ = logits(params, detached, fake_key)
        loss = gan_losses.hinge_loss(real, fake, halved=a.hinge == "mean")
        found = {"hinge": loss, "logits_real": jnp.mean(real), "logits_fake": jnp.mean(fake)}
        if a.bcr:
            found["bcr"] = gan_losses.consistency(
                real,
                fake,
                logits_again(params, images, real_key),
                logits_again(params, detached, fake_key),
            )
            loss += a.bcr * found["bcr"]
        if a.lecam:
            found["lecam"] = gan_losses.lecam(real, fake, state.averages)
            loss += a.lecam * found["lecam"]
        if a.r1:
            found["r1"] = jax.lax.cond(
                (step + 1) % a.r1_every
                == 0,  # counted as steps are told, so that one that is told may have it
                lambda: (
                    a.r1_every
                    * gan_losses.r1_penalty(lambda x: logits(params, x, real_key)[0], images)
                ),
                lambda: jnp.zeros(()),
            )
            loss += a.r1 * found["r1"]
        return loss, ({"discriminator_loss": loss, **found}, spectral)

    (_, (found, spectral)), d_critic = jax.value_and_grad(tells_apart, has_aux=True)(state.params)
    metrics |= {"generator_weight": weight, **found}
    return weight * generator, weight * d_generator, d_critic, spectral, metrics


def update_discriminator(
    config: TrainConfig,
    optimizer: optax.GradientTransformation,
    state: DiscriminatorState,
    found: Gradients,
) -> DiscriminatorState:
    """The discriminator after a step."""
    updates, opt_state = optimizer.update(found.discriminator, state.opt_state, state.params)
    averages = gan_losses.lecam_averages(
        state.averages,
        found.metrics["logits_real"],
        found.metrics["logits_fake"],
        config.adversarial.lecam_decay,
        state.updates,
    )
    return state.replace(
        params=optax.apply_updates(state.params, updates),
        spectral=found.spectral,
        opt_state=opt_state,
        averages=averages,
        updates=state.updates + 1,
    )


def revive(
    config: TrainConfig, state: TrainState, counts: jax.Array, vectors: jax.Array
) -> tuple[TrainState, Any]:
    """The state with dead codes moved onto `vectors`, and how many were: their moments start at
    zero, and their running average at the new code."""
    c = config.codebook
    after = codebook.revive(
        state.params["quantize"]["codebook"],
        state.usage,
        counts,
        vectors,
        decay=c.revive_decay,
        threshold=c.revive_threshold,
    )
    params, ema = (
        tree and codebook.set_rows(tree, after.revived, after.codebook)
        for tree in (state.params, state.ema)
    )
    opt_state = codebook.reset_rows(state.opt_state, after.revived)
    return (
        state.replace(params=params, ema=ema, opt_state=opt_state, usage=after.usage),
        jnp.sum(after.revived),
    )


def _at(tree: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        tree = tree[name]
    return tree
