r"""Color images of a folder at 64x64 pixels, on a CPU: 7,572 emoji of Google's and Twitter's sets.

launch/emoji.py fetches them; any folder photos/CLASS/FILE serves in their place.

  python launch/emoji.py photos/emoji
  var-jax train --config configs/emoji.py:tokenizer --config.data.source_dir=photos/emoji \
      --workdir runs/emoji/tokenizer
  var-jax train --config configs/emoji.py:d4 --config.data.source_dir=photos/emoji \
      --config.tokenizer_dir=runs/emoji/tokenizer --workdir runs/emoji/d4

The tokenizer has every term: a perceptual distance and a discriminator, both on EfficientNet-Lite0
(`pip install 'var_jax[perceptual]'`), and a codebook that is kept in use.

  cost      measured, about 80 minutes on one core that other programs shared: tokenizer 36,
            transformer d4 42
  expected  tokenizer: PSNR 20.1 dB (95 % interval 19.9 to 20.3) on the 790 held-out images, all
            1,024 codes in use; measured by the `var-jax evaluate` of docs/results/tokenizer.md
            (docs/results/tokenizer/emoji.json)
            transformer: held-out loss 4.357. Samples are colored shapes; only flags can be
            recognized (docs/results/tokenizer.md)
"""

from ml_collections import config_dict

from var_jax.config import recipes
from var_jax.config.train import default_config


def get_config(arg: str = "d4") -> config_dict.ConfigDict:
    """Returns the tokenizer's run ("tokenizer") or that of a transformer by its depth ("d4")."""
    config = default_config()

    # Data
    config.data.name = "image_folder"
    config.data.source_dir = "photos/emoji"
    config.data.resize = "stretch"  # drawings fill their images: a crop would cut them

    # Model: the tokenizer, which a transformer then takes from `tokenizer_dir`
    config.tokenizer.scales = "1,2,3,4,5,6,8"  # 155 tokens
    config.tokenizer.channels = 16
    config.tokenizer.multipliers = (1, 2, 2, 4)  # 64 pixels to 8 tokens per side
    config.tokenizer.blocks = 1
    config.tokenizer.attention = False
    config.tokenizer.mid_attention = False
    config.tokenizer.norm_groups = 8  # must divide the 16 channels of the first level
    config.tokenizer.z_channels = 16
    config.tokenizer.vocab_size = 1024

    if arg == "tokenizer":
        _train_tokenizer(config)
    else:
        _train_transformer(config, recipes.depth_of(arg))
    return config


def _train_tokenizer(config: config_dict.ConfigDict):
    config.stage = "tokenizer"

    # Optimizer: losses
    config.loss.l1 = 0.2
    config.loss.l2 = 1.0
    config.loss.vq = 1.0
    config.loss.perceptual = 0.1  # about as large as the pixel terms
    config.adversarial.weight = 0.2
    config.adversarial.discriminator = "features"  # one of pixels learns too little in 600 steps
    config.adversarial.diffaugment = "translation,cutout"
    config.adversarial.lecam = 0.01  # so little data overfit a discriminator soon
    config.adversarial.lecam_decay = 0.99
    config.codebook.init = "sampled"  # codes start at vectors of the encoder
    config.codebook.revive_threshold = 0.2
    config.codebook.revive_decay = 0.97  # an unused code moves after log 0.2 / log 0.97 = 53 steps
    config.codebook.entropy = 0.003
    config.codebook.entropy_temperature = 0.05  # squared distances of features are small

    # Optimizer: AdamW of the tokenizer and of the discriminator
    config.optimizer.base_lr = 8e-3  # 1e-3 at batch 32
    config.optimizer.b2 = 0.99
    config.optimizer.weight_decay = 0.05
    config.optimizer.clip = 2.0
    config.discriminator_optimizer.base_lr = 1.6e-2  # spectrally normalized heads take 2e-3
    config.discriminator_optimizer.b1 = 0.5
    config.discriminator_optimizer.b2 = 0.99

    # Schedule
    config.batch_size = 32
    config.steps = 600  # 2.8 epochs
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 20
    config.adversarial.start = 0.3  # share of the run before the discriminator's first step
    config.adversarial.warmup = 0.1  # share in which the adversarial weight then grows
    config.ema = 0.995

    # Evaluation, on all held-out images
    config.eval_every = 300
    config.checkpoint_every = 300
    config.sample_classes = 8


def _train_transformer(config: config_dict.ConfigDict, depth: int):
    config.stage = "transformer"

    # Model: width 64 * depth, one head per 64 channels
    config.transformer.depth = depth
    config.transformer.drop_path = 0.0  # so few blocks need no regularization by their absence
    config.transformer.class_dropout = 0.1  # trains the "no class" label that guidance needs
    config.transformer.init_adaln_gamma = 0.5  # the published 1e-3 is for long runs of deep models

    # Optimizer
    config.optimizer.base_lr = 6e-3  # 7.5e-4 at batch 32
    config.optimizer.b2 = 0.95
    config.optimizer.weight_decay = 0.05
    config.optimizer.clip = 2.0

    # Schedule
    config.batch_size = 32
    config.steps = 1000  # 4.7 epochs
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 100
    config.ema = 0.995

    # Evaluation, on all held-out images
    config.eval_every = 300
    config.checkpoint_every = 300
    config.sample_classes = 8  # columns of the sample grid
