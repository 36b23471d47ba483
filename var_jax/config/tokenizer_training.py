"""The tokenizer's sections of a run: adversarial terms, health of the codebook, smaller images."""

import dataclasses
from typing import Literal

from var_jax.config.model import TokenizerConfig
from var_jax.config.scales import Scales
from var_jax.config.strict import require
from var_jax.errors import UserError, did_you_mean

AUGMENTATIONS = ("color", "translation", "cutout")  # `ops.diffaugment` has a function for each


def policy_names(policy: str, key: str = "adversarial.diffaugment") -> list[str]:
    """Returns the augmentations of a policy, which is the value of a config's `key`.

    Raises:
      UserError: one is not known.
    """
    names = [name for name in policy.replace(" ", "").split(",") if name]
    for name in names:
        if name not in AUGMENTATIONS:
            raise UserError(f"{key} names {name!r}{did_you_mean(name, AUGMENTATIONS)}")
    return names


@dataclasses.dataclass(frozen=True)
class AdversarialConfig:
    """Settings of the discriminator and of the adversarial term of the tokenizer's loss.

    Its weights and times are vaex's by default; `recipes.imagenet_tokenizer` has the rest of vaex's
    recipe.

    Attributes:
      weight: weight of the generator's loss; 0 for no discriminator.
      adaptive: whether the weight is multiplied by |grad of pixel and perceptual terms| / |grad of
        the generator's loss| at the decoder's last kernel.
      adaptive_lowest: smallest value of that factor.
      adaptive_highest: largest value of that factor.
      start: when adversarial training begins; from 1 on a number of steps, below it a share of the
        run's.
      warmup: how long the weight then grows linearly; from 1 on a number of steps, below it a share
        of the run's.
      discriminator: "patch" (PatchGAN on pixels) or "features" (heads on a frozen network's
        features).
      channels: width of the discriminator.
      layers: strided convolutions of "patch".
      kernel: taps of the heads' convolutions in "features".
      feature_network: "efficientnet" (stages of EfficientNet-Lite0) or "dino" (tokens of DINO's
        ViT).
      feature_size: height and width in pixels at which the network sees images; 0 for those that
        they have.
      feature_crops: share of images that are brought to `feature_size` by a random crop where they
        are larger; the others are resized to it.
      feature_readout: "patch", or "patch_and_class" for patch tokens to which the class token is
        added; of no effect with "efficientnet", which has none.
      feature_weights: file of its weights; "" takes EfficientNet-Lite0's from the package that the
        extra [perceptual] brings, and if that is not installed, the run leaves the adversarial
        terms out with a warning.
      diffaugment: augmentations of the images that the discriminator sees, in this order: "color",
        "translation" and "cutout", or some of them, joined by commas.
      diffaugment_probability: probability that an image is augmented; otherwise it is left as it
        is.
      cutout: share of a side that "cutout" takes.
      blur_fade: time in which the blur of the discriminator's images vanishes after adversarial
        training begins (`ops.diffaugment.fading_blur`); from 1 on a number of steps, below it a
        share of the run's, 0 for no blur.
      hinge: whether the discriminator's loss is the "mean" of its two hinges or their "sum".
      bcr: weight of balanced consistency regularization (`ops.gan_losses.consistency`), 0 for none;
        it costs the discriminator a second pass.
      bcr_diffaugment: augmentations of that pass, as `diffaugment`; every image goes through them.
      bcr_cutout: share of a side that "cutout" takes in that pass.
      lecam: weight of LeCam regularization; 0 for none.
      lecam_decay: decay of LeCam's averages of logits.
      r1: weight of the gradient penalty at real images; 0 for none.
      r1_every: steps between two of these penalties; each counts that many times.
    """

    weight: float = 0.0
    adaptive: bool = True
    adaptive_lowest: float = 0.015
    adaptive_highest: float = 1e4
    start: float = 0.2
    warmup: float = 0.02
    discriminator: Literal["patch", "features"] = "patch"
    channels: int = 64
    layers: int = 3
    kernel: int = 9
    feature_network: Literal["efficientnet", "dino"] = "efficientnet"
    feature_weights: str = ""
    feature_size: int = 0
    feature_crops: float = 0.0
    feature_readout: Literal["patch", "patch_and_class"] = "patch"
    diffaugment: str = "color,translation,cutout"
    diffaugment_probability: float = 1.0
    cutout: float = 0.5
    blur_fade: float = 0.0
    hinge: Literal["mean", "sum"] = "mean"
    bcr: float = 0.0
    bcr_diffaugment: str = "color,translation,cutout"
    bcr_cutout: float = 0.2
    lecam: float = 0.0
    lecam_decay: float = 0.999
    r1: float = 0.0
    r1_every: int = 16

    def __post_init__(self):
        for name in (
            "weight",
            "start",
            "warmup",
            "adaptive_lowest",
            "lecam",
            "r1",
            "feature_size",
            "blur_fade",
            "bcr",
        ):
            require(
                getattr(self, name) >= 0, f"adversarial.{name}", getattr(self, name), "0 or more"
            )
        require(
            self.adaptive_highest >= self.adaptive_lowest,
            "adversarial.adaptive_highest",
            self.adaptive_highest,
            f"at least adaptive_lowest {self.adaptive_lowest}",
        )
        for name in ("channels", "layers", "kernel", "r1_every"):
            require(
                getattr(self, name) >= 1, f"adversarial.{name}", getattr(self, name), "at least 1"
            )
        require(self.channels % 8 == 0, "adversarial.channels", self.channels, "a multiple of 8")
        require(
            0 <= self.diffaugment_probability <= 1,
            "adversarial.diffaugment_probability",
            self.diffaugment_probability,
            "from 0 to 1",
        )
        require(
            0 <= self.lecam_decay < 1,
            "adversarial.lecam_decay",
            self.lecam_decay,
            "from 0 to below 1",
        )
        for name in ("cutout", "bcr_cutout", "feature_crops"):
            require(
                0 <= getattr(self, name) <= 1,
                f"adversarial.{name}",
                getattr(self, name),
                "from 0 to 1",
            )
        for name in ("diffaugment", "bcr_diffaugment"):
            policy_names(getattr(self, name), f"adversarial.{name}")


