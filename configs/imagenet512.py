r"""ImageNet at 512x512 pixels, the published recipe: VAR-d36 with one AdaLN shared by all blocks.

`--config.data.data_dir` is where TFDS prepared imagenet2012.

  var-jax train --config configs/imagenet512.py:d36 --config.tokenizer_dir=models/vae512 \
      --workdir gs://BUCKET/d36

The published tokenizer has the weights of the 256 px one: `var-jax convert` makes models/vae512 of
them with `--scales 1,2,3,4,6,9,13,18,24,32`. No run of this config is on record.

  cost      13,231 to 13,747 chip-hours of TPU v5p: the lower bound that `var-jax aot` computes from
            the step compiled for 128 chips, with communication hidden and half exposed
            (docs/results/aot/d36_v5p-4x4x8.json; docs/results/aot.md says how to read it)
  expected  FID-50k 2.63, inception score 303.2, as published by VAR's authors
"""

from ml_collections import config_dict

from var_jax.config import recipes
from var_jax.config.train import default_config

IMAGES = 1_281_167  # of ImageNet's training split


def get_config(arg: str = "d36") -> config_dict.ConfigDict:
    """Returns the run of a transformer by its depth ("d36") or the tokenizer's ("tokenizer")."""
    config = default_config()

    # Data
    config.data.name = "imagenet2012"
    config.data.eval_split = "validation"
    config.data.resize = "crop"  # short side to 1.125 times the size, then a random crop
    config.data.workers = 16  # JPEGs of this size take more than one process to decode

    # Model: the tokenizer, which a transformer then takes from `tokenizer_dir`
    config.tokenizer.scales = "1,2,3,4,6,9,13,18,24,32"  # 2,240 tokens
    config.tokenizer.in_channels = 3
    config.tokenizer.channels = 160
    config.tokenizer.multipliers = (1, 1, 2, 2, 4)  # 512 pixels to 32 tokens per side
    config.tokenizer.z_channels = 32
    config.tokenizer.vocab_size = 4096
    config.tokenizer.remat = "full"  # activations of 512x512 pixels are what memory goes to
    config.transformer.num_classes = 1000
    config.transformer.shared_adaln = arg != "tokenizer"  # a third of each block's parameters less

    if arg == "tokenizer":  # no published run: the recipe of configs/imagenet256.py:tokenizer
        recipes.imagenet_tokenizer(config)
    else:
        _train_transformer(config, recipes.depth_of(arg))

    # Evaluation, for runs of days
    config.log_every = 50
    config.eval_every = 5000
    config.checkpoint_every = 1000
    return config


def _train_transformer(config: config_dict.ConfigDict, depth: int):
    config.stage = "transformer"

    # Model: width 64 * depth, one head per 64 channels
    config.transformer.depth = depth
    config.transformer.drop_path = -1.0  # 0.1 * depth / 24 in the last block, 0 in the first
    config.transformer.class_dropout = 0.1  # trains the "no class" label that guidance needs
    config.transformer.init_adaln_gamma = 5e-6  # so deep a model starts nearer to the identity
    config.transformer.dtype = "bfloat16"  # parameters stay float32
    config.transformer.remat = "full"

    # Optimizer
    config.optimizer.base_lr = 8e-5  # at batch 256
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.95
    config.optimizer.weight_decay = 0.05
    config.optimizer.final_weight_decay = 0.08
    config.optimizer.clip = 2.0

    # Schedule
    config.batch_size = 768
    config.steps = 350 * IMAGES // 768
    config.optimizer.schedule = "lin0"  # constant for 5 % of the run, then linear
    config.optimizer.warmup_steps = config.steps // 50
    config.optimizer.warmup_from = 0.005
    config.optimizer.final_lr_ratio = 0.01

    if depth != 36:  # no published run: the recipe of that depth at 256x256 pixels
        recipes.imagenet_transformer(config, depth)
