r"""Scaling sweeps of Fashion-MNIST on one core, on tokens of the full tokenizer recipe.

  var-jax train --config configs/fashion_mnist.py:tokenizer1024_full --workdir runs/full
  var-jax tokenize --config configs/fashion_mnist.py --model runs/full --out runs/tokens
  var-jax sweep --config configs/scaling_fashion.py:rates --config.data.tokens_dir=runs/tokens \
      --workdir runs/rates
  var-jax sweep --config configs/scaling_fashion.py:sizes --config.data.tokens_dir=runs/tokens \
      --workdir runs/sizes
  var-jax fit runs/sizes --out fits

| sweep         | runs                                                                            |
|---------------|---------------------------------------------------------------------------------|
| sizes         | eight sizes over two decades, five budgets of images over 1.2 decades, all      |
|               | annealed; the two smallest sizes by three seeds                                 |
| rates         | learning rates and batches of 8 to 32 on three of the sizes, at two budgets,    |
|               | also all annealed                                                               |
| small_batches | the same with batches of 4 and 2                                                |
| long_rates    | the same with batches of 4 to 16, at a third budget                             |
| corners       | the smallest and the largest size at five rates, where the joint law is worst   |

A size's longest run is the trunk of its others, which branch off it: a branch costs only its
cooldown. All of its images are different ones up to a budget of one epoch, 60,000 images.

  cost      measured: sizes, 105 minutes on two cores that other work shared (1.3e14 FLOPs); FLOPs
            of the others, by --dry-run: rates 2.6e13, small_batches 1.7e13, long_rates 3.7e13,
            corners 1.9e13
  expected  measured, held-out loss 2.496 + 60.8 N^-0.335 at 51,200 images
            (docs/results/scaling_fashion_long/fit.json, from `var-jax fit`); the best rate is
            102 N^-0.534 D^-0.300 B^0.607 for N parameters, D tokens and B images per step, and
            the best batch 0.00188 D^0.562
"""

from collections.abc import Sequence

from ml_collections import config_dict

from var_jax.config.train import default_config
from var_jax.errors import UserError
from var_jax.sweep import grid

PRESETS = ("sizes", "rates", "small_batches", "long_rates", "corners")
SIZES = ((2, 8), (2, 16), (2, 24), (2, 40), (3, 48), (3, 72), (4, 88), (4, 128))  # (depth, width)
IMAGES = (3_200, 6_400, 12_800, 25_600, 51_200)  # that a run trains on: at most 0.85 epochs
BATCH = 16
HEAD = 8  # channels per attention head
RATE = 8e-3  # at width 64 and a batch of 16
COOLDOWN = 0.2  # share of a run's steps
WARMUP_IMAGES = 640
REPEATED_SIZES = SIZES[:2]  # by three seeds, to see the noise of a run
FURTHER_SEEDS = (1, 2)

# Learning rates and batch sizes, as factors of a size's own rate by the square root rule of Adam.
RATE_SIZES = ((2, 16), (2, 24), (2, 40))
RATE_IMAGES = (3_200, 12_800)
RATE_BATCHES = (16, 8, 32)
RATE_FACTORS = (0.5, 1.0, 2.0, 4.0)
LONG_IMAGES = (25_600,)


