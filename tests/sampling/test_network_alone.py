"""The network without the rest of sampling, which `var-jax bench sample` times by itself."""

import jax
import jax.numpy as jnp
import pytest

from helpers import diffusion, masked, next_token
from helpers.traced import product_flops
from var_jax.models import flops
from var_jax.sampling import sampler_registry

MODELS = {
    "next_token": next_token.pipeline,
    "masked": masked.pipeline,
    "diffusion": diffusion.pipeline,
}
BATCH = 3


@pytest.mark.parametrize("cfg", [0, 1.0])
@pytest.mark.parametrize("objective", MODELS)
def test_network_alone_computes_the_flops_of_generation(objective, cfg):
    """Every product of its traced program, guidance's rows among them, is what `flops` counts for a
    batch. A cached pass over one token multiplies all n positions of the cache, so that next-token
    prediction attends to (n - 1) n pairs after the first token's one."""
    model = MODELS[objective]()
    config, sampler = model.config, sampler_registry.find(model.config)
    chosen = {"cfg": cfg, **({} if objective == "next_token" else {"steps": 3})}
    prepared = sampler.prepare(config, model.sampling_settings(**chosen))
    labels = jnp.arange(BATCH, dtype=jnp.int32)
    run = sampler.network_alone(config, prepared, model.params, labels)
    jax.block_until_ready(run())

    expected = sampler.generation_flops(config, prepared)
    if objective == "next_token":
        n = config.tokenizer.scales.total
        pairs = 1 + (n - 1) * n
        expected = flops.forward_flops(config.transformer, attended_pairs=pairs) * (2 if cfg else 1)
    assert product_flops(jax.make_jaxpr(run)().jaxpr) == BATCH * expected
