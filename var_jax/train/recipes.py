"""Training recipes that several configs share, applied to a ConfigDict.

Those on ImageNet are the published ones (VAR, appendix; the released code), those on small grey images are ours.
"""

from typing import NamedTuple

from ml_collections import config_dict

from var_jax.errors import UserError
from var_jax.train.config import default_config

IMAGENET_IMAGES = 1_281_167


class Recipe(NamedTuple):
    """Attributes: images a step, passes over ImageNet, learning rate at batch 256, the factor on AdaLN's gamma rows
    at initialisation ("alng"), last learning rate over the peak, last weight decay."""

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
    """The closest published recipe (vaex) without its perceptual and adversarial terms."""
    config.stage = "tokenizer"
    set_epochs(config, 768, 250)
    config.ema = 0.9999
    config.optimizer.base_lr = 1e-4  # 3e-4 at batch 768
    config.optimizer.schedule = "cosine"
    config.optimizer.final_lr_ratio = 0.3
    config.optimizer.b1, config.optimizer.b2 = 0.5, 0.9
    config.optimizer.weight_decay = config.optimizer.final_weight_decay = 0.005
    config.optimizer.clip = 10.0
    config.optimizer.warmup_steps = config.steps // 100


def small_grey_config() -> config_dict.ConfigDict:
    """The defaults for small grey images, with a tokenizer that two CPU cores train in minutes."""
    config = default_config()
    config.batch_size = 64
    config.tokenizer.in_channels = 1
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
