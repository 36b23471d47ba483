"""Fashion-MNIST (60,000 grey 28x28 images of ten kinds of clothes), padded to 32x32, on two CPU
cores.

  bash launch/quickstart.sh configs/fashion_mnist.py runs/fashion_mnist

or a stage at a time:

  var-jax train --config configs/fashion_mnist.py:tokenizer --workdir runs/fashion/tokenizer
  var-jax train --config configs/fashion_mnist.py:d3 --config.tokenizer_dir=runs/fashion/tokenizer \\
      --workdir runs/fashion/d3

A larger tokenizer (1,024 codes, 155 tokens) has the terms of the full recipe added one after the
other, in runs of equal length:

  var-jax train --config configs/fashion_mnist.py:tokenizer1024_full --workdir runs/fashion/full

| argument | losses |
|---|---|
| tokenizer1024_l2 | L1, L2 and VQ |
| tokenizer1024_perceptual | and the distance of EfficientNet-Lite0's features (extra [perceptual]) |
| tokenizer1024_adversarial | and a discriminator of the same network's features |
| tokenizer1024_full | and codes that start at features, dead codes revived, an entropy term |

The idx files come from Debian's `apt-get install dataset-fashion-mnist`, or lie in
`--config.data.source_dir`.
"""

from var_jax.config import recipes

TERMS = ("l2", "perceptual", "adversarial", "full")  # each with those before it


def get_config(arg: str = "d3"):
    config = recipes.small_grey_config()
    config.ema = 0.995
    config.eval_every = 500
    config.eval_images = 2000
    config.data.name = "fashion_mnist_idx"
    config.data.resize = "pad"

    config.tokenizer.scales = "1,2,3,4,6,8"
    config.tokenizer.channels = 32
    config.tokenizer.multipliers = (1, 2, 2)
    config.tokenizer.vocab_size = 512

    if arg == "tokenizer":
        recipes.small_tokenizer(config)
        config.steps = 600
        return config
    if arg in (rows := [f"tokenizer1024_{term}" for term in TERMS]):
        return tokenizer1024(config, rows.index(arg))

    recipes.small_transformer(config, recipes.depth_of(arg))
    config.steps = 1500
    config.optimizer.base_lr = 6e-3
    config.optimizer.warmup_steps = 100
    return config


def tokenizer1024(config, terms: int):
    """The larger tokenizer with this many terms of `TERMS` beyond the first."""
    config.tokenizer.scales = "1,2,3,4,5,6,8"
    config.tokenizer.channels = (
        16  # half of the other one's: twice as fast, for more than twice the steps
    )
    config.tokenizer.multipliers = (1, 2, 4)
    config.tokenizer.vocab_size = 1024
    recipes.small_tokenizer(config)
    config.batch_size, config.steps = 32, 1200
    config.optimizer.base_lr = 8e-3
    for add in (recipes.small_perceptual, recipes.small_adversarial, recipes.small_health)[:terms]:
        add(config)
    return config
