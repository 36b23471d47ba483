"""Which parts of the frozen tokenizer a transformer's run has on its devices, and when."""

from collections.abc import Mapping
from typing import Any

from var_jax.config.train import TrainConfig

TEACHER = ("quantize",)  # makes the transformer's input of tokens
ENCODER = ("encoder", "quant_conv", "quantize")
DECODER = ("decoder", "post_quant_conv", "quantize")


def used_in_steps(config: TrainConfig, params: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a tokenizer's parameters that training and evaluation steps use.

    From a token cache these are the codes alone; images are encoded too. Only pictures need the
    decoder, half of the weights and more, which lie on the host until one is drawn.
    """
    names = TEACHER if config.data.tokens_dir else ENCODER
    return {name: params[name] for name in names}
