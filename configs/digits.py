r"""Handwritten digits at 32x32 pixels: the quickstart, both stages in minutes on two CPU cores.

The data are scikit-learn's 1,797 digits of 8x8 pixels, which need no download. Both stages, with
samples and a report:

  var-jax quickstart --config configs/digits.py --workdir runs/quickstart

or one stage at a time:

  var-jax train --config configs/digits.py:tokenizer --workdir runs/digits/tokenizer
  var-jax train --config configs/digits.py:d2 --config.tokenizer_dir=runs/digits/tokenizer \
      --workdir runs/digits/d2

Measured by the first command, on two CPU cores (AMD EPYC, float32), as in
docs/results/quickstart/report.json:

  cost      4.8 minutes: tokenizer 1.5, transformer d2 2.9, samples 0.4
  expected  tokenizer: PSNR 26.1 dB on the 360 held-out images
            transformer: held-out loss 2.36; 98.9 % of 1,000 unguided samples show their label to a
            classifier that is right on 99.2 % of the held-out images

The arguments next_token, masked and diffusion learn the digits by another objective, the first two
over one map of 64 tokens, whose tokenizer is "tokenizer_map", the last over 16 patches of the
features of "tokenizer":

  var-jax quickstart --config configs/digits.py:masked \
      --tokenizer-config configs/digits.py:tokenizer_map --workdir runs/masked
  var-jax quickstart --config configs/digits.py:diffusion --workdir runs/diffusion

Their cost and figures are in docs/results/rivals.md as far as they are measured.
"""

from ml_collections import config_dict

from var_jax.config import recipes
from var_jax.config.train import default_config

RIVALS = ("next_token", "masked", "diffusion")  # objectives besides next-scale prediction


def get_config(arg: str = "d2") -> config_dict.ConfigDict:
    """Returns a tokenizer's run ("tokenizer", or "tokenizer_map" for one token map), or that of a
    transformer by its depth ("d2") or objective ("masked")."""
    config = default_config()

    # Data
    config.data.name = "digits"
    config.data.resize = "stretch"  # digits fill their images: a crop would cut them

    # Model: the tokenizer, which a transformer then takes from `tokenizer_dir`
    config.tokenizer.scales = "1,2,4,8"  # 85 tokens; few scales leave time for more steps
    config.tokenizer.channels = 16
    config.tokenizer.multipliers = (1, 2, 4)  # 32 pixels to 8 tokens per side
    config.tokenizer.blocks = 1
    config.tokenizer.attention = False  # convolutions already see all of an image this small
    config.tokenizer.mid_attention = False
    config.tokenizer.norm_groups = 8  # must divide the 16 channels of the first level
    config.tokenizer.z_channels = 16
    config.tokenizer.vocab_size = 128

    if arg in ("tokenizer_map", "next_token", "masked"):
        config.tokenizer.scales = "8"  # 64 tokens of one map

    if arg in ("tokenizer", "tokenizer_map"):
        _train_tokenizer(config)
    elif arg in RIVALS:
        _train_transformer(config, depth=2)
        _train_rival(config, objective=arg)
    else:
        _train_transformer(config, recipes.depth_of(arg))
    return config


def _train_tokenizer(config: config_dict.ConfigDict):
    config.stage = "tokenizer"

    # Optimizer
    config.loss.l1 = 0.2
    config.loss.l2 = 1.0
    config.loss.vq = 1.0
    config.optimizer.base_lr = 4e-3  # 1e-3 at batch 64
    config.optimizer.b2 = 0.99  # averages over 100 steps, where 0.95 averages over 20
    config.optimizer.weight_decay = 0.05
    config.optimizer.clip = 2.0

    # Schedule
    config.batch_size = 64
    config.steps = 170  # 7.6 epochs
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 20
    config.ema = 0.99  # averages over 100 steps: the run is short

    # Evaluation, on all held-out images
    config.eval_every = 200
    config.checkpoint_every = 200


def _train_transformer(config: config_dict.ConfigDict, depth: int):
    config.stage = "transformer"

    # Model: width 64 * depth, one head per 64 channels
    config.transformer.depth = depth
    config.transformer.drop_path = 0.0  # so few blocks need no regularization by their absence
    config.transformer.class_dropout = 0.1  # trains the "no class" label that guidance needs
    config.transformer.init_adaln_gamma = 0.5  # the published 1e-3 is for long runs of deep models

    # Optimizer
    config.optimizer.base_lr = 1.2e-2  # 1.5e-3 at batch 32
    config.optimizer.b2 = 0.95
    config.optimizer.weight_decay = 0.05
    config.optimizer.clip = 2.0

    # Schedule
    config.batch_size = 32
    config.steps = 1200  # 27 epochs
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 40
    config.ema = 0.99

    # Evaluation, on all held-out images
    config.eval_every = 1200
    config.checkpoint_every = 600
    config.sample_classes = 10  # columns of the sample grid


def _train_rival(config: config_dict.ConfigDict, objective: str):
    config.transformer.objective = objective
    config.steps = 800  # 18 epochs
    config.eval_every = 800
    config.checkpoint_every = 200

    if objective == "diffusion":
        # Model: 16 patches; its AdaLN starts at zero, so that no factor scales it
        config.transformer.patch = 2
        config.transformer.init_adaln_gamma = 1e-3

        # Optimizer: noise is drawn anew at every step, which regularizes and calls for averaging
        config.steps = 1600
        config.optimizer.b2 = 0.99
        config.optimizer.weight_decay = 0.0
        config.optimizer.clip = 1.0
