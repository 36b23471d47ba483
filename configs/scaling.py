r"""Scaling sweeps: a base config per preset, and the runs that `var-jax sweep` expands from it.

  var-jax sweep --config configs/scaling.py:fashion --config.data.tokens_dir=TOKENS \
      --workdir runs/scaling --dry-run                  # prints each run with its cost, starts none
  var-jax sweep --config configs/scaling.py:fashion --config.data.tokens_dir=TOKENS \
      --workdir runs/scaling
  var-jax fit runs/scaling --out fits

| preset     | data          | runs                                                               |
|------------|---------------|--------------------------------------------------------------------|
| fashion    | Fashion-MNIST | one recipe for all sizes: a constant rate, and a 1 - sqrt cooldown |
|            |               | per token budget; seven sizes over 1.5 decades, three budgets      |
| fashion_lr | Fashion-MNIST | learning rates on the smallest sizes of `fashion`                  |
| scaling    | ImageNet 256  | as `fashion`: eight depths, four budgets                           |
| lr         | ImageNet 256  | learning rates on the smallest depths of `scaling`                 |
| paper      | ImageNet 256  | depths 6 to 30, each with its published recipe                     |

  cost      measured: fashion, 49 minutes on one core (2.9e13 FLOPs); fashion_lr, 30 minutes on a
            core that other work shared (2.2e12). FLOPs of the others, by --dry-run: scaling 8.0e20,
            lr 2.6e19, paper 9.8e21
  expected  fashion: measured, held-out loss 2.156 + 64.6 N^-0.423 at 1,600 steps
            (docs/results/scaling_fashion/fit.json, from `var-jax fit`)
            paper: published, (loss of the last scale - E) = (2.0 N)^-0.23, N in billions, with E of
            about 4.5; of all scales (2.5 N)^-0.20, with E of about 5
            fashion_lr: measured, held-out losses of 3.395, 3.215 and 3.129 at widths 16, 24 and 32
            at the best rate, which is that of `fashion` (docs/results/scaling.md)
            scaling, lr: not measured

`configs/scaling.py:d6` is one run of `scaling`, `configs/scaling.py:tokenizer` its tokenizer's. The
rate falls as 1/width (as muP has it for hidden matrices under Adam: Yang et al. 2022, table 3), so
one rate found on small sizes serves all. The longest run of a size is the trunk of the others,
which branch off its checkpoints: a branch costs only its cooldown.
"""

import operator

from ml_collections import config_dict

from var_jax.config.recipes import Recipe, depth_of
from var_jax.config.train import default_config
from var_jax.errors import UserError
from var_jax.sweep import grid

PRESETS = ("paper", "scaling", "lr", "fashion", "fashion_lr")
COOLDOWN = 0.2  # share of a run's steps; Hägele et al. 2024 find no gain beyond
LR_FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)  # in `lr` and `fashion_lr`

IMAGES = 1_281_167  # of ImageNet's training split
PAPER_DEPTHS = range(6, 31, 2)  # the paper has twelve models from 6 to 30 and does not list them
# Published recipes by depth; another depth takes that of the next shallower one, or depth 16's.
RECIPES = {
    #          batch, epochs, base_lr, gamma, final_lr_ratio, final_weight_decay
    16: Recipe(768, 200, 1e-4, 1e-3, 0.1, 0.05),
    20: Recipe(768, 250, 1e-4, 1e-3, 0.1, 0.05),
    24: Recipe(768, 350, 8e-5, 1e-4, 0.01, 0.05),
    30: Recipe(1024, 350, 8e-5, 1e-5, 0.01, 0.08),
    36: Recipe(768, 350, 8e-5, 5e-6, 0.01, 0.08),
}

DEPTHS = (6, 8, 10, 12, 14, 16, 20, 24)
STEPS = (16_000, 32_000, 64_000, 128_000)  # 10 to 77 epochs
LR_DEPTHS = (6, 8, 10)

