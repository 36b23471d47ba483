r"""Fashion-MNIST (60,000 gray images of ten kinds of clothes), padded to 32x32 pixels, on a CPU.

The files come from Debian's `apt-get install dataset-fashion-mnist`, or are in
`--config.data.source_dir`. Both stages, with samples and a report:

  var-jax quickstart --config configs/fashion_mnist.py --workdir runs/fashion_mnist

or one stage at a time:

  var-jax train --config configs/fashion_mnist.py:tokenizer --workdir runs/fashion/tokenizer
  var-jax train --config configs/fashion_mnist.py:d3 --config.tokenizer_dir=runs/fashion/tokenizer \
      --workdir runs/fashion/d3

Measured by the first command, on one core (AMD EPYC, float32) that other programs shared, as in
docs/results/fashion_mnist/report.json:

  cost      83 minutes: tokenizer 16, transformer d3 65, samples 2
  expected  tokenizer: PSNR 23.6 dB; transformer: loss 2.127, both on 2,000 held-out images; 95.8 %
            of 1,000 guided samples show their label to a classifier that is right on 88.9 % of
            held-out images

Four further arguments train a larger tokenizer (1,024 codes, 155 tokens) with the terms of a full
recipe added one by one; the last three need `pip install 'var_jax[perceptual]'`:

  var-jax train --config configs/fashion_mnist.py:tokenizer1024_full --workdir runs/fashion/full

| argument                  | losses                             | PSNR, dB | Fréchet distance |
|---------------------------|------------------------------------|----------|------------------|
| tokenizer1024_l2          | L1, L2 and VQ                      | 24.47    | 210              |
| tokenizer1024_perceptual  | and a perceptual distance          | 24.57    | 147              |
| tokenizer1024_adversarial | and a discriminator                | 24.55    | 142              |
| tokenizer1024_full        | and terms that keep all codes used | 24.84    | 139              |

Measured on the 10,000 test images by the `var-jax evaluate` of docs/results/tokenizer.md (distances
are of EfficientNet-Lite0's features, no FID), after 10 to 20 minutes of training each on one core.

"tokenizer1024_aligned" tunes the decoder of any of these four on a model's own samples, so that
these look more like real images; encoder and codes stay:

  var-jax generate --model runs/fashion/d3 --num 2000 --out samples.npz --tokens-out samples_tokens
  var-jax train --config configs/fashion_mnist.py:tokenizer1024_aligned \
      --config.init_from=runs/fashion/full --config.alignment.tokens=samples_tokens \
      --workdir runs/fashion/aligned
  var-jax merge --base runs/fashion/d3 --tuned runs/fashion/aligned --weight 1 \
      --out models/d3_aligned
"""

from ml_collections import config_dict

from var_jax.config import recipes
from var_jax.config.train import default_config

TERMS = ("l2", "perceptual", "adversarial", "full")  # tokenizer1024_TERM has all up to TERM


def get_config(arg: str = "d3") -> config_dict.ConfigDict:
    """Returns a tokenizer's run ("tokenizer", "tokenizer1024_full") or a transformer's ("d3")."""
    config = default_config()

    # Data
    config.data.name = "fashion_mnist_idx"
    config.data.resize = "pad"  # 28 to 32 pixels, each as it is

    # Model: the tokenizer, which a transformer then takes from `tokenizer_dir`
    config.tokenizer.scales = "1,2,3,4,6,8"  # 130 tokens
    config.tokenizer.channels = 32
    config.tokenizer.multipliers = (1, 2, 2)  # 32 pixels to 8 tokens per side
    config.tokenizer.blocks = 1
    config.tokenizer.attention = False  # convolutions already see all of an image this small
    config.tokenizer.mid_attention = False
    config.tokenizer.norm_groups = 8
    config.tokenizer.z_channels = 16
    config.tokenizer.vocab_size = 512

    terms_of_arg = {f"tokenizer1024_{term}": TERMS[: i + 1] for i, term in enumerate(TERMS)}
    if arg == "tokenizer":
        _train_tokenizer(config)
    elif arg in terms_of_arg:
        _train_tokenizer1024(config, terms_of_arg[arg])
    elif arg == "tokenizer1024_aligned":
        _align_decoder1024(config)
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
    config.optimizer.b2 = 0.99
    config.optimizer.weight_decay = 0.05
    config.optimizer.clip = 2.0

    # Schedule
    config.batch_size = 64
    config.steps = 600  # 0.64 epochs
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 20
    config.ema = 0.995

    # Evaluation
    config.eval_every = 500
    config.checkpoint_every = 200
    config.eval_images = 2000  # all 10,000 would take as long as many steps


