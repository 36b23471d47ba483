r"""OpenImages at 256x256 pixels: the tokenizer, on the data that the published one was trained on.

`--config.data.data_dir` is where TFDS prepared open_images_v4, whose images have many labels: all
count as one class, so that a depth ("d16") is an unconditional VAR, which nobody published.

  var-jax train --config configs/openimages.py:tokenizer \
      --config.loss.perceptual_weights=vgg16-397923af.pth --config.loss.perceptual_heads=vgg.pth \
      --config.adversarial.feature_weights=dino_deitsmall16_pretrain.pth \
      --workdir gs://BUCKET/tokenizer

The files, and their substitutes, are those of configs/imagenet256.py, and so is the
recipe, repeated here, with its differences from the published one but that of the images. No run of
this config is on record.

  cost      tokenizer: 911 to 1,019 chip-hours of TPU v5e: the lower bound that `var-jax aot`
            computes from the same step on ImageNet, compiled for 256 chips, with communication
            hidden and half exposed (docs/results/aot/tokenizer_v5e-16x16.json, with two options of
            the compiler that docs/results/aot.md names). Transformers: not compiled
  expected  tokenizer: rFID 0.92 on ImageNet's validation images, as published. Transformers: not
            measured, and nothing is published
"""

from ml_collections import config_dict

from var_jax.config.recipes import Recipe, depth_of
from var_jax.config.train import default_config

IMAGENET_IMAGES = 1_281_167  # runs are as long as those on ImageNet


# ImageNet's published recipes by depth; another depth takes that of the next shallower one. Gamma
# is the factor on the initial weights of AdaLN's gamma rows, the published `alng`: a deep model
# starts with its blocks nearer to the identity.
RECIPES = {
    #          batch, epochs, base_lr, gamma, final_lr_ratio, final_weight_decay
    16: Recipe(768, 200, 1e-4, 1e-3, 0.1, 0.05),
    20: Recipe(768, 250, 1e-4, 1e-3, 0.1, 0.05),
    24: Recipe(768, 350, 8e-5, 1e-4, 0.01, 0.05),
    30: Recipe(1024, 350, 8e-5, 1e-5, 0.01, 0.08),
    36: Recipe(768, 350, 8e-5, 5e-6, 0.01, 0.08),
}


def get_config(arg: str = "d16") -> config_dict.ConfigDict:
    """Returns the tokenizer's run ("tokenizer") or that of a transformer by its depth ("d16")."""
    config = default_config()

    # Data
    config.data.name = "open_images_v4"
    config.data.eval_split = "validation"
    config.data.resize = "crop"  # short side to 1.125 times the size, then a random crop
    config.data.workers = 16  # JPEGs of this size take more than one process to decode

    # Model: the tokenizer, which a transformer then takes from `tokenizer_dir`
    config.tokenizer.scales = "1,2,3,4,5,6,8,10,13,16"  # 680 tokens
    config.tokenizer.in_channels = 3
    config.tokenizer.channels = 160
    config.tokenizer.multipliers = (1, 1, 2, 2, 4)  # 256 pixels to 16 tokens per side
    config.tokenizer.z_channels = 32
    config.tokenizer.vocab_size = 4096
    config.tokenizer.remat = "auto"  # activations of 256x256 pixels take most of the memory

    if arg == "tokenizer":
        config.transformer.num_classes = 1000  # of no effect in the tokenizer's run
        _train_tokenizer(config)
    else:
        config.transformer.num_classes = 1
        _train_transformer(config, depth_of(arg))

    # Evaluation, for runs of days
    config.log_every = 50
    config.eval_every = 5000
    config.checkpoint_every = 1000
    return config