FASHION_SIZES = ((2, 16), (2, 24), (2, 32), (3, 40), (3, 56), (4, 72), (4, 96))  # (depth, width)
FASHION_STEPS = (400, 800, 1600)  # 0.11 to 0.43 epochs: no run sees an image twice
FASHION_BATCH = 16
FASHION_HEAD = 8  # channels per attention head
FASHION_RATE = 8e-3  # at width 64; the best of `fashion_lr`


def get_config(arg: str = "scaling") -> config_dict.ConfigDict:
    """Returns the base of a preset, or the config of one run: "d6" or "tokenizer"."""
    if arg in ("fashion", "fashion_lr"):
        return _fashion()
    config = _imagenet()
    if arg == "tokenizer":
        _train_tokenizer(config)
        return config
    try:
        depth = DEPTHS[0] if arg in PRESETS else depth_of(arg)
    except UserError as error:
        raise UserError(f"{error}, nor one of {', '.join(PRESETS)}") from None
    _train_transformer(config, depth)
    if arg != "paper":
        _share_recipe(config, depth)
    return config


def get_sweep(arg: str = "scaling") -> list[grid.Overrides]:
    """Returns the runs of a preset, as overrides of its base."""
    if arg == "paper":
        return [_published_overrides(depth) for depth in PAPER_DEPTHS]
    if arg == "scaling":
        return grid.chain(
            *(grid.annealed(size, STEPS, COOLDOWN) for size in _imagenet_sizes(DEPTHS))
        )
    if arg == "lr":
        sizes = _learning_rates(_imagenet_sizes(LR_DEPTHS))
        return grid.chain(*(grid.annealed(size, STEPS[:1], COOLDOWN) for size in sizes))
    if arg == "fashion":
        return grid.chain(
            *(grid.annealed(size, FASHION_STEPS, COOLDOWN) for size in _fashion_sizes())
        )
    if arg == "fashion_lr":
        sizes = _learning_rates(_fashion_sizes()[:3])
        return grid.chain(*(grid.annealed(size, FASHION_STEPS[:1], COOLDOWN) for size in sizes))
    raise UserError(f"there is no sweep {arg!r}; it must be one of {', '.join(PRESETS)}")


def _imagenet() -> config_dict.ConfigDict:
    """Returns the settings that all runs on ImageNet share."""
    config = default_config()

    # Data
    config.data.name = "imagenet2012"
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
    config.transformer.num_classes = 1000

    # Evaluation, for runs of days
    config.log_every = 50
    config.eval_every = 5000
    config.checkpoint_every = 1000
    return config


def _train_transformer(config: config_dict.ConfigDict, depth: int):
    """Sets the published recipe of a depth, which `paper` trains."""
    config.stage = "transformer"
    recipe = _published_recipe(depth)

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
    config.steps = recipe.epochs * IMAGES // recipe.batch_size
    config.optimizer.schedule = "lin0"  # constant for 5 % of the run, then linear
    config.optimizer.warmup_steps = config.steps // 50
    config.optimizer.warmup_from = 0.005
    config.optimizer.final_lr_ratio = recipe.final_lr_ratio
    config.ema = 0.0  # the published transformers have none


def _share_recipe(config: config_dict.ConfigDict, depth: int):
    """Replaces the settings that depend on depth or length: runs of one law must share them."""
    # Optimizer
    config.optimizer.base_lr = _imagenet_rate(depth)
    config.optimizer.weight_decay = 0.05
    config.optimizer.final_weight_decay = 0.05  # constant: runs of all lengths share their start

    # Schedule: the longest run, and only its cooldown depends on that length
    config.batch_size = 768
    config.steps = STEPS[-1]
    config.optimizer.schedule = "cooldown"
    config.optimizer.cooldown_steps = round(COOLDOWN * STEPS[-1])
    config.optimizer.warmup_steps = 1000
    config.optimizer.final_lr_ratio = 0.0

    # Evaluation: once, when annealed
    config.eval_every = STEPS[-1]
    config.checkpoint_every = 800  # divides every step at which a run branches off


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


