"""Seeded weights for the keys and shapes of a state dict, scaled so that activations neither vanish
nor blow up."""

import numpy as np


def state_dict(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """Returns weights, every key from a stream of its own; normal weights of deviation sqrt(2 /
    inputs)."""
    state = {}
    for i, (key, shape) in enumerate(shapes.items()):
        random = np.random.RandomState([seed, i])
        if key.endswith("num_batches_tracked"):
            array = np.zeros((), np.int64)
        elif key.endswith("running_var") or (len(shape) == 1 and key.endswith("weight")):
            array = random.uniform(0.5, 1.5, shape)
        elif len(shape) == 1:
            array = 0.1 * random.standard_normal(shape)
        else:
            array = random.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        state[key] = array if array.dtype == np.int64 else array.astype(np.float32)
    return state
