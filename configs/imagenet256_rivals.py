r"""Rivals of VAR on ImageNet at 256x256 pixels, at published sizes: LlamaGen, MaskGIT and DiT.

`--config.data.data_dir` is where TFDS prepared imagenet2012. A transformer and its tokenizer:

  var-jax train --config configs/imagenet256_rivals.py:tokenizer_dit_xl_2 --workdir gs://BUCKET/maps
  var-jax train --config configs/imagenet256_rivals.py:dit_xl_2 \
      --config.tokenizer_dir=gs://BUCKET/maps --workdir gs://BUCKET/dit_xl_2

| argument     | v5p chip-hours, by aot | parameters    | expected, as published           |
|--------------|------------------------|---------------|----------------------------------|
| llamagen_xxl | 1,470 to 1,616         | 1,412,121,088 | FID 2.34 at 384 pixels, cfg 1.75 |
| maskgit      | not compiled           | 258,783,232   | FID 6.18, without guidance       |
| dit_xl_2     | 2,245 to 2,550         | 674,834,728   | FID 2.27, cfg 1.5, 250 steps     |

The sweep `rivals` has these three and next-scale prediction at depths 16, 20, 24 and 30, each by
its published recipe. It is not measured; its 6.8e21 FLOPs are those that --dry-run prints. DIR
holds the tokenizers' workdirs, by the names of their arguments, and `DIR/tokenizer_next_scale`,
that of configs/imagenet256.py; without `:DIR` a dry run lists the costs alone:

  var-jax sweep --config configs/imagenet256_rivals.py:rivals:DIR --workdir gs://BUCKET/rivals

No run of this config is on record. The cost is the lower bound that `var-jax aot` computes from the
compiled step on v5p:4x4x8, for communication that is hidden and half exposed (docs/results/aot.md).
The objectives are next-token prediction of 256 tokens of one map, masked prediction of as many, and
diffusion over 256 patches of 2x2 places. Sizes and recipes are the originals', the blocks this
project's: LlamaGen's have RMSNorm, SwiGLU and rotary embeddings, MaskGIT's normalize after each sum
and know the class by a token, DiT's are the same up to its fixed table of places. MaskGIT's own
blocks in the sizes of its released config have 172,457,193 parameters; the paper's 227M are 54.5M
more, which that config does not explain. As DiT's, the diffusion learns over a KL autoencoder: the
mean of its features, normalized by channel, where DiT learns samples times 0.18215. `var-jax train`
of the tokenizers needs the files that configs/imagenet256.py names.
"""

from ml_collections import config_dict

from var_jax.config import recipes
from var_jax.errors import UserError
from var_jax.sweep import grid

ARGUMENTS = ("llamagen_xxl", "maskgit", "dit_xl_2")
SWEEP = "rivals"
NEXT_SCALE_DEPTHS = (16, 20, 24, 30)  # of the sweep


def get_config(arg: str = "dit_xl_2") -> config_dict.ConfigDict:
    """Returns a transformer's run ("dit_xl_2") or that of its tokenizer ("tokenizer_dit_xl_2"),
    or the base of the sweep."""
    if arg.partition(":")[0] == SWEEP:
        return _next_scale(NEXT_SCALE_DEPTHS[0])
    name = arg.removeprefix("tokenizer_")
    if name not in ARGUMENTS:
        raise UserError(f"config argument {arg!r} is none of {', '.join(ARGUMENTS)}, or tokenizer_")
    config = recipes.imagenet_config()
    config.data.flip = True

    # Model: the tokenizer
    if name == "llamagen_xxl":
        config.tokenizer.scales = "16"
        config.tokenizer.z_channels = 8
        config.tokenizer.vocab_size = 16384
        config.tokenizer.codes = "cosine"
    elif name == "maskgit":
        config.tokenizer.scales = "16"
        config.tokenizer.vocab_size = 1024
    else:
        config.tokenizer.scales = "32"  # latents of 32x32x4
        config.tokenizer.multipliers = (1, 2, 4, 4)
        config.tokenizer.z_channels = 4
        config.tokenizer.codes = "kl"

    if arg != name:
        recipes.imagenet_tokenizer(config)
        if name == "dit_xl_2":
            config.codebook.init = "normal"  # it has no codes
        return config

    # What the three recipes share: AdamW at a constant 1e-4 in batches of 256
    config.stage = "transformer"
    config.transformer.class_dropout = 0.1
    config.transformer.drop_path = 0.0
    config.transformer.qk_norm = False
    config.transformer.dtype = "bfloat16"
    config.transformer.remat = "auto"
    config.mesh.policy = "auto"  # how weights are divided, by the memory of the devices
    config.optimizer.base_lr = 1e-4
    config.optimizer.schedule = "constant"
    config.optimizer.warmup_steps = 0
    recipes.set_epochs(config, batch_size=256, epochs=300)

    if name == "llamagen_xxl":
        _llamagen_xxl(config)
    elif name == "maskgit":
        _maskgit(config)
    else:
        _dit_xl_2(config)
    return config


def get_sweep(arg: str = SWEEP) -> list[grid.Overrides]:
    """Returns the runs of the sweep, as overrides of its base: each with its published recipe."""
    name, _, tokenizers = arg.partition(":")
    if name != SWEEP:
        raise UserError(f"there is no sweep {name!r}; it must be {SWEEP}")
    base = get_config(arg).to_dict()
    configs = [("next_scale", _next_scale(depth)) for depth in NEXT_SCALE_DEPTHS]
    runs = []
    for tokenizer, config in [*configs, *((name, get_config(name)) for name in ARGUMENTS)]:
        if tokenizers:
            config.tokenizer_dir = f"{tokenizers.rstrip('/')}/tokenizer_{tokenizer}"
        named = {  # what tells the runs apart, which labels have first
            "transformer.objective": config.transformer.objective,
            "transformer.depth": config.transformer.depth,
        }
        runs.append(named | grid.between(base, config.to_dict()))
    return runs


def _next_scale(depth: int) -> config_dict.ConfigDict:
    """Returns next-scale prediction by the recipe of configs/imagenet256.py."""
    config = recipes.imagenet_config()
    recipes.imagenet_transformer(config, depth)
    return config


def _llamagen_xxl(config: config_dict.ConfigDict):
    config.transformer.objective = "next_token"
    config.transformer.class_conditioning = "start_token"
    config.transformer.depth, config.transformer.heads, config.transformer.width = 48, 24, 1536
    config.transformer.init_std = 0.02
    config.optimizer.clip = 1.0


def _maskgit(config: config_dict.ConfigDict):
    config.transformer.objective = "masked"
    config.transformer.depth, config.transformer.heads, config.transformer.width = 24, 16, 768
    config.transformer.init_std = 0.02
    config.loss.label_smoothing = 0.1
    config.optimizer.b2 = 0.96
    config.optimizer.weight_decay = 0.045
    config.optimizer.final_weight_decay = 0.045
    config.optimizer.warmup_steps = 5000


def _dit_xl_2(config: config_dict.ConfigDict):
    config.transformer.objective = "diffusion"
    config.transformer.depth, config.transformer.heads, config.transformer.width = 28, 16, 1152
    config.transformer.patch = 2
    config.transformer.prediction = "epsilon"
    config.transformer.learn_sigma = True
    config.transformer.key_bias = True
    config.optimizer.b2 = 0.999
    config.optimizer.weight_decay = 0.0
    config.optimizer.final_weight_decay = 0.0
    config.optimizer.clip = 0.0
    config.steps = 7_000_000
    config.ema = 0.9999
