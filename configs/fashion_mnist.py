"""Fashion-MNIST (60,000 grey 28x28 images of ten kinds of clothes), padded to 32x32, on two CPU cores.

  bash launch/quickstart.sh configs/fashion_mnist.py runs/fashion_mnist

or a stage at a time:

  var-jax train --config configs/fashion_mnist.py:tokenizer --workdir runs/fashion/tokenizer
  var-jax train --config configs/fashion_mnist.py:d3 --config.tokenizer_dir=runs/fashion/tokenizer \\
      --workdir runs/fashion/d3

The idx files come from Debian's `apt-get install dataset-fashion-mnist`, or lie in `--config.data.source_dir`.
"""

from var_jax.train import recipes


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

    recipes.small_transformer(config, recipes.depth_of(arg))
    config.steps = 1500
    config.transformer.num_classes = 10
    config.optimizer.base_lr = 6e-3
    config.optimizer.warmup_steps = 100
    return config
