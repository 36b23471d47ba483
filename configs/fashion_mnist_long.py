r"""Fashion-MNIST again, with a longer run of each stage: the models that better samples start from.

The tokenizer has all losses of fashion_mnist.py's `tokenizer1024_full` and more than three times
its steps; the transformer is wider and deeper. Both stages, with samples and a report (the
tokenizer needs `pip install 'var_jax[perceptual]'`):

  var-jax quickstart --config configs/fashion_mnist_long.py --workdir runs/fashion_long

or one stage at a time:

  var-jax train --config configs/fashion_mnist_long.py:tokenizer --workdir runs/long/tokenizer
  var-jax tokenize --config configs/fashion_mnist_long.py --model runs/long/tokenizer \
      --out runs/long/tokens
  var-jax train --config configs/fashion_mnist_long.py:d4 \
      --config.tokenizer_dir=runs/long/tokenizer --config.data.tokens_dir=runs/long/tokens \
      --workdir runs/long/d4

Measured on one core (AMD EPYC, float32) that other programs shared, with the commands of
docs/results/better_samples.md; distances are of EfficientNet-Lite0's features:

  cost      tokenizer 42 minutes, d4 69
  expected  tokenizer: PSNR 27.32 dB and Fréchet distance 55 on the 10,000 test images; d4: held-out
            loss 3.72; 10,000 samples with cfg 1: Fréchet distance 218, 92.4 % as labeled
"""

from ml_collections import config_dict

from var_jax.config import recipes
from var_jax.config.train import default_config


def get_config(arg: str = "d4") -> config_dict.ConfigDict:
    """Returns the tokenizer's run ("tokenizer") or a transformer's ("d4")."""
    config = default_config()

    # Data
    config.data.name = "fashion_mnist_idx"
    config.data.resize = "pad"  # 28 to 32 pixels, each as it is

    # Model: the tokenizer, which a transformer then takes from `tokenizer_dir`
    config.tokenizer.scales = "1,2,3,4,5,6,8"  # 155 tokens
    config.tokenizer.channels = 16
    config.tokenizer.multipliers = (1, 2, 4)  # 32 pixels to 8 tokens per side
    config.tokenizer.blocks = 1
    config.tokenizer.attention = False  # convolutions already see all of an image this small
    config.tokenizer.mid_attention = False
    config.tokenizer.norm_groups = 8
    config.tokenizer.z_channels = 16
    config.tokenizer.vocab_size = 1024

    if arg == "tokenizer":
        _train_tokenizer(config)
    else:
        _train_transformer(config, recipes.depth_of(arg))
    return config


def _train_tokenizer(config: config_dict.ConfigDict):
    config.stage = "tokenizer"

    # Losses
    config.loss.l1 = 0.2
    config.loss.l2 = 1.0
    config.loss.vq = 1.0
    config.loss.perceptual = 0.2  # on EfficientNet-Lite0; pixel terms shrink more in a long run
    config.adversarial.weight = 0.2
    config.adversarial.discriminator = "features"  # one of pixels learns too little
    config.adversarial.diffaugment = "translation,cutout"
    config.adversarial.lecam = 0.01  # so few steps overfit a discriminator soon
    config.adversarial.lecam_decay = 0.99
    config.adversarial.start = 0.3  # share of the run before the discriminator's first step
    config.adversarial.warmup = 0.1  # share in which the adversarial weight then grows

    # Codebook
    config.codebook.init = "sampled"  # codes start at vectors of the encoder
    config.codebook.revive_threshold = 0.2
    config.codebook.revive_decay = 0.97  # an unused code moves after 53 steps: 0.97**53 = 0.2
    config.codebook.entropy = 0.003
    config.codebook.entropy_temperature = 0.05  # squared distances of features are small

    # Optimizer
    config.optimizer.base_lr = 8e-3  # 1e-3 at batch 32
    config.optimizer.b2 = 0.99
    config.optimizer.weight_decay = 0.05
    config.optimizer.clip = 2.0
    config.discriminator_optimizer.base_lr = 1.6e-2  # spectrally normalized heads take 2e-3
    config.discriminator_optimizer.b1 = 0.5
    config.discriminator_optimizer.b2 = 0.99

    # Schedule
    config.batch_size = 32
    config.steps = 4000  # 2.1 epochs
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 40
    config.ema = 0.998

    # Evaluation
    config.eval_every = 2000
    config.checkpoint_every = 400
    config.eval_images = 2000


def _train_transformer(config: config_dict.ConfigDict, depth: int):
    config.stage = "transformer"

    # Model: width 64 * depth, one head per 64 channels
    config.transformer.depth = depth
    config.transformer.drop_path = 0.0  # so few blocks need no regularization by their absence
    config.transformer.class_dropout = 0.1  # trains the "no class" label that guidance needs
    config.transformer.init_adaln_gamma = 0.5  # the published 1e-3 is for long runs of deep models

    # Optimizer
    config.optimizer.base_lr = 1e-2  # 1.25e-3 at batch 32
    config.optimizer.b2 = 0.95
    config.optimizer.weight_decay = 0.05
    config.optimizer.clip = 2.0

    # Schedule
    config.batch_size = 32
    config.steps = 2400  # 1.3 epochs
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 120
    config.ema = 0.998

    # Evaluation
    config.eval_every = 800
    config.checkpoint_every = 200
    config.eval_images = 2000
    config.sample_classes = 10  # columns of the sample grid
