"""Training recipes that several configs share, applied to a ConfigDict.

Those on ImageNet are the published ones (VAR, appendix; the released code), those on small grey
images are ours.
"""

from typing import NamedTuple

from ml_collections import config_dict

from var_jax.config.train import default_config
from var_jax.errors import UserError

IMAGENET_IMAGES = 1_281_167


class Recipe(NamedTuple):
    """Attributes: images a step, passes over ImageNet, learning rate at batch 256, the factor on
    AdaLN's gamma rows at initialisation ("alng"), last learning rate over the peak, last weight
    decay."""

    batch_size: int
    epochs: int
    base_lr: float
    init_adaln_gamma: float
    final_lr_ratio: float
    final_weight_decay: float


BY_DEPTH = {
    16: Recipe(768, 200, 1e-4, 1e-3, 0.1, 0.05),
    20: Recipe(768, 250, 1e-4, 1e-3, 0.1, 0.05),
    24: Recipe(768, 350, 8e-5, 1e-4, 0.01, 0.05),
    30: Recipe(1024, 350, 8e-5, 1e-5, 0.01, 0.08),
    36: Recipe(768, 350, 8e-5, 5e-6, 0.01, 0.08),
}


def depth_of(arg: str) -> int:
    """The depth in a config's argument, "d16" or "16".

    Raises:
      UserError: it is no depth.
    """
    digits = arg.removeprefix("d")
    if not digits.isdigit() or int(digits) < 1:
        raise UserError(f"config argument {arg!r} is neither 'tokenizer' nor a depth such as d16")
    return int(digits)


def imagenet_config() -> config_dict.ConfigDict:
    """The defaults with ImageNet as the data, and intervals for runs of days."""
    config = default_config()
    config.data.name = "imagenet2012"
    config.data.eval_split = "validation"
    config.data.workers = 16
    config.tokenizer.in_channels = 3
    config.transformer.num_classes = 1000
    config.tokenizer.remat = "full"
    config.log_every, config.eval_every, config.checkpoint_every = 50, 5000, 1000
    return config


def imagenet_transformer(config: config_dict.ConfigDict, depth: int):
    """The recipe of the deepest published model that is not deeper, or of the shallowest."""
    recipe = BY_DEPTH[max((d for d in BY_DEPTH if d <= depth), default=min(BY_DEPTH))]
    config.stage = "transformer"
    set_epochs(config, recipe.batch_size, recipe.epochs)
    config.transformer.depth = depth
    config.transformer.init_adaln_gamma = recipe.init_adaln_gamma
    config.transformer.remat = "full"
    config.transformer.dtype = "bfloat16"
    config.optimizer.base_lr = recipe.base_lr
    config.optimizer.warmup_steps = config.steps // 50
    config.optimizer.final_lr_ratio = recipe.final_lr_ratio
    config.optimizer.final_weight_decay = recipe.final_weight_decay


