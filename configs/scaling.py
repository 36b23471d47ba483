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

  cost      fashion: measured, 49 minutes on one core (2.9e13 FLOPs). The others: not measured;
            FLOPs by --dry-run: fashion_lr 2.2e12, scaling 8.0e20, lr 2.6e19, paper 9.8e21
  expected  fashion: measured, held-out loss 2.162 + 66.9 N^-0.427 at 1,600 steps
            (docs/results/scaling_fashion/fit.json, from `var-jax fit`)
            paper: published, (loss of the last scale - E) = (2.0 N)^-0.23, N in billions, with E of
            about 4.5; of all scales (2.5 N)^-0.20, with E of about 5. The others: not measured

`configs/scaling.py:d6` is one run of `scaling`, `configs/scaling.py:tokenizer` its tokenizer's. The
rate falls as 1/width (as muP has it for hidden matrices under Adam: Yang et al. 2022, table 3), so
one rate found on small sizes serves all. The longest run of a size is the trunk of the others,
which branch off its checkpoints: a branch costs its cooldown alone.
"""

import operator

from ml_collections import config_dict

from var_jax.config import recipes
from var_jax.config.train import default_config
from var_jax.errors import UserError
from var_jax.sweep import grid

PRESETS = ("paper", "scaling", "lr", "fashion", "fashion_lr")
COOLDOWN = 0.2  # share of a run's steps; Hägele et al. 2024 find no gain beyond
LR_FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)  # of `lr` and `fashion_lr`

PAPER_DEPTHS = range(6, 31, 2)  # the paper has twelve models from 6 to 30 and does not list them

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
    config = recipes.imagenet_config()
    if arg == "tokenizer":
        recipes.imagenet_tokenizer(config)
        return config
    try:
        depth = DEPTHS[0] if arg in PRESETS else recipes.depth_of(arg)
    except UserError as error:
        raise UserError(f"{error}, nor one of {', '.join(PRESETS)}") from None
    recipes.imagenet_transformer(config, depth)
    if arg != "paper":
        _share_recipe(config, depth)
    return config


def get_sweep(arg: str = "scaling") -> list[grid.Overrides]:
    """Returns the runs of a preset, as overrides of its base."""
    if arg == "paper":
        return [_published_recipe(depth) for depth in PAPER_DEPTHS]
    if arg == "scaling":
        return grid.chain(*(_budgets(size, STEPS) for size in _imagenet_sizes(DEPTHS)))
    if arg == "lr":
        sizes = _learning_rates(_imagenet_sizes(LR_DEPTHS))
        return grid.chain(*(_budgets(size, STEPS[:1]) for size in sizes))
    if arg == "fashion":
        return grid.chain(*(_budgets(size, FASHION_STEPS) for size in _fashion_sizes()))
    if arg == "fashion_lr":
        sizes = _learning_rates(_fashion_sizes()[:3])
        return grid.chain(*(_budgets(size, FASHION_STEPS[:1]) for size in sizes))
    raise UserError(f"there is no sweep {arg!r}; it must be one of {', '.join(PRESETS)}")


def _share_recipe(config: config_dict.ConfigDict, depth: int):
    """Replaces what a published recipe has by depth or length: runs of one law must share it."""
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
    config.ema = 0.0  # the cooldown does what averaging would

    # Evaluation: once, when annealed
    config.eval_every = FASHION_STEPS[-1]
    config.checkpoint_every = 160  # divides every step at which a run branches off
    config.eval_images = 2500
    return config


def _budgets(size: grid.Overrides, steps: tuple[int, ...]) -> list[grid.Overrides]:
    """Returns one size trained for several numbers of steps.

    The longest run comes first; every other one is a branch off it, where its cooldown begins.
    """

    def length(n: int) -> grid.Overrides:
        return {"steps": n, "optimizer.cooldown_steps": round(COOLDOWN * n)}

    trunk = {**size, **length(steps[-1])}
    branches = [
        {**size, **length(n), "branch_from": trunk, "branch_step": n - round(COOLDOWN * n)}
        for n in steps[:-1]
    ]
    return [trunk, *branches]


def _learning_rates(sizes: list[grid.Overrides]) -> list[grid.Overrides]:
    """Returns every size with its own learning rate times each of `LR_FACTORS`."""
    return [
        {**size, "optimizer.base_lr": factor * size["optimizer.base_lr"]}
        for size in sizes
        for factor in LR_FACTORS
    ]


def _imagenet_rate(depth: int) -> float:
    """Returns the published rate of depth 16, scaled as 1/width."""
    return recipes.BY_DEPTH[16].base_lr * 16 / depth


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


def _published_recipe(depth: int) -> grid.Overrides:
    """Returns the keys in which a depth's published recipe differs from the base of `paper`."""
    base = get_config("paper")
    published = recipes.imagenet_config()
    recipes.imagenet_transformer(published, depth)
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
