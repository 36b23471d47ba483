"""Handwritten digits (scikit-learn's 1,797, 8x8) at 32x32: the quickstart, minutes on two CPU cores.

  var-jax train --config configs/digits.py:tokenizer --workdir runs/digits/tokenizer
  var-jax train --config configs/digits.py:d2 --config.tokenizer_dir=runs/digits/tokenizer --workdir runs/digits/d2

or both with samples and a report: bash launch/quickstart.sh
"""

from var_jax.train.config import default_config
from var_jax.train.recipes import depth_of


def get_config(arg: str = "d2"):
    config = default_config()
    config.batch_size = 64
    config.ema = 0.99
    config.data.name = "digits"
    config.data.resize = "whole"

    config.tokenizer.scales = "1,2,4,8"
    config.tokenizer.in_channels = 1
    config.tokenizer.channels = 16
    config.tokenizer.norm_groups = 8
    config.tokenizer.multipliers = (1, 2, 4)
    config.tokenizer.blocks = 1
    config.tokenizer.attention = False
    config.tokenizer.mid_attention = False
    config.tokenizer.z_channels = 16
    config.tokenizer.vocab_size = 128

    if arg == "tokenizer":
        config.stage = "tokenizer"
        config.steps = 170
        config.optimizer.base_lr = 4e-3
        config.optimizer.schedule = "cosine"
        config.optimizer.warmup_steps = 20
        config.optimizer.b2 = 0.99
        return config

    config.stage = "transformer"
    config.steps = 2400
    config.batch_size = 32
    config.eval_every = config.checkpoint_every = 1200
    config.transformer.depth = depth_of(arg)
    config.transformer.num_classes = 10
    config.transformer.drop_path = 0.0
    config.transformer.init_adaln_gamma = 0.5  # the published 1e-3 is for long runs of deep models
    config.optimizer.base_lr = 1.2e-2  # 1.5e-3 at batch 32
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 40
    return config
