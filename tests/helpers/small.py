"""A tiny model and training run with every part in them; images and the finest map are oblong."""

import functools
import json
from pathlib import Path

import numpy as np
from flax.traverse_util import unflatten_dict

from reference.seeded_weights import seeded_state_dict
from var_jax import Pipeline
from var_jax.config.model import ModelConfig, TokenizerConfig, TransformerConfig
from var_jax.config.scales import Scales
from var_jax.config.train import DataConfig, OptimizerConfig, TrainConfig
from var_jax.io.torch_keys import abstract
from var_jax.objectives.frozen_tokenizer import FrozenTokenizer
from var_jax.objectives.next_scale import NextScale

REFERENCE = Path(__file__).parents[1] / "reference"
CASES = ("small_l2norm", "small_shared_adaln")
SCALES = Scales.parse("1,2,3x4")
CLASSES = 10
TOKENIZER = TokenizerConfig(
    scales=SCALES,
    in_channels=1,
    channels=8,
    multipliers=(1, 2),
    blocks=1,
    attention=False,
    mid_attention=False,
    norm_groups=4,
    z_channels=4,
    vocab_size=16,
    phi=2,
    init_codes=1.0,
)
# Larger at the start than a real one, so that every part moves the logits.
TRANSFORMER = TransformerConfig(
    depth=2,
    width=16,
    heads=2,
    num_classes=CLASSES,
    vocab_size=16,
    z_channels=4,
    scales=SCALES,
    init_std=0.3,
    init_head=2.0,
    init_adaln_gamma=0.5,
    drop_path=0.2,
)
MODEL = ModelConfig(TOKENIZER, TRANSFORMER)
# The same run for the command line.
CONFIG_FILE = f"""
from var_jax.config.train import default_config

def get_config(arg="d2"):
    config = default_config()
    config.stage = "tokenizer" if arg == "tokenizer" else "transformer"
    config.steps, config.batch_size, config.eval_images, config.sample_classes = 2, 8, 8, 2
    config.data.resize = "stretch"
    config.tokenizer.update(dict(
        scales="{SCALES}", in_channels=1, channels=8, multipliers=(1, 2), blocks=1, attention=False,
        mid_attention=False, norm_groups=4, z_channels=4, vocab_size=16, phi=2))
    config.transformer.update(dict(depth=2, width=16, heads=2, num_classes={CLASSES}))
    return config
"""


def train_config(stage: str, data_dir, **changes) -> TrainConfig:
    settings = {
        "seed": 3,
        "steps": 3,
        "batch_size": 8,
        "log_every": 1,
        "eval_every": 3,
        "checkpoint_every": 1,
        "keep_checkpoints": 3,
        "eval_images": 12,
        "sample_classes": 2,
        "ema": 0.9,
        "data": DataConfig("digits", data_dir=str(data_dir), resize="stretch"),
        "tokenizer": TOKENIZER,
        "transformer": TRANSFORMER if stage == "transformer" else None,
        # eps: Adam would blow the rounding of gradients near zero up to whole steps.
        "optimizer": OptimizerConfig(base_lr=0.1, schedule="cosine", eps=1e-3),
    }
    return TrainConfig(stage=stage, **{**settings, **changes})


@functools.cache
def pipeline() -> Pipeline:
    """Returns the small model with weights from numpy: compiling the real initialization takes
    longer."""
    random = np.random.RandomState(0)

    def draw(path: str, shape: tuple[int, ...]) -> np.ndarray:
        normal = random.standard_normal(shape).astype(np.float32)
        if path.endswith("codebook"):
            return normal
        if path.endswith("/scale"):
            return 1 + 0.1 * normal
        if path.endswith("bias"):
            return 0.1 * normal
        stacked = "blocks" in path or "phi_kernel" in path
        fan_in = np.prod(shape[stacked:-1]) if len(shape) > 1 + stacked else 1
        return normal / np.float32(fan_in**0.5)

    params = {
        part: unflatten_dict(
            {path: draw(path, leaf.shape) for path, leaf in abstract(sizes).items()}, sep="/"
        )
        for part, sizes in (("tokenizer", TOKENIZER), ("transformer", TRANSFORMER))
    }
    return Pipeline(MODEL, params)


def next_scale(config: TrainConfig) -> NextScale:
    """Returns the objective of a transformer's run on the small tokenizer."""
    return NextScale(config, FrozenTokenizer(pipeline().params["tokenizer"]))


@functools.cache
def reference(name: str) -> tuple[Pipeline, dict, dict[str, np.ndarray]]:
    """Returns a reference case: the model with its weights, its settings and its arrays."""
    described = json.loads((REFERENCE / f"{name}.json").read_text())
    settings = described["config"]
    states = [
        seeded_state_dict(described[part], settings["seed"])
        for part in ("vae_shapes", "var_shapes")
    ]
    model = Pipeline.from_torch(
        *states,
        scales=settings["patch_nums"],
        num_heads=None if settings["attn_l2_norm"] else settings["heads"],
    )
    with np.load(REFERENCE / f"{name}.npz") as arrays:
        return model, settings, dict(arrays)
