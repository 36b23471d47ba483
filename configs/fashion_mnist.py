"""Fashion-MNIST (60,000 grey 28x28 images of ten kinds of clothes), padded to 32x32, on two CPU cores.

  bash launch/quickstart.sh configs/fashion_mnist.py runs/fashion_mnist

or a stage at a time:

  var-jax train --config configs/fashion_mnist.py:tokenizer --workdir runs/fashion/tokenizer
  var-jax train --config configs/fashion_mnist.py:d3 --config.tokenizer_dir=runs/fashion/tokenizer \\
      --workdir runs/fashion/d3

The idx files come from Debian's `apt-get install dataset-fashion-mnist`, or lie in `--config.data.source_dir`.
"""

from var_jax.train.config import default_config
from var_jax.train.recipes import depth_of


def get_config(arg: str = "d3"):
    config = default_config()
    config.batch_size = 64
    config.ema = 0.995
    config.eval_every = 500
    config.eval_images = 2000
    config.data.name = "fashion_mnist_idx"
    config.data.resize = "pad"

    config.tokenizer.scales = "1,2,3,4,6,8"
    config.tokenizer.in_channels = 1
    config.tokenizer.channels = 32
    config.tokenizer.norm_groups = 8
    config.tokenizer.multipliers = (1, 2, 2)
    config.tokenizer.blocks = 1
    config.tokenizer.attention = False
    config.tokenizer.mid_attention = False
    config.tokenizer.z_channels = 16
    config.tokenizer.vocab_size = 512

    if arg == "tokenizer":
        config.stage = "tokenizer"
        config.steps = 600
        config.optimizer.base_lr = 4e-3
        config.optimizer.schedule = "cosine"
        config.optimizer.warmup_steps = 20
        config.optimizer.b2 = 0.99
        return config

    config.stage = "transformer"
    config.steps = 1500
    config.transformer.depth = depth_of(arg)
    config.transformer.num_classes = 10
    config.transformer.drop_path = 0.0
    config.transformer.init_adaln_gamma = 0.5
    config.optimizer.base_lr = 6e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 100
    return config
