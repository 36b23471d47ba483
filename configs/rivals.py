r"""Next-scale prediction and its rivals on Fashion-MNIST, each with a tokenizer of its own kind.

The objectives share the data, the CNN of the tokenizer, the blocks of the transformer and the
schedule of fashion_mnist.py; only what their functions below set is different. A tokenizer, its
transformer, and samples:

  var-jax train --config configs/rivals.py:tokenizer_next_token --workdir runs/rivals/map
  var-jax train --config configs/rivals.py:next_token --config.tokenizer_dir=runs/rivals/map \
      --workdir runs/rivals/next_token

or both stages at once, with a report:

  var-jax quickstart --config configs/rivals.py:next_token_zcurve \
      --tokenizer-config configs/rivals.py:tokenizer_next_token --workdir runs/rivals/zcurve

| argument          | tokens                          | tokenizer            |
|-------------------|---------------------------------|----------------------|
| next_scale        | 130 of six maps, a map at once  | tokenizer_next_scale |
| next_token        | 64 of one map, row after row    | tokenizer_next_token |
| next_token_zcurve | the same, by the Z-curve        | tokenizer_next_token |
| next_token_spiral | the same, from the center       | tokenizer_next_token |
| masked            | 64 of one map, in eight passes  | tokenizer_masked     |
| diffusion         | 16 patches of continuous maps   | tokenizer_diffusion  |

The sweeps `rivals_fashion` and `rivals_fashion_lr` have all objectives at equal training FLOPs:
3e13 each, and a third of it at each of five learning rates. DIR holds the workdirs of the two
tokenizers that they need, `DIR/tokenizer_next_scale` (for diffusion too) and
`DIR/tokenizer_next_token`; without `:DIR` a dry run lists the costs alone:

  var-jax sweep --config configs/rivals.py:rivals_fashion:DIR --workdir runs/rivals_fashion
  var-jax compare runs/rivals_fashion --out comparison

Each objective may end in a depth, such as next_token_d6; by default it is d3. `tokenizer_NAME` is
the tokenizer of any of them, and "tokenizer" that of next_scale.

Measured on one core that other work shared (AMD EPYC, float32), as in docs/results/rivals.md; the
distances are Fréchet distances of EfficientNet-Lite0's features, by 2,000 samples:

| argument             | processor time, s | held-out loss | distance | samples as labeled |
|----------------------|-------------------|---------------|----------|--------------------|
| tokenizer_next_token | 785               |               | 351      |                    |
| tokenizer_next_scale | 821               |               | 245      |                    |
| next_token           | 1,031             | 0.876         | 410      | 0.950              |
| masked               | 945               | 1.437         | 549      | 0.886              |
| diffusion            | 467               | 0.432         | 452      | 0.827              |

  cost      next_scale: that of fashion_mnist.py:d3; diffusion over pixels
            (--config.transformer.latents=pixels): 504 s; other orders of next_token: as many FLOPs;
            FLOPs of the sweeps, by --dry-run: rivals_fashion 1.8e14, rivals_fashion_lr 3.0e14
  expected  next_scale: that of fashion_mnist.py:d3; diffusion over pixels: held-out loss 0.339;
            other orders of next_token and both sweeps: not measured
"""

from collections.abc import Callable

from ml_collections import config_dict

from var_jax.config import recipes
from var_jax.config.train import default_config, from_config_dict
from var_jax.errors import UserError
from var_jax.models import flops
from var_jax.sweep import grid

SWEEPS = ("rivals_fashion", "rivals_fashion_lr")
SWEEP_FLOPS = 3e13  # exact training FLOPs of each run of `rivals_fashion`
LR_SHARE = 1 / 3  # of them in each run of `rivals_fashion_lr`
LR_FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
WARMUP = 1 / 15  # share of a run's steps


def get_config(arg: str = "next_scale") -> config_dict.ConfigDict:
    """Returns a transformer's run ("next_token_zcurve", "next_scale_d6") or the run of its
    tokenizer ("tokenizer_next_token"), or the base of a sweep."""
    if arg.partition(":")[0] in SWEEPS:
        arg = "next_scale"
    config = default_config()

    # Data
    config.data.name = "fashion_mnist_idx"
    config.data.resize = "pad"  # 28 to 32 pixels, each as it is

    # Model: the tokenizer, which a transformer then takes from `tokenizer_dir`
    config.tokenizer.channels = 32
    config.tokenizer.multipliers = (1, 2, 2)  # 32 pixels to 8 tokens per side
    config.tokenizer.blocks = 1
    config.tokenizer.attention = False  # convolutions already see all of an image this small
    config.tokenizer.mid_attention = False
    config.tokenizer.norm_groups = 8
    config.tokenizer.z_channels = 16
    config.tokenizer.vocab_size = 512

    if arg == "tokenizer" or arg.startswith("tokenizer_"):
        objective, _ = _parse(arg.removeprefix("tokenizer").removeprefix("_") or "next_scale")
        OBJECTIVES[objective](config)
        _train_tokenizer(config)
    else:
        objective, depth = _parse(arg)
        OBJECTIVES[objective](config)
        _train_transformer(config, depth)
    return config


