"""Next-scale prediction without AdaLN, which knows the class by its first tokens alone."""

import dataclasses

import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from helpers import small
from var_jax.io.torch_keys import abstract
from var_jax.models import flops
from var_jax.models.transformer import Transformer

LABELS = np.array([3, 7])


def test_start_token_is_the_only_trace_of_the_class():
    """With plain LayerNorm there are no modulations among the parameters, the class moves logits
    through the first scale alone, and the counts are those of the parameters."""
    changes = {"class_conditioning": "start_token", "mask": "block_diagonal"}
    config = dataclasses.replace(small.TRANSFORMER, **changes)
    shapes = abstract(config)
    assert not any("ada" in path for path in shapes)
    assert shapes["head_norm"].shape == (2, 16) and shapes["blocks/norms"].shape == (2, 4, 16)
    total = sum(int(np.prod(leaf.shape)) for leaf in shapes.values())
    assert flops.param_count(config)["total"] == total

    random = np.random.default_rng(0)
    params = {path: random.normal(size=leaf.shape) for path, leaf in shapes.items()}
    inputs = random.normal(size=(2, config.scales.total - 1, config.z_channels))
    apply = jax.jit(Transformer(config).apply)
    variables = {"params": unflatten_dict(params, sep="/")}
    before, after = (np.asarray(apply(variables, inputs, LABELS + more)) for more in (0, 1))
    changed = np.abs(before - after).max(axis=(0, 2)) > 0
    assert changed[:1].all() and not changed[1:].any()
