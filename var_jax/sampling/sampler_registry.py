"""The sampler of each objective, by `transformer.objective`."""

from var_jax.config.model import ModelConfig
from var_jax.config.objective_keys import entry_of
from var_jax.sampling.by_confidence import MaskedSampler
from var_jax.sampling.noise_to_image import DiffusionSampler
from var_jax.sampling.objective_sampler import ObjectiveSampler
from var_jax.sampling.scale_by_scale import NextScaleSampler
from var_jax.sampling.token_by_token import NextTokenSampler

SAMPLERS: dict[str, ObjectiveSampler] = {
    "next_scale": NextScaleSampler(),
    "next_token": NextTokenSampler(),
    "masked": MaskedSampler(),
    "diffusion": DiffusionSampler(),
}


def find(config: ModelConfig) -> ObjectiveSampler:
    """Returns the sampler of a model's objective.

    Raises:
      UserError: this version has no such objective.
    """
    return entry_of(SAMPLERS, config.transformer.objective)
