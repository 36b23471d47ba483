r"""The ablation of the VAR paper, rung by rung, on Fashion-MNIST: each changes one thing.

It begins with next-token prediction by a plain transformer (LayerNorm, the class as a start token,
no QK-norm, no guidance) and ends with a larger VAR. Two rungs are other settings of `var-jax
sample` for the weights of the rung before.

| rung       | argument   | the one change                  | sampling             | published FID |
|------------|------------|---------------------------------|----------------------|---------------|
| next_token | next_token |                                 | all off              | 18.65         |
| next_scale | next_scale | token maps and their prediction | all off              | 5.22          |
| adaln      | adaln      | AdaLN                           | all off              | 4.95          |
| top_k      | adaln      | a sampling filter               | --top-k 112          | 4.64          |
| cfg        | adaln      | guidance                        | --top-k 112 --cfg 2  | 3.60          |
| qk_norm    | qk_norm    | QK-norm                         | --top-k 112 --cfg 2  | 3.30          |
| larger     | qk_norm_d3 | depth and width                 | --top-k 112 --cfg 2  | 1.73          |

The published figures are of ImageNet at 256 pixels (arXiv 2404.02905, table 3), with 900 of 4,096
codes as top-k, here 112 of 512. A rung, its tokenizer first:

  var-jax train --config configs/ablation.py:tokenizer_next_token --workdir runs/ablation/map
  var-jax train --config configs/ablation.py:tokenizer --workdir runs/ablation/maps
  var-jax train --config configs/ablation.py:next_token --config.tokenizer_dir=runs/ablation/map \
      --workdir runs/ablation/next_token
  var-jax train --config configs/ablation.py:adaln --config.tokenizer_dir=runs/ablation/maps \
      --workdir runs/ablation/adaln
  var-jax generate --model runs/ablation/adaln --top-k 112 --top-p 0 --cfg 2 --num 10000 \
      --out cfg.npz

Measured on one core that other work shared (AMD EPYC, float32), as in docs/results/rivals.md, which
has the samples' figures of each rung:

  cost      in processor time: 147 s (next_token), 333 s (next_scale), 353 s (adaln), 360 s
            (qk_norm); the tokenizers are those of rivals.py; qk_norm_d3: 3 times the FLOPs of
            qk_norm, not measured
  expected  held-out losses of 1.095 (next_token, of its own tokens), 2.793 (next_scale), 2.668
            (adaln) and 2.646 (qk_norm); qk_norm_d3: not measured
"""

from typing import Any, NamedTuple

from ml_collections import config_dict

from var_jax.config import recipes
from var_jax.config.train import default_config
from var_jax.errors import UserError

RUNGS = ("next_token", "next_scale", "adaln", "qk_norm")  # each has the changes before it, too
OFF = {"cfg": 0.0, "top_k": 0, "top_p": 0.0}


class Rung(NamedTuple):
    """A config's argument, and sampling settings for its weights."""

    argument: str
    sampling: dict[str, Any]


TOP_K = {**OFF, "top_k": 112}
CFG = {**TOP_K, "cfg": 2.0}
LADDER = {
    "next_token": Rung("next_token", OFF),
    "next_scale": Rung("next_scale", OFF),
    "adaln": Rung("adaln", OFF),
    "top_k": Rung("adaln", TOP_K),
    "cfg": Rung("adaln", CFG),
    "qk_norm": Rung("qk_norm", CFG),
    "larger": Rung("qk_norm_d3", CFG),
}


def get_config(arg: str = "qk_norm") -> config_dict.ConfigDict:
    """Returns a transformer's run ("adaln", "qk_norm_d3") or a tokenizer's ("tokenizer", and
    "tokenizer_next_token" for a single map)."""
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

    if arg in ("tokenizer", "tokenizer_next_token"):
        if arg == "tokenizer_next_token":
            config.tokenizer.scales = "8"  # 64 tokens
        _train_tokenizer(config)
        return config

    # Model: the transformer, with the changes up to its rung
    name, depth = _parse(arg)
    rung = RUNGS.index(name)
    if rung >= RUNGS.index("next_scale"):
        config.transformer.objective = "next_scale"
    else:
        config.tokenizer.scales = "8"
        config.transformer.objective = "next_token"
    has_adaln = rung >= RUNGS.index("adaln")
    config.transformer.class_conditioning = "adaln" if has_adaln else "start_token"
    config.transformer.qk_norm = rung >= RUNGS.index("qk_norm")
    _train_transformer(config, depth)
    return config


def _parse(arg: str) -> tuple[str, int]:
    """Returns the name and the depth of an argument such as "qk_norm_d3"."""
    if arg in RUNGS:
        return arg, 2
    name, _, depth = arg.rpartition("_")
    name = name or RUNGS[-1]  # of "d2" alone
    if name not in RUNGS:
        raise UserError(f"config argument {arg!r} is none of {', '.join(RUNGS)}, or with _d2")
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
    config.transformer.init_adaln_gamma = 0.5  # the published 1e-3 is for long, deep runs

    # Optimizer
    config.optimizer.base_lr = 6e-3  # 1.5e-3 at batch 64
    config.optimizer.b2 = 0.95
    config.optimizer.weight_decay = 0.05
    config.optimizer.clip = 2.0

    # Schedule
    config.batch_size = 64
    config.steps = 600  # 0.64 epochs: a rung takes minutes
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 100
    config.ema = 0.995

    # Evaluation
    config.eval_every = 600
    config.checkpoint_every = 200
    config.eval_images = 2000
    config.sample_classes = 10  # columns of the sample grid
