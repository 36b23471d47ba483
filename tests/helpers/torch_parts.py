"""A small model in the published format: its sizes and random parameters."""

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from var_jax.config.model import TokenizerConfig, TransformerConfig
from var_jax.config.scales import Scales
from var_jax.io import torch_convert
from var_jax.io.torch_keys import abstract

SCALES = Scales.parse("1,2,3")
TOKENIZER = TokenizerConfig(
    scales=SCALES, channels=32, multipliers=(1, 2), z_channels=8, vocab_size=16, blocks=1, phi=2
)
TRANSFORMER = TransformerConfig(
    depth=2, width=24, heads=3, num_classes=5, vocab_size=16, z_channels=8, scales=SCALES
)


def random_params(config: TokenizerConfig | TransformerConfig) -> dict:
    """Returns normal parameters of a part of a model, the same for the same sizes."""
    random = np.random.RandomState(0)
    return unflatten_dict(
        {
            path: random.standard_normal(leaf.shape).astype(np.float32)
            for path, leaf in abstract(config).items()
        },
        sep="/",
    )


def transformer_state(config: TransformerConfig = TRANSFORMER) -> dict:
    """Returns a transformer's random parameters under the published keys."""
    return torch_convert.part_to_torch(config, random_params(config))


def assert_same(actual: dict, expected: dict):
    """Asserts that two trees have the same names and values, whatever their dtypes."""
    actual, expected = (flatten_dict(tree, sep="/") for tree in (actual, expected))
    assert actual.keys() == expected.keys()
    for name, array in actual.items():
        np.testing.assert_array_equal(array, expected[name])
