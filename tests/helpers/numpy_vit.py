"""Vision transformers written out in numpy from their papers, in float64 and image by image, for
state dicts with published keys; and small state dicts."""

import math

import numpy as np
from scipy import special

from helpers import random_weights

WIDTH, HIDDEN, PATCH, DEPTH = 128, 192, 4, 2
HEADS = WIDTH // 64


def dinov2_shapes(grid: int = 5, patch: int = PATCH) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a small network with DINOv2's keys."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, WIDTH),
        "pos_embed": (1, grid * grid + 1, WIDTH),
        "mask_token": (1, WIDTH),
        "patch_embed.proj.weight": (WIDTH, 3, patch, patch),
        "patch_embed.proj.bias": (WIDTH,),
    }
    for block in range(DEPTH):
        for name, shape in _linears("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2").items():
            shapes |= _layer(f"blocks.{block}.{name}", shape)
        for norm in ("norm1", "norm2"):
            shapes |= _layer(f"blocks.{block}.{norm}", (WIDTH,))
        shapes |= {f"blocks.{block}.ls{i}.gamma": (WIDTH,) for i in (1, 2)}
    return shapes | _layer("norm", (WIDTH,))


def clip_shapes(grid: int = 5, projected: int = 24) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a small network with OpenAI's keys of CLIP."""
    shapes: dict[str, tuple[int, ...]] = {
        "visual.class_embedding": (WIDTH,),
        "visual.positional_embedding": (grid * grid + 1, WIDTH),
        "visual.proj": (WIDTH, projected),
        "visual.conv1.weight": (WIDTH, 3, PATCH, PATCH),
        **_layer("visual.ln_pre", (WIDTH,)),
        **_layer("visual.ln_post", (WIDTH,)),
        "logit_scale": (),
        "token_embedding.weight": (7, 5),
    }
    for block in range(DEPTH):
        key = f"visual.transformer.resblocks.{block}"
        linears = _linears("attn.in_proj", "attn.out_proj", "mlp.c_fc", "mlp.c_proj")
        for name, shape in linears.items():
            shapes |= _layer(f"{key}.{name}", shape)
        for norm in ("ln_1", "ln_2"):
            shapes |= _layer(f"{key}.{norm}", (WIDTH,))
    return {key.replace("in_proj.", "in_proj_"): shape for key, shape in shapes.items()}