def _train_tokenizer(config: config_dict.ConfigDict):
    config.stage = "tokenizer"

    # Model
    config.tokenizer.dtype = "bfloat16"  # a v5e chip's memory takes three images per chip in it
    config.tokenizer.dropout = 0.05
    config.tokenizer.init_gain = 0.5
    config.tokenizer.init_codes = 0.0049  # 1 / (36 sqrt(z_channels))
    config.codebook.init = "uniform"
    config.codebook.weight_decay = False

    # Optimizer: losses
    config.loss.l1 = 0.2
    config.loss.l2 = 1.0
    config.loss.vq = 1.0
    config.loss.perceptual = 1.0
    config.loss.perceptual_network = "lpips"
    config.adversarial.weight = 0.4
    config.adversarial.adaptive = True  # times |grad of the other terms| / |its own grad|
    config.adversarial.discriminator = "features"  # five heads on a frozen network
    config.adversarial.feature_network = "dino"
    config.adversarial.feature_size = 224  # the size that DINO was trained at
    config.adversarial.feature_crops = 0.5
    config.adversarial.feature_readout = "patch_and_class"
    config.adversarial.channels = 384
    config.adversarial.hinge = "sum"
    config.adversarial.diffaugment = "translation,color,cutout"
    config.adversarial.cutout = 0.2
    config.adversarial.bcr = 4.0  # consistency of the logits under a second augmentation
    config.adversarial.bcr_diffaugment = "translation,color,cutout"
    config.adversarial.bcr_cutout = 0.2

    _set_tokenizer_optimizers(config)


def _set_tokenizer_optimizers(config: config_dict.ConfigDict):
    # Optimizer: AdamW of the tokenizer and of the discriminator
    for optimizer in (config.optimizer, config.discriminator_optimizer):
        optimizer.base_lr = 1e-4  # 3e-4 at batch 768
        optimizer.b1 = 0.5
        optimizer.b2 = 0.9
        optimizer.clip = 10.0
        optimizer.schedule = "cosine"
        optimizer.final_lr_ratio = 0.3
    config.optimizer.weight_decay = 0.005
    config.optimizer.final_weight_decay = 0.005
    config.discriminator_optimizer.weight_decay = 0.0005
    config.discriminator_optimizer.final_weight_decay = 0.0005

    # Schedule
    config.batch_size = 768
    config.steps = 250 * IMAGENET_IMAGES // 768
    config.optimizer.warmup_steps = config.steps // 100
    config.adversarial.start = 0.2  # share of the run before the discriminator's first step
    config.adversarial.warmup = 0.02  # share in which the adversarial weight then grows
    config.adversarial.blur_fade = 0.04  # share in which the discriminator's blur fades out
    config.discriminator_optimizer.warmup_steps = config.steps // 50  # as long as its weight grows
    config.ema = 0.9999
    config.ema_warmup = 2


def _train_transformer(config: config_dict.ConfigDict, depth: int):
    config.stage = "transformer"
    recipe = RECIPES[max((d for d in RECIPES if d <= depth), default=min(RECIPES))]

    # Model: width 64 * depth, one head per 64 channels
    config.transformer.depth = depth
    config.transformer.drop_path = -1.0  # 0.1 * depth / 24 in the last block, 0 in the first
    config.transformer.class_dropout = 0.1
    config.transformer.init_adaln_gamma = recipe.init_adaln_gamma
    config.transformer.dtype = "bfloat16"  # parameters stay float32
    config.transformer.remat = "auto"
    config.mesh.policy = "auto"  # how weights are divided, by the memory of the devices

    # Optimizer
    config.optimizer.base_lr = recipe.base_lr  # at batch 256
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.95
    config.optimizer.weight_decay = 0.05
    config.optimizer.final_weight_decay = recipe.final_weight_decay
    config.optimizer.clip = 2.0

    # Schedule
    config.batch_size = recipe.batch_size
    config.steps = recipe.epochs * IMAGENET_IMAGES // recipe.batch_size
    config.optimizer.schedule = "lin0"  # constant for 5 % of the run, then linear
    config.optimizer.warmup_steps = config.steps // 50
    config.optimizer.warmup_from = 0.005
    config.optimizer.final_lr_ratio = recipe.final_lr_ratio
    config.ema = 0.0  # the published transformers have none
