"""Scaling sweeps: what `var-jax sweep --config configs/scaling.py:PRESET` expands, and its runs.

  var-jax sweep --config configs/scaling.py:lr --config.data.tokens_dir=TOKENS --workdir gs://bucket/lr --dry-run
  var-jax sweep --config configs/scaling.py:scaling --config.data.tokens_dir=TOKENS --workdir gs://bucket/scaling

| preset | data | runs |
|---|---|---|
| paper | ImageNet 256 | depths 6 to 30, each with its published recipe; steps and rate change with the size |
| scaling | ImageNet 256 | one recipe for all depths: a constant rate, and a 1 - sqrt cooldown for every token budget |
| lr | ImageNet 256 | learning rates on the smallest depths of `scaling`, to be run before it |
| fashion | Fashion-MNIST | as `scaling`, on one CPU core: seven sizes over 1.5 decades, three budgets |
| fashion_lr | Fashion-MNIST | learning rates on the smallest sizes of `fashion` |

`configs/scaling.py:d6` is one run of `scaling`, `configs/scaling.py:tokenizer` its tokenizer's. The
recipe's rate falls as 1/width (as muP has it for hidden matrices under Adam: Yang et al. 2022,
table 3), so one rate found on small sizes serves all. The longest run of a size is the trunk of the
others: a branch costs its cooldown alone.
"""

import runpy
from pathlib import Path

from var_jax.config import recipes
from var_jax.errors import UserError
from var_jax.sweep import grid

PRESETS = ("paper", "scaling", "lr", "fashion", "fashion_lr")
COOLDOWN = 0.2  # of a run's steps; Hägele et al. 2024 find no gain beyond

PAPER_DEPTHS = range(6, 31, 2)  # the paper has twelve models from 6 to 30 and does not list them
DEPTHS = (6, 8, 10, 12, 14, 16, 20, 24)
STEPS = (16_000, 32_000, 64_000, 128_000)  # 10 to 77 epochs
LR_DEPTHS = (6, 8, 10)
BATCH = 768

FASHION_SIZES = ((2, 16), (2, 24), (2, 32), (3, 40), (3, 56), (4, 72), (4, 96))  # (depth, width)
FASHION_BATCH = 16
FASHION_STEPS = (400, 800, 1600)  # 0.11 to 0.43 epochs
FASHION_HEAD = 8
FASHION_RATE = 8e-3  # at width 64; the best of `fashion_lr`
LR_FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)


def get_config(arg: str = "scaling"):
    """The base of a preset, or one run: "d6" or "tokenizer"."""
    if arg.startswith("fashion") and arg in PRESETS:
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
        _constant(config)
        config.batch_size = BATCH
        config.optimizer.base_lr = _imagenet_rate(depth)
        config.optimizer.warmup_steps = 1000
        _ends(config, STEPS, save_every=800)
    return config


def get_sweep(arg: str = "scaling"):
    """The runs of a preset."""
    if arg == "paper":
        return [_recipe(depth) for depth in PAPER_DEPTHS]
    if arg == "scaling":
        return grid.chain(*(_budgets(size, STEPS) for size in _imagenet_sizes(DEPTHS)))
    if arg == "lr":
        return grid.chain(
            *(_budgets(size, STEPS[:1]) for size in _rates(_imagenet_sizes(LR_DEPTHS)))
        )
    if arg == "fashion":
        return grid.chain(*(_budgets(size, FASHION_STEPS) for size in _fashion_sizes()))
    if arg == "fashion_lr":
        return grid.chain(
            *(_budgets(size, FASHION_STEPS[:1]) for size in _rates(_fashion_sizes()[:3]))
        )
    raise UserError(f"there is no sweep {arg!r}; it must be one of {', '.join(PRESETS)}")


def _budgets(size: grid.Overrides, steps: tuple[int, ...]) -> list[grid.Overrides]:
    """One size trained for several numbers of steps: the longest run, and a branch off it for every
    other."""

    def ends(n: int) -> grid.Overrides:
        return {"steps": n, "optimizer.cooldown_steps": round(COOLDOWN * n)}

    trunk = {**size, **ends(steps[-1])}
    branches = [
        {**size, **ends(n), "branch_from": trunk, "branch_step": n - round(COOLDOWN * n)}
        for n in steps[:-1]
    ]
    return [trunk, *branches]


def _rates(sizes: list[grid.Overrides]) -> list[grid.Overrides]:
    """Every size with its own learning rate times each of `LR_FACTORS`."""
    return [
        {**size, "optimizer.base_lr": factor * size["optimizer.base_lr"]}
        for size in sizes
        for factor in LR_FACTORS
    ]


def _imagenet_rate(depth: int) -> float:
    """The published rate of depth 16, scaled as 1/width."""
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


def _recipe(depth: int) -> grid.Overrides:
    """The keys in which the published recipe of a depth differs from that of the preset's base."""
    config, base = recipes.imagenet_config(), get_config("paper")
    recipes.imagenet_transformer(config, depth)
    flat, plain = (
        {
            **c,
            **{
                f"{section}.{key}": value
                for section in ("transformer", "optimizer")
                for key, value in c[section].items()
            },
        }
        for c in (config.to_dict(), base.to_dict())
    )
    return {
        "transformer.depth": depth,
        **{k: v for k, v in flat.items() if v != plain[k] and not isinstance(v, dict)},
    }


def _constant(config):
    """The recipe that runs of several lengths can share: nothing but the cooldown depends on the
    length."""
    config.optimizer.schedule = "cooldown"
    config.optimizer.final_lr_ratio = 0.0
    config.optimizer.final_weight_decay = config.optimizer.weight_decay


def _ends(config, steps: tuple[int, ...], save_every: int):
    """The longest of several runs, with checkpoints where the others branch off, and one
    evaluation, when annealed."""
    config.steps = config.eval_every = steps[-1]
    config.checkpoint_every = save_every
    config.optimizer.cooldown_steps = round(COOLDOWN * steps[-1])


def _fashion():
    config = runpy.run_path(str(Path(__file__).with_name("fashion_mnist.py")))["get_config"]("d2")
    _constant(config)
    config.batch_size = FASHION_BATCH
    config.ema = 0.0  # the cooldown does what averaging would
    config.optimizer.warmup_steps = 40
    _ends(config, FASHION_STEPS, save_every=160)
    config.eval_images = 2500
    return config
