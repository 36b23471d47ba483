"""Seeded weights for reference cases: the same key and shape always give the same array.

numpy's legacy RandomState stream is frozen, so these arrays are identical everywhere.
"""

import zlib

import numpy as np


def seeded_array(key: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """float32 array for one parameter of the released PyTorch checkpoints, by its state-dict
    key."""
    n = (
        np.random.RandomState(zlib.crc32(f"{seed}/{key}".encode()))
        .standard_normal(shape)
        .astype(np.float32)
    )
    leaf = key.rsplit(".", 1)[-1]
    if "scale_mul" in key:
        return np.float32(np.log(4.0)) + np.float32(0.1) * n
    if "norm" in key and leaf == "weight":
        return np.float32(1.0) + np.float32(0.1) * n
    if leaf in ("bias", "q_bias", "v_bias"):
        return np.float32(0.1) * n
    if key == "quantize.embedding.weight":
        return n
    if key in ("pos_start", "pos_1LC", "lvl_embed.weight", "class_emb.weight") or leaf == "ada_gss":
        return np.float32(0.5) * n
    fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 1
    gain = 0.5 if "ada_lin" in key else 3.0 if key == "head.weight" else 1.0
    return np.float32(gain / np.sqrt(fan_in)) * n


def seeded_state_dict(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """Every parameter of a checkpoint from its {key: shape}."""
    return {key: seeded_array(key, tuple(shape), seed) for key, shape in shapes.items()}
