"""Settings and networks that the tests of adversarial training share."""

from var_jax.config.tokenizer_training import AdversarialConfig, CodebookConfig

PATCH = AdversarialConfig(
    weight=0.4,
    start=1,
    warmup=2,
    channels=8,
    layers=1,
    lecam=0.1,
    lecam_decay=0.9,
    r1=0.1,
    r1_every=2,
)
HEALTH = CodebookConfig(init="sampled", revive_threshold=0.9, revive_decay=0.5)


class Linear:
    """Flattened images times a matrix: a discriminator whose gradients are written down by hand."""

    def logits(self, params, spectral, frozen, images, key, blur):
        return images.reshape(images.shape[0], -1) @ params["matrix"], spectral
