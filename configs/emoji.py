"""64x64 colour images of a folder, on a CPU: emoji of two packages, which launch/emoji.py fetches.

  python launch/emoji.py photos/emoji
  var-jax train --config configs/emoji.py:tokenizer --config.data.source_dir=photos/emoji --workdir runs/emoji/tokenizer
  var-jax train --config configs/emoji.py:d4 --config.data.source_dir=photos/emoji \\
      --config.tokenizer_dir=runs/emoji/tokenizer --workdir runs/emoji/d4

The tokenizer has the full recipe: perceptual (extra [perceptual]) and adversarial terms and a
codebook kept in use.
"""

from var_jax.config import recipes


def get_config(arg: str = "d4"):
    config = recipes.small_grey_config()
    config.ema = 0.995
    config.batch_size = 32
    config.eval_every = config.checkpoint_every = 300
    config.sample_classes = 8
    config.data.name = "image_folder"
    config.data.source_dir = "photos/emoji"
    config.data.resize = "whole"

    config.tokenizer.scales = "1,2,3,4,5,6,8"
    config.tokenizer.channels = 16
    config.tokenizer.multipliers = (1, 2, 2, 4)
    config.tokenizer.vocab_size = 1024

    if arg == "tokenizer":
        recipes.small_tokenizer(config)
        recipes.small_perceptual(config)
        recipes.small_adversarial(config)
        recipes.small_health(config)
        config.optimizer.base_lr = 8e-3
        config.steps = 600
        return config

    recipes.small_transformer(config, recipes.depth_of(arg))
    config.steps = 3000
    config.optimizer.base_lr = 6e-3
    config.optimizer.warmup_steps = 100
    return config
