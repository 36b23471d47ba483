"""Handwritten digits (scikit-learn's 1,797, 8x8) at 32x32: the quickstart, minutes on two CPU
cores.

  var-jax train --config configs/digits.py:tokenizer --workdir runs/digits/tokenizer
  var-jax train --config configs/digits.py:d2 --config.tokenizer_dir=runs/digits/tokenizer --workdir runs/digits/d2

or both with samples and a report: bash launch/quickstart.sh
"""

from var_jax.config import recipes


def get_config(arg: str = "d2"):
    config = recipes.small_grey_config()
    config.ema = 0.99
    config.data.name = "digits"
    config.data.resize = "whole"

    config.tokenizer.scales = "1,2,4,8"
    config.tokenizer.channels = 16
    config.tokenizer.multipliers = (1, 2, 4)
    config.tokenizer.vocab_size = 128

    if arg == "tokenizer":
        recipes.small_tokenizer(config)
        config.steps = 170
        return config

    recipes.small_transformer(config, recipes.depth_of(arg))
    config.steps = 2400
    config.batch_size = 32
    config.eval_every = config.checkpoint_every = 1200
    config.optimizer.base_lr = 1.2e-2  # 1.5e-3 at batch 32
    config.optimizer.warmup_steps = 40
    return config
