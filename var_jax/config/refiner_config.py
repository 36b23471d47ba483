"""The config of a logit refiner: a few causal blocks on a frozen model of next-scale prediction."""

import dataclasses

from var_jax.config.scales import Scales
from var_jax.config.strict import require
from var_jax.config.transformer_config import TransformerConfig


@dataclasses.dataclass(frozen=True)
class RefinerConfig:
    """A logit refiner (arXiv 2609.11804): the tokens of a scale are sampled one after the other.

    Attributes:
      base: model directory or workdir of the frozen model whose logits are refined; its sizes
        replace the sections `tokenizer` and `transformer`.
      depth: causal blocks.
      width: their width, 0 for the model's; a multiple of the width of its attention heads.
      last_scale: the last scale that is refined, counted from 0; the finer ones are sampled at once
        from the model's own logits. -1 for all.
    """

    base: str = ""
    depth: int = 2
    width: int = 0
    last_scale: int = -1

    def __post_init__(self):
        require(self.depth >= 1, "refiner.depth", self.depth, "at least 1")
        require(self.width >= 0, "refiner.width", self.width, "0 (the model's) or more")
        require(
            self.last_scale >= -1,
            "refiner.last_scale",
            self.last_scale,
            "a scale counted from 0, or -1 for all",
        )

    def check(self, model: TransformerConfig):
        """Raises UserError unless the refiner fits a model."""
        require(
            model.objective == "next_scale",
            "transformer.objective of a refiner's model",
            repr(model.objective),
            "'next_scale': the others have no scales whose tokens are sampled at once",
        )
        require(
            self.width % model.head_dim == 0,
            "refiner.width",
            self.width,
            f"a multiple of {model.head_dim}, the width of the model's attention heads",
        )
        finest = len(model.scales) - 1
        require(
            self.last_scale <= finest,
            "refiner.last_scale",
            self.last_scale,
            f"a scale of {model.scales}, counted from 0: at most {finest}",
        )

    def scales(self, model: TransformerConfig) -> Scales:
        """Returns the leading scales of a model that are refined."""
        stop = len(model.scales) if self.last_scale < 0 else self.last_scale + 1
        return Scales(model.scales.sizes[:stop])

    def blocks(self, model: TransformerConfig) -> TransformerConfig:
        """Returns the sizes of the blocks: those of next-token prediction within a scale.

        They have no AdaLN, as the model's hidden states hold the class.
        """
        width = self.width or model.width
        longest = self.scales(model).lengths[-1]
        return TransformerConfig(
            objective="next_token",
            depth=self.depth,
            width=width,
            heads=width // model.head_dim,
            num_classes=model.num_classes,
            vocab_size=model.vocab_size,
            z_channels=model.z_channels,
            scales=Scales(((1, longest),)),
            mlp_ratio=model.mlp_ratio,
            qk_norm=model.qk_norm,
            class_conditioning="start_token",
            attention="xla",  # tiles of fused kernels are larger than a scale
            remat=model.remat.partition(":")[0],  # a model's part of the blocks is not a refiner's
            dtype=model.dtype,
            param_dtype=model.float_param_dtype,
            gradient_dtype=model.gradient_dtype,
        )