def _train_tokenizer1024(config: config_dict.ConfigDict, terms: tuple[str, ...]):
    _train_tokenizer(config)

    # Model
    config.tokenizer.scales = "1,2,3,4,5,6,8"  # 155 tokens
    config.tokenizer.channels = 16  # half of the other's: twice as fast, for twice the steps
    config.tokenizer.multipliers = (1, 2, 4)
    config.tokenizer.vocab_size = 1024

    # Optimizer
    if "perceptual" in terms:
        config.loss.perceptual = 0.1  # on EfficientNet-Lite0; about as large as the pixel terms
    if "adversarial" in terms:
        config.adversarial.weight = 0.2
        config.adversarial.discriminator = "features"  # one of pixels learns too little
        config.adversarial.diffaugment = "translation,cutout"
        config.adversarial.lecam = 0.01  # so few steps overfit a discriminator soon
        config.adversarial.lecam_decay = 0.99
        config.discriminator_optimizer.base_lr = 1.6e-2  # spectrally normalized heads take 2e-3
        config.discriminator_optimizer.b1 = 0.5
        config.discriminator_optimizer.b2 = 0.99
    if "full" in terms:
        config.codebook.init = "sampled"  # codes start at vectors of the encoder
        config.codebook.revive_threshold = 0.2
        config.codebook.revive_decay = 0.97  # an unused code moves after 53 steps: 0.97**53 = 0.2
        config.codebook.entropy = 0.003
        config.codebook.entropy_temperature = 0.05  # squared distances of features are small
    config.optimizer.base_lr = 8e-3  # 1e-3 at batch 32

    # Schedule
    config.batch_size = 32
    config.steps = 1200
    if "adversarial" in terms:
        config.adversarial.start = 0.3  # share of the run before the discriminator's first step
        config.adversarial.warmup = 0.1  # share in which the adversarial weight then grows


def _align_decoder1024(config: config_dict.ConfigDict):
    _train_tokenizer1024(config, ("l2", "perceptual"))
    config.trainable = "decoder,post_quant_conv"  # so that tokens keep their meaning

    # Losses: the reconstruction of real images, and a Fréchet distance of decoded samples to them
    config.alignment.weight = 0.1
    config.alignment.decay = 0.98  # over 50 batches; the paper's 0.999 is for long runs
    config.alignment.images = 2000
    config.alignment.components = 128

    # Optimizer
    config.optimizer.base_lr = 8e-4  # 1e-4 at batch 32: the decoder is trained already
    config.optimizer.weight_decay = 0.0
    config.optimizer.final_weight_decay = 0.0

    # Schedule
    config.steps = 200
    config.optimizer.warmup_steps = 10
    config.ema = 0.95

    # Evaluation
    config.eval_every = 200
    config.checkpoint_every = 50


def _train_transformer(config: config_dict.ConfigDict, depth: int):
    config.stage = "transformer"

    # Model: width 64 * depth, one head per 64 channels
    config.transformer.depth = depth
    config.transformer.drop_path = 0.0  # so few blocks need no regularization by their absence
    config.transformer.class_dropout = 0.1  # trains the "no class" label that guidance needs
    config.transformer.init_adaln_gamma = 0.5  # the published 1e-3 is for long runs of deep models

    # Optimizer
    config.optimizer.base_lr = 6e-3  # 1.5e-3 at batch 64
    config.optimizer.b2 = 0.95
    config.optimizer.weight_decay = 0.05
    config.optimizer.clip = 2.0

    # Schedule
    config.batch_size = 64
    config.steps = 1500  # 1.6 epochs
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 100
    config.ema = 0.995

    # Evaluation
    config.eval_every = 500
    config.checkpoint_every = 200
    config.eval_images = 2000
    config.sample_classes = 10  # columns of the sample grid