def get_sweep(arg: str = "rivals_fashion") -> list[grid.Overrides]:
    """Returns the runs of a sweep, as overrides of its base: the objectives at equal compute."""
    name, _, tokenizers = arg.partition(":")
    if name not in SWEEPS:
        raise UserError(f"there is no sweep {name!r}; it must be one of {', '.join(SWEEPS)}")
    share, factors = (1.0, (1.0,)) if name == "rivals_fashion" else (LR_SHARE, LR_FACTORS)
    base = get_config(arg).to_dict()
    runs = []
    for objective in OBJECTIVES:
        config = get_config(objective)
        per_image = flops.train_flops_per_image(from_config_dict(config).transformer)
        config.steps = round(share * SWEEP_FLOPS / (per_image * config.batch_size))
        config.optimizer.warmup_steps = round(WARMUP * config.steps)
        config.eval_every = config.steps  # once, when annealed
        if tokenizers:
            single = config.tokenizer.scales == "8"
            kind = "tokenizer_next_token" if single else "tokenizer_next_scale"
            config.tokenizer_dir = f"{tokenizers.rstrip('/')}/{kind}"
        rate = config.optimizer.base_lr
        for factor in factors:
            config.optimizer.base_lr = factor * rate
            named = {  # what tells the runs apart, which labels have first
                "transformer.objective": config.transformer.objective,
                "transformer.order": config.transformer.order,
                "optimizer.base_lr": config.optimizer.base_lr,
            }
            runs.append(named | grid.between(base, config.to_dict()))
    return runs


def _next_scale(config: config_dict.ConfigDict):
    config.tokenizer.scales = "1,2,3,4,6,8"  # 130 tokens
    config.transformer.objective = "next_scale"


def _next_token(config: config_dict.ConfigDict):
    config.tokenizer.scales = "8"  # 64 tokens
    config.transformer.objective = "next_token"


def _next_token_zcurve(config: config_dict.ConfigDict):
    _next_token(config)
    config.transformer.order = "zcurve"


def _next_token_spiral(config: config_dict.ConfigDict):
    _next_token(config)
    config.transformer.order = "spiral_out"


def _masked(config: config_dict.ConfigDict):
    config.tokenizer.scales = "8"  # 64 tokens
    config.transformer.objective = "masked"


def _diffusion(config: config_dict.ConfigDict):
    config.tokenizer.scales = "1,2,3,4,6,8"  # next_scale's: features before its quantizer
    config.transformer.objective = "diffusion"
    config.transformer.patch = 2


OBJECTIVES: dict[str, Callable[[config_dict.ConfigDict], None]] = {
    "next_scale": _next_scale,
    "next_token": _next_token,
    "next_token_zcurve": _next_token_zcurve,
    "next_token_spiral": _next_token_spiral,
    "masked": _masked,
    "diffusion": _diffusion,
}


def _parse(arg: str) -> tuple[str, int]:
    """Returns the objective and the depth of an argument such as "next_token_d3"."""
    if arg in OBJECTIVES:
        return arg, 3
    name, _, depth = arg.rpartition("_")
    name = name or "next_scale"  # of "d3" alone
    if name not in OBJECTIVES:
        raise UserError(f"config argument {arg!r} is none of {', '.join(OBJECTIVES)}, or with _d3")
    return name, recipes.depth_of(depth)


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


def _train_transformer(config: config_dict.ConfigDict, depth: int):
    config.stage = "transformer"

    # Model: width 64 * depth, one head per 64 channels
    config.transformer.depth = depth
    config.transformer.drop_path = 0.0  # so few blocks need no regularization by their absence
    config.transformer.class_dropout = 0.1  # trains the "no class" label that guidance needs
    if config.transformer.objective != "diffusion":  # whose AdaLN starts at zero
        config.transformer.init_adaln_gamma = 0.5  # the published 1e-3 is for long, deep runs

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