@dataclasses.dataclass(frozen=True)
class CodebookConfig:
    """Settings that keep the codes of the codebook in use.

    Attributes:
      init: how codes start: "normal" (of deviation `tokenizer.init_codes`), "uniform" (from
        -`tokenizer.init_codes` to it), or from the encoder's vectors of the first training images:
        "sampled" ones, their "kmeans" centers, or one of them for all codes, "equal", to study
        recovery.
      weight_decay: whether the optimizer's weight decay acts on the codes.
      revive_threshold: codes whose running share of uses, mean over scales, falls below this times
        an equal share are moved onto vectors of the batch, most often of the scales that few codes
        serve (`ops.codebook_revival.revive`); 0 for never.
      revive_decay: decay of the running shares.
      entropy: weight of the entropy penalty; 0 for none.
      entropy_temperature: temperature of the soft choice whose entropy is penalized.
      collapse_share: share of the codes that a scale's tokens could use, min(V, tokens); an
        evaluation warns of a scale that uses fewer.
    """

    init: Literal["normal", "uniform", "sampled", "kmeans", "equal"] = "normal"
    weight_decay: bool = True
    revive_threshold: float = 0.0
    revive_decay: float = 0.99
    entropy: float = 0.0
    entropy_temperature: float = 1.0
    collapse_share: float = 0.02

    @property
    def revives(self) -> bool:
        """Whether dead codes are replaced by vectors of the batch."""
        return self.revive_threshold > 0

    def __post_init__(self):
        for name in ("revive_threshold", "entropy"):
            require(getattr(self, name) >= 0, f"codebook.{name}", getattr(self, name), "0 or more")
        require(
            0 <= self.revive_decay < 1,
            "codebook.revive_decay",
            self.revive_decay,
            "from 0 to below 1",
        )
        require(
            self.entropy_temperature > 0,
            "codebook.entropy_temperature",
            self.entropy_temperature,
            "positive",
        )
        require(
            0 <= self.collapse_share <= 1,
            "codebook.collapse_share",
            self.collapse_share,
            "from 0 to 1",
        )


@dataclasses.dataclass(frozen=True)
class ProgressiveConfig:
    """Smaller images for the first part of a run; the parameters are the same.

    Attributes:
      scales: token-map sizes in that part, such as "1,2,3,4"; images are averaged down to their
        size. "" for none.
      until: when the full size begins: from 1 on a number of steps, below it a share of the run's.
    """

    scales: str = ""
    until: float = 0.5

    def __post_init__(self):
        require(self.until >= 0, "progressive.until", self.until, "0 or more")

    def check(self, tokenizer: TokenizerConfig):
        """Raises UserError if the smaller scales do not fit a tokenizer."""
        if not self.scales:
            return
        small = Scales.parse(self.scales, "progressive.scales")
        require(
            len(small) <= len(tokenizer.scales),
            "progressive.scales",
            self.scales,
            f"no more scales than tokenizer.scales, {len(tokenizer.scales)}",
        )
        fits = all(
            side <= largest
            for side, largest in zip(small.finest, tokenizer.scales.finest, strict=True)
        )
        require(
            fits,
            "progressive.scales",
            self.scales,
            f"no larger than tokenizer.scales {tokenizer.scales}",
        )
        require(
            tokenizer.phi > 0 or len(small) == len(tokenizer.scales),
            "progressive.scales",
            self.scales,
            f"of {len(tokenizer.scales)} scales, because tokenizer.phi 0 has one convolution each",
        )
        most = tokenizer.quantizer_dropout_from
        require(
            not tokenizer.quantizer_dropout or most < len(small),
            "progressive.scales",
            self.scales,
            f"of more than {most} scales, because quantizer dropout leaves the first {most} alone",
        )