def imagenet_tokenizer(config: config_dict.ConfigDict):
    """The closest published recipe (vaex): L1 0.2, L2 1, LPIPS 1, VQ 1, and from a fifth of the run
    on an adversarial term of 0.4 with the adaptive weight, against five heads on frozen DINO
    features.

    `configs/imagenet256.py` tells where it departs. LPIPS and DINO are files that the config must
    name (`loss.perceptual_weights`, `loss.perceptual_heads`, `adversarial.feature_weights`);
    "efficientnet" in place of either needs none.
    """
    config.stage = "tokenizer"
    set_epochs(config, 768, 250)
    config.tokenizer.dtype = (
        "bfloat16"  # of activations; what a v5e chip's memory needs at three images a chip
    )
    config.tokenizer.dropout = 0.05
    config.tokenizer.init_gain = 0.5
    config.tokenizer.init_codes = 0.0049  # 1 / (36 sqrt(z_channels))
    config.codebook.init = "uniform"
    config.codebook.weight_decay = False
    config.ema, config.ema_warmup = 0.9999, 2
    for optimizer in (config.optimizer, config.discriminator_optimizer):
        optimizer.base_lr = 1e-4  # 3e-4 at batch 768
        optimizer.schedule = "cosine"
        optimizer.final_lr_ratio = 0.3
        optimizer.b1, optimizer.b2 = 0.5, 0.9
        optimizer.weight_decay = optimizer.final_weight_decay = 0.005
        optimizer.clip = 10.0
    config.optimizer.warmup_steps = config.steps // 100
    config.discriminator_optimizer.warmup_steps = (
        config.steps // 50
    )  # while its weight in the tokenizer's loss grows
    config.discriminator_optimizer.weight_decay = (
        config.discriminator_optimizer.final_weight_decay
    ) = 0.0005
    config.loss.perceptual = 1.0
    config.loss.perceptual_network = "lpips"
    config.adversarial.weight = 0.4
    config.adversarial.discriminator = "features"
    config.adversarial.feature_network = "dino"
    config.adversarial.feature_size, config.adversarial.feature_crops = 224, 0.5
    config.adversarial.feature_readout = "patch_and_class"
    config.adversarial.channels = 384
    config.adversarial.hinge = "sum"
    config.adversarial.diffaugment = config.adversarial.bcr_diffaugment = "translation,color,cutout"
    config.adversarial.cutout = config.adversarial.bcr_cutout = 0.2
    config.adversarial.blur_fade = 0.04
    config.adversarial.bcr = 4.0


def small_grey_config() -> config_dict.ConfigDict:
    """The defaults with a tokenizer of small images that two CPU cores train in minutes; the data
    tell the channels."""
    config = default_config()
    config.batch_size = 64
    config.tokenizer.norm_groups = 8
    config.tokenizer.blocks = 1
    config.tokenizer.attention = False
    config.tokenizer.mid_attention = False
    config.tokenizer.z_channels = 16
    return config


def small_tokenizer(config: config_dict.ConfigDict):
    """The first stage of runs of minutes: a high rate (1e-3 at batch 64) and a short warm-up."""
    config.stage = "tokenizer"
    config.optimizer.base_lr = 4e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 20
    config.optimizer.b2 = 0.99


def small_perceptual(config: config_dict.ConfigDict):
    """A perceptual term on EfficientNet-Lite0, for runs of minutes; about as large as the pixel
    terms."""
    config.loss.perceptual = 0.1


def small_adversarial(config: config_dict.ConfigDict):
    """Heads on EfficientNet-Lite0's features for runs of minutes: a discriminator of pixels learns
    too little in them. Spectrally normalised heads take a high rate (2e-3 at batch 32); LeCam
    because so few steps on so little augmented data overfit a discriminator soon."""
    config.adversarial.weight = 0.2
    config.adversarial.start, config.adversarial.warmup = 0.3, 0.1
    config.adversarial.discriminator = "features"
    config.adversarial.diffaugment = "translation,cutout"
    config.adversarial.lecam, config.adversarial.lecam_decay = 0.01, 0.99
    config.discriminator_optimizer.base_lr = 1.6e-2
    config.discriminator_optimizer.b1, config.discriminator_optimizer.b2 = 0.5, 0.99


def small_health(config: config_dict.ConfigDict):
    """Codes that start at the encoder's features, come back after 53 steps (log 0.2 / log 0.97)
    without use where most are wanted, and are spread over what each scale searches."""
    config.codebook.init = "sampled"
    config.codebook.revive_threshold = 0.2
    config.codebook.revive_decay = 0.97
    config.codebook.entropy, config.codebook.entropy_temperature = 0.003, 0.05  # features are small


def small_transformer(config: config_dict.ConfigDict, depth: int):
    """The second stage of runs of minutes, which leaves the rate and the warm-up to the config."""
    config.stage = "transformer"
    config.transformer.depth = depth
    config.transformer.drop_path = 0.0
    config.transformer.init_adaln_gamma = 0.5  # the published 1e-3 is for long runs of deep models
    config.optimizer.schedule = "cosine"


def set_epochs(config: config_dict.ConfigDict, batch_size: int, epochs: int):
    config.batch_size = batch_size
    config.steps = epochs * IMAGENET_IMAGES // batch_size