def state(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Returns random weights in which every part moves the result."""
    weights = random_weights.state_dict({k: shape or (1,) for k, shape in shapes.items()})
    return {
        key: 5 * array if "pos" in key or "class" in key or "cls" in key else array
        for key, array in weights.items()
    }


def as_transformers(openai: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the same weights under the keys of Hugging Face's `transformers`."""
    renamed = (
        ("visual.class_embedding", "vision_model.embeddings.class_embedding"),
        ("visual.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
        ("visual.conv1", "vision_model.embeddings.patch_embedding"),
        ("visual.ln_pre", "vision_model.pre_layrnorm"),
        ("visual.ln_post", "vision_model.post_layernorm"),
        ("visual.transformer.resblocks", "vision_model.encoder.layers"),
        ("attn.out_proj", "self_attn.out_proj"),
        ("ln_1", "layer_norm1"),
        ("ln_2", "layer_norm2"),
        ("mlp.c_fc", "mlp.fc1"),
        ("mlp.c_proj", "mlp.fc2"),
        ("token_embedding", "text_model.embeddings.token_embedding"),
    )
    other = {"vision_model.embeddings.position_ids": np.arange(26)[None]}
    for key, array in openai.items():
        for before, after in renamed:
            key = key.replace(before, after)
        if key == "visual.proj":
            other["visual_projection.weight"] = array.T
        elif "in_proj_" in key:
            block, _, kind = key.partition(".attn.in_proj_")
            for name, part in zip("qkv", np.split(array, 3), strict=True):
                other[f"{block}.self_attn.{name}_proj.{kind}"] = part
        else:
            other[key] = array
    return other


def dinov2(weights: dict[str, np.ndarray], image: np.ndarray) -> np.ndarray:
    """Returns the class token after the final norm, of a normalized (H, W, 3) image."""
    weights = {key: array.astype(np.float64) for key, array in weights.items()}
    x = _patches(image, weights["patch_embed.proj.weight"]) + weights["patch_embed.proj.bias"]
    patch = weights["patch_embed.proj.weight"].shape[-1]
    rows, columns = (side // patch for side in image.shape[:2])
    positions = positions_at(weights["pos_embed"][0, 1:], rows, columns)
    x = np.concatenate(
        [weights["cls_token"][0] + weights["pos_embed"][0, :1], x + positions], axis=0
    )
    for block in range(DEPTH):
        key = f"blocks.{block}"

        def dense(name, y, key=key):
            return y @ weights[f"{key}.{name}.weight"].T + weights[f"{key}.{name}.bias"]

        y = dense("attn.qkv", _norm(weights, f"{key}.norm1", x, 1e-6))
        x = x + weights[f"{key}.ls1.gamma"] * dense("attn.proj", _attention(y))
        y = dense("mlp.fc1", _norm(weights, f"{key}.norm2", x, 1e-6))
        y = 0.5 * y * (1 + special.erf(y / math.sqrt(2)))
        x = x + weights[f"{key}.ls2.gamma"] * dense("mlp.fc2", y)
    return _norm(weights, "norm", x, 1e-6)[0]


def clip(weights: dict[str, np.ndarray], image: np.ndarray) -> np.ndarray:
    """Returns the embedding of a normalized (H, W, 3) image of the network's own size."""
    weights = {key: array.astype(np.float64) for key, array in weights.items()}
    x = _patches(image, weights["visual.conv1.weight"])
    x = np.concatenate([weights["visual.class_embedding"][None], x], axis=0)
    x = _norm(weights, "visual.ln_pre", x + weights["visual.positional_embedding"], 1e-5)
    for block in range(DEPTH):
        key = f"visual.transformer.resblocks.{block}"
        y = _norm(weights, f"{key}.ln_1", x, 1e-5)
        y = y @ weights[f"{key}.attn.in_proj_weight"].T + weights[f"{key}.attn.in_proj_bias"]
        y = _attention(y) @ weights[f"{key}.attn.out_proj.weight"].T
        x = x + y + weights[f"{key}.attn.out_proj.bias"]
        y = _norm(weights, f"{key}.ln_2", x, 1e-5)
        y = y @ weights[f"{key}.mlp.c_fc.weight"].T + weights[f"{key}.mlp.c_fc.bias"]
        y = y / (1 + np.exp(-1.702 * y))
        x = x + y @ weights[f"{key}.mlp.c_proj.weight"].T + weights[f"{key}.mlp.c_proj.bias"]
    return _norm(weights, "visual.ln_post", x, 1e-5)[0] @ weights["visual.proj"]


def positions_at(table: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Returns the positions of a map of another size: bicubic with a = -0.75, pixel by pixel, at
    the scale (side + 0.1) / trained side."""
    trained = round(len(table) ** 0.5)
    if (rows, columns) == (trained, trained):
        return table
    grid = table.reshape(trained, trained, -1)

    def weight(distance):
        a, d = -0.75, abs(distance)
        if d <= 1:
            return (a + 2) * d**3 - (a + 3) * d**2 + 1
        return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0

    result = np.zeros((rows, columns, table.shape[-1]))
    for i in range(rows):
        for j in range(columns):
            y = (i + 0.5) * trained / (rows + 0.1) - 0.5
            x = (j + 0.5) * trained / (columns + 0.1) - 0.5
            for m in range(math.floor(y) - 1, math.floor(y) + 3):
                for n in range(math.floor(x) - 1, math.floor(x) + 3):
                    place = grid[min(max(m, 0), trained - 1), min(max(n, 0), trained - 1)]
                    result[i, j] += weight(y - m) * weight(x - n) * place
    return result.reshape(rows * columns, -1)


def _patches(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    patch = kernel.shape[-1]
    rows, columns = (side // patch for side in image.shape[:2])
    return np.array(
        [
            np.tensordot(
                kernel,
                image[i * patch : (i + 1) * patch, j * patch : (j + 1) * patch].transpose(2, 0, 1),
                3,
            )
            for i in range(rows)
            for j in range(columns)
        ]
    )


def _norm(weights: dict, key: str, x: np.ndarray, epsilon: float) -> np.ndarray:
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    normalized = (x - mean) / np.sqrt(variance + epsilon)
    return normalized * weights[f"{key}.weight"] + weights[f"{key}.bias"]


def _attention(qkv: np.ndarray) -> np.ndarray:
    heads = []
    for head in range(HEADS):
        q, k, v = (qkv[:, i * WIDTH + 64 * head :][:, :64] for i in range(3))
        logits = q @ k.T / 8
        shares = np.exp(logits - logits.max(-1, keepdims=True))
        heads.append(shares / shares.sum(-1, keepdims=True) @ v)
    return np.concatenate(heads, axis=1)


def _linears(qkv: str, proj: str, fc1: str, fc2: str) -> dict[str, tuple[int, int]]:
    return {
        qkv: (3 * WIDTH, WIDTH),
        proj: (WIDTH, WIDTH),
        fc1: (HIDDEN, WIDTH),
        fc2: (WIDTH, HIDDEN),
    }


def _layer(key: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {f"{key}.weight": shape, f"{key}.bias": shape[:1]}
