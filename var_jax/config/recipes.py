"""Training recipes that several configs and scripts share, applied to a ConfigDict.

Config files write their own recipes out, so that each can be read and copied on its own; a test
holds them equal to the functions here, which serve scripts. The recipes on ImageNet are published
ones (VAR, appendix and released code; for the tokenizer vaex), those of small images are this
project's.
"""

from typing import NamedTuple

from ml_collections import config_dict

from var_jax.config.train import default_config
from var_jax.errors import UserError

IMAGENET_IMAGES = 1_281_167


class Recipe(NamedTuple):
    """The values of a published transformer recipe that depend on the depth.

    Attributes:
      batch_size: images per step.
      epochs: passes over ImageNet.
      base_lr: learning rate at batch 256.
      init_adaln_gamma: factor on the initial weights of AdaLN's gamma rows (the published "alng").
      final_lr_ratio: last learning rate over the peak.
      final_weight_decay: weight decay at the end of the run.
    """

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
    """Returns the depth that a config's argument gives, such as "d16" or "16".

    Raises:
      UserError: the argument gives none.
    """
    digits = arg.removeprefix("d")
    if not digits.isdigit() or int(digits) < 1:
        raise UserError(f"config argument {arg!r} is neither 'tokenizer' nor a depth such as d16")
    return int(digits)


def set_epochs(config: config_dict.ConfigDict, batch_size: int, epochs: int):
    """Sets the batch size, and the steps that `epochs` passes over ImageNet take."""
    config.batch_size = batch_size
    config.steps = epochs * IMAGENET_IMAGES // batch_size


def imagenet_config() -> config_dict.ConfigDict:
    """Returns the defaults with ImageNet as the data, and intervals for runs of days."""
    config = default_config()
    config.data.name = "imagenet2012"
    config.data.eval_split = "validation"
    config.data.workers = 16
    config.tokenizer.in_channels = 3
    config.transformer.num_classes = 1000
    config.tokenizer.remat = "auto"
    config.log_every = 50
    config.eval_every = 5000
    config.checkpoint_every = 1000
    return config


def imagenet_transformer(config: config_dict.ConfigDict, depth: int):
    """Applies the published recipe of a transformer of this depth.

    A depth that was not published takes the recipe of the next shallower one that was, or of the
    shallowest.
    """
    recipe = BY_DEPTH[max((d for d in BY_DEPTH if d <= depth), default=min(BY_DEPTH))]
    config.stage = "transformer"
    set_epochs(config, recipe.batch_size, recipe.epochs)
    config.transformer.depth = depth
    config.transformer.init_adaln_gamma = recipe.init_adaln_gamma
    config.transformer.remat = "auto"
    config.mesh.policy = "auto"
    config.transformer.dtype = "bfloat16"
    config.optimizer.base_lr = recipe.base_lr
    config.optimizer.warmup_steps = config.steps // 50
    config.optimizer.final_lr_ratio = recipe.final_lr_ratio
    config.optimizer.final_weight_decay = recipe.final_weight_decay


def imagenet_tokenizer(config: config_dict.ConfigDict):
    """Applies the closest published recipe of a tokenizer, vaex's.

    The losses are L1 0.2, L2 1, LPIPS 1, VQ 1 and, from a fifth of the run on, an adversarial term
    of 0.4 with the adaptive weight, against five heads on frozen DINO features. LPIPS and DINO are
    files that the config must name (`loss.perceptual_weights`, `loss.perceptual_heads`,
    `adversarial.feature_weights`); "efficientnet" in place of either needs none.
    `configs/imagenet256.py` says why each value is what it is.
    """
    config.stage = "tokenizer"
    set_epochs(config, 768, 250)
    # Model
    config.tokenizer.dtype = "bfloat16"
    config.tokenizer.dropout = 0.05
    config.tokenizer.init_gain = 0.5
    config.tokenizer.init_codes = 0.0049
    config.codebook.init = "uniform"
    config.codebook.weight_decay = False
    # Losses
    config.loss.perceptual = 1.0
    config.loss.perceptual_network = "lpips"
    config.adversarial.weight = 0.4
    config.adversarial.discriminator = "features"
    config.adversarial.feature_network = "dino"
    config.adversarial.feature_size = 224
    config.adversarial.feature_crops = 0.5
    config.adversarial.feature_readout = "patch_and_class"
    config.adversarial.channels = 384
    config.adversarial.hinge = "sum"
    config.adversarial.diffaugment = "translation,color,cutout"
    config.adversarial.cutout = 0.2
    config.adversarial.blur_fade = 0.04
    config.adversarial.bcr = 4.0
    config.adversarial.bcr_diffaugment = "translation,color,cutout"
    config.adversarial.bcr_cutout = 0.2
    # Optimizers and schedule
    for optimizer in (config.optimizer, config.discriminator_optimizer):
        optimizer.base_lr = 1e-4
        optimizer.schedule = "cosine"
        optimizer.final_lr_ratio = 0.3
        optimizer.b1 = 0.5
        optimizer.b2 = 0.9
        optimizer.clip = 10.0
    config.optimizer.weight_decay = 0.005
    config.optimizer.final_weight_decay = 0.005
    config.optimizer.warmup_steps = config.steps // 100
    config.discriminator_optimizer.weight_decay = 0.0005
    config.discriminator_optimizer.final_weight_decay = 0.0005
    config.discriminator_optimizer.warmup_steps = config.steps // 50
    config.ema = 0.9999
    config.ema_warmup = 2


def small_gray_config() -> config_dict.ConfigDict:
    """Returns the defaults with a tokenizer of small images that two CPU cores train in minutes.

    The number of channels is left to the data, so that color images are as welcome as gray ones.
    """
    config = default_config()
    config.batch_size = 64
    config.tokenizer.norm_groups = 8
    config.tokenizer.blocks = 1
    config.tokenizer.attention = False
    config.tokenizer.mid_attention = False
    config.tokenizer.z_channels = 16
    return config


small_grey_config = small_gray_config  # the name that older scripts call


def small_tokenizer(config: config_dict.ConfigDict):
    """Applies the recipe of a tokenizer that trains in minutes: learning rate 1e-3 at batch 64."""
    config.stage = "tokenizer"
    config.optimizer.base_lr = 4e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 20
    config.optimizer.b2 = 0.99


def small_transformer(config: config_dict.ConfigDict, depth: int):
    """Applies the recipe of a transformer that trains in minutes, but for rate and warm-up."""
    config.stage = "transformer"
    config.transformer.depth = depth
    config.transformer.drop_path = 0.0
    config.transformer.init_adaln_gamma = 0.5  # the published 1e-3 is for long runs of deep models
    config.optimizer.schedule = "cosine"