def get_config(arg: str = "sizes") -> config_dict.ConfigDict:
    """Returns the base of a sweep."""
    if arg not in PRESETS:
        raise UserError(f"there is no sweep {arg!r}; it must be one of {', '.join(PRESETS)}")
    config = default_config()
    config.stage = "transformer"

    # Data
    config.data.name = "fashion_mnist_idx"
    config.data.resize = "pad"  # 28 to 32 pixels, each as it is

    # Model: the tokenizer is fashion_mnist.py's tokenizer1024_full
    config.tokenizer.scales = "1,2,3,4,5,6,8"  # 155 tokens
    config.tokenizer.channels = 16
    config.tokenizer.multipliers = (1, 2, 4)
    config.tokenizer.blocks = 1
    config.tokenizer.attention = False
    config.tokenizer.mid_attention = False
    config.tokenizer.norm_groups = 8
    config.tokenizer.z_channels = 16
    config.tokenizer.vocab_size = 1024
    config.transformer.depth = 2
    config.transformer.drop_path = 0.0
    config.transformer.init_adaln_gamma = 0.5  # the published 1e-3 is for long runs of deep models

    # Optimizer
    config.optimizer.base_lr = RATE * 256 / BATCH  # every size of the sweeps has its own
    config.optimizer.b2 = 0.95
    config.optimizer.weight_decay = 0.05
    config.optimizer.final_weight_decay = 0.05
    config.optimizer.clip = 2.0
    config.optimizer.schedule = "cooldown"
    config.optimizer.final_lr_ratio = 0.0

    # Schedule: the longest run; the others differ by their cooldown alone
    config.batch_size = BATCH
    config.steps = IMAGES[-1] // BATCH
    config.optimizer.cooldown_steps = round(COOLDOWN * config.steps)
    config.optimizer.warmup_steps = WARMUP_IMAGES // BATCH
    config.ema = 0.0  # the cooldown has the effect of averaging

    # Evaluation: once, when annealed
    config.eval_every = config.steps
    config.checkpoint_every = 160  # divides every step at which a run branches off
    config.eval_images = 2500
    return config


def get_sweep(arg: str = "sizes") -> list[grid.Overrides]:
    """Returns the runs of a sweep, as overrides of its base."""
    if arg == "sizes":
        largest_first = map(_size, reversed(SIZES))  # as it takes as long as all others
        repeated = grid.product(map(_size, REPEATED_SIZES), grid.sweep("seed", FURTHER_SEEDS))
        sizes = [*largest_first, *repeated]
        steps = [images // BATCH for images in IMAGES]
        return grid.chain(*(grid.annealed(size, steps, COOLDOWN) for size in sizes))
    if arg == "rates":
        return _rates(RATE_BATCHES, RATE_FACTORS, RATE_IMAGES)
    if arg == "small_batches":
        return grid.chain(
            _rates((4,), RATE_FACTORS[:3], RATE_IMAGES),
            _rates((2,), (0.25, *RATE_FACTORS), RATE_IMAGES),
        )
    if arg == "long_rates":
        return grid.chain(
            _rates((16, 8), RATE_FACTORS[:3], LONG_IMAGES),
            _rates((4,), (0.25, *RATE_FACTORS[:2]), LONG_IMAGES),
        )
    if arg == "corners":
        corners = [(SIZES[0], IMAGES[0]), (SIZES[0], IMAGES[-1]), (SIZES[-1], IMAGES[0])]
        return grid.chain(
            *(
                grid.annealed(_size(size) | _rate(size, factor, BATCH), [images // BATCH], COOLDOWN)
                for size, images in corners
                for factor in (0.25, *RATE_FACTORS)
            )
        )
    raise UserError(f"there is no sweep {arg!r}; it must be one of {', '.join(PRESETS)}")


def _rates(
    batches: Sequence[int], factors: Sequence[float], budgets: Sequence[int]
) -> list[grid.Overrides]:
    """Returns runs of every rate at every size, batch and budget of images."""
    return grid.chain(
        *(
            grid.annealed(
                _size(size) | _rate(size, factor, batch),
                [images // batch for images in budgets],
                COOLDOWN,
            )
            for batch in batches
            for size in RATE_SIZES
            for factor in factors
        )
    )


def _size(size: tuple[int, int]) -> grid.Overrides:
    """Returns the overrides of a size: its width's rate is that of width 64, times 64 / width."""
    depth, width = size
    return {
        "transformer.depth": depth,
        "transformer.width": width,
        "transformer.heads": width // HEAD,
        "optimizer.base_lr": RATE * 64 / width * 256 / BATCH,
    }


def _rate(size: tuple[int, int], factor: float, batch: int) -> grid.Overrides:
    """Returns the overrides of a rate and a batch size, around the square root rule of Adam."""
    rate = factor * RATE * 64 / size[1] * (batch / BATCH) ** 0.5
    return {
        "batch_size": batch,
        "optimizer.base_lr": rate * 256 / batch,
        "optimizer.warmup_steps": WARMUP_IMAGES // batch,
        "checkpoint_every": 2560 // batch,
    }
