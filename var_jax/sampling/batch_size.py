"""The batch size of sampling that fits in a device's memory."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from var_jax.config.model import ModelConfig

HOST_BYTES = 2**30  # for a batch if the device does not report its memory, as on a CPU
DECODER_MAPS = 4  # an image's feature maps that the decoder holds at its widest: an estimate
# Images that are sampled or decoded at once, however much memory there is.
MAX_IMAGES_PER_DEVICE = {"cpu": 64, "gpu": 256, "tpu": 256}


def max_batch(config: ModelConfig, params: dict[str, Any], *, rows: int = 1) -> int:
    """Returns the number of images per device to sample or decode at once, a power of two.

    Their keys, values and decoded feature maps take at most half of the memory that the weights
    leave on a device, or 1 GiB if the device does not report its memory.

    Args:
      rows: of the transformer for each image: more than one for guidance.
    """
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    budget = HOST_BYTES if limit is None else (limit - weights) // 2
    most = MAX_IMAGES_PER_DEVICE.get(jax.default_backend(), 64)
    return 2 ** int(np.log2(np.clip(budget // bytes_per_image(config, rows), 1, most)))


def bytes_per_image(config: ModelConfig, rows: int) -> int:
    """Returns the bytes of an image's keys and values, and of its feature maps in the decoder.

    Args:
      rows: of the transformer for each image: two for guidance.
    """
    tokenizer = config.tokenizer
    height, width, _ = tokenizer.image_shape
    map_bytes = height * width * tokenizer.channels * jnp.dtype(tokenizer.dtype).itemsize
    image_bytes = DECODER_MAPS * map_bytes
    transformer = config.transformer
    if transformer is not None:
        token_bytes = 2 * transformer.depth * transformer.width
        token_bytes *= jnp.dtype(transformer.dtype).itemsize
        image_bytes += rows * transformer.scales.total * token_bytes
    return image_bytes