def _fashion() -> config_dict.ConfigDict:
    """Returns the base of `fashion`, of depth 2."""
    config = default_config()
    config.stage = "transformer"

    # Data
    config.data.name = "fashion_mnist_idx"
    config.data.resize = "pad"  # 28 to 32 pixels, each as it is

    # Model: the tokenizer of configs/fashion_mnist.py; every size has its own depth and width
    config.tokenizer.scales = "1,2,3,4,6,8"  # 130 tokens
    config.tokenizer.channels = 32
    config.tokenizer.multipliers = (1, 2, 2)
    config.tokenizer.blocks = 1
    config.tokenizer.attention = False
    config.tokenizer.mid_attention = False
    config.tokenizer.norm_groups = 8
    config.tokenizer.z_channels = 16
    config.tokenizer.vocab_size = 512
    config.transformer.depth = 2
    config.transformer.drop_path = 0.0
    config.transformer.init_adaln_gamma = 0.5  # the published 1e-3 is for long runs of deep models

    # Optimizer
    config.optimizer.base_lr = 6e-3  # every size of the sweeps has its own
    config.optimizer.b2 = 0.95
    config.optimizer.weight_decay = 0.05
    config.optimizer.final_weight_decay = 0.05
    config.optimizer.clip = 2.0

    # Schedule: the longest run, and only its cooldown depends on that length
    config.batch_size = FASHION_BATCH
    config.steps = FASHION_STEPS[-1]
    config.optimizer.schedule = "cooldown"
    config.optimizer.cooldown_steps = round(COOLDOWN * FASHION_STEPS[-1])
    config.optimizer.warmup_steps = 40
    config.optimizer.final_lr_ratio = 0.0
    config.ema = 0.0  # the cooldown has the effect of averaging

    # Evaluation: once, when annealed
    config.eval_every = FASHION_STEPS[-1]
    config.checkpoint_every = 160  # divides every step at which a run branches off
    config.eval_images = 2500
    return config


def _learning_rates(sizes: list[grid.Overrides]) -> list[grid.Overrides]:
    """Returns every size with its own learning rate times each of `LR_FACTORS`."""
    return [
        {**size, "optimizer.base_lr": factor * size["optimizer.base_lr"]}
        for size in sizes
        for factor in LR_FACTORS
    ]


def _imagenet_rate(depth: int) -> float:
    """Returns the published rate of depth 16, scaled as 1/width."""
    return RECIPES[16].base_lr * 16 / depth


def _imagenet_sizes(depths: tuple[int, ...]) -> list[grid.Overrides]:
    return grid.zip(
        grid.sweep("transformer.depth", depths),
        grid.sweep("optimizer.base_lr", [_imagenet_rate(depth) for depth in depths]),
    )


def _fashion_sizes() -> list[grid.Overrides]:
    return [
        {
            "transformer.depth": depth,
            "transformer.width": width,
            "transformer.heads": width // FASHION_HEAD,
            "optimizer.base_lr": FASHION_RATE * 64 / width * 256 / FASHION_BATCH,
        }
        for depth, width in FASHION_SIZES
    ]


def _published_recipe(depth: int) -> Recipe:
    return RECIPES[max((d for d in RECIPES if d <= depth), default=min(RECIPES))]


def _published_overrides(depth: int) -> grid.Overrides:
    """Returns the keys in which a depth's published recipe differs from the base of `paper`."""
    base = get_config("paper")
    published = _imagenet()
    _train_transformer(published, depth)
    overrides: grid.Overrides = {"transformer.depth": depth}
    for key in (
        "batch_size",
        "steps",
        "transformer.init_adaln_gamma",
        "optimizer.base_lr",
        "optimizer.final_lr_ratio",
        "optimizer.final_weight_decay",
        "optimizer.warmup_steps",
    ):
        value = operator.attrgetter(key)(published)
        if value != operator.attrgetter(key)(base):
            overrides[key] = value
    return overrides
