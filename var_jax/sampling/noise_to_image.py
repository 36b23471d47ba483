"""Sampling from diffusion models as one compiled program, from noise to images."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from var_jax.config.model import ModelConfig
from var_jax.config.strict import require
from var_jax.models import flops, int8_weights
from var_jax.models.diffusion_transformer import DiffusionTransformer
from var_jax.models.latents import decode_latents
from var_jax.ops import diffusion_solvers, noise_schedule
from var_jax.ops.diffusion_solvers import ODE_SOLVERS, SOLVERS, Denoised
from var_jax.sampling.guidance import NegativeLabels, guide, guided_rows
from var_jax.sampling.image_keys import KeySource, as_keys
from var_jax.sampling.objective_sampler import ObjectiveSampler, Prepared, require_number
from var_jax.sampling.sampler import finished
from var_jax.sampling.settings import Settings

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, Key, UInt8

PICTURE_STEPS = 20  # of the samples that a training run shows


class DiffusionSamplerConfig(NamedTuple):
    """Settings that are compiled into the program.

    Attributes:
      solver: "euler", "heun" or "ancestral".
      steps: number of steps of the solver.
      guided: whether the unconditional branch is computed.
      as_uint8: whether images are rounded to uint8.
    """

    solver: str
    steps: int
    guided: bool
    as_uint8: bool = False


@functools.partial(jax.jit, static_argnames=("config", "sampler"))
def generate(
    config: ModelConfig,
    sampler: DiffusionSamplerConfig,
    weights: dict,
    labels: Int[Array, " b"],
    keys: Key[Array, " b"] | KeySource,
    cfg: Float[Array, ""] | float,
    *,
    negative: NegativeLabels | None = None,
) -> tuple[Float[Array, "b H W c"] | UInt8[Array, "b H W c"], None]:
    """Samples images for class labels.

    Args:
      weights: {"tokenizer": ..., "transformer": ...}.
      cfg: guidance strength t, the same at every step.
      negative: classes that guidance leads away from; None for "no class".
    Returns:
      images in [0, 1], and None in place of tokens.
    """
    transformer = config.transformer
    keys = as_keys(keys)

    def noise(number: Int[Array, ""] | int) -> jax.Array:
        """Returns standard normal numbers of every image; 0 is the first point's."""
        draws = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
        return jax.vmap(lambda key: jax.random.normal(key, transformer.latent_shape))(draws)

    network = _network(config, weights, labels, cfg, guided=sampler.guided, negative=negative)
    latents = _solve(transformer.prediction, sampler, network, noise)
    latents = DiffusionTransformer(transformer).apply(
        {"params": weights["transformer"]}, latents, method="denormalize"
    )
    images = decode_latents(config, weights["tokenizer"], latents)
    return finished(images, as_uint8=sampler.as_uint8), None


class Predicted(NamedTuple):
    """The network's prediction for a mixture.

    Attributes:
      output: the velocity or the noise, guided.
      variance_share: that of the conditional branch (`diffusion_solvers.Denoised`), or None.
    """

    output: Float[Array, "b h w c"]
    variance_share: Float[Array, "b h w c"] | None


Network = Callable[[jax.Array, jax.Array], Predicted]


def _network(
    config: ModelConfig,
    weights: dict,
    labels: Int[Array, " b"],
    cfg: Float[Array, ""] | float,
    *,
    guided: bool,
    negative: NegativeLabels | None = None,
) -> Network:
    """Returns the function from a mixture and the network's time input to its prediction."""
    transformer = config.transformer
    rows = guided_rows(labels, transformer.num_classes, negative) if guided else labels
    copies = len(rows) // len(labels)

    def network(mixture: jax.Array, time: jax.Array) -> Predicted:
        mixtures = jnp.tile(mixture, (copies, 1, 1, 1))
        times = jnp.full(len(mixtures), time)
        predicted = DiffusionTransformer(transformer).apply(
            {"params": weights["transformer"]}, mixtures, times, rows
        )
        output, share = predicted, None
        if transformer.learn_sigma:
            output, numbers = jnp.split(predicted, 2, axis=-1)
            share = (numbers[: len(labels)] + 1) / 2
        return Predicted(guide(output, cfg, negative) if guided else output, share)

    return network


def _solve(
    prediction: noise_schedule.Prediction,
    sampler: DiffusionSamplerConfig,
    network: Network,
    noise: Callable[[Any], jax.Array],
) -> Float[Array, "b h w c"]:
    """Returns normalized latents.

    Args:
      noise: the function from a number to standard normal noise; 0 is the first point's.
    """
    path = noise_schedule.sampling_path(prediction, sampler.steps)
    alphas, sigmas, times = (
        jnp.asarray(values, jnp.float32) for values in (path.alphas, path.sigmas, path.times)
    )
    first = noise(0)

    def velocity(point: jax.Array, time: jax.Array) -> jax.Array:
        mixture = point * noise_schedule.network_scale(prediction, time)
        output = network(mixture, noise_schedule.network_time(prediction, time)).output
        return noise_schedule.velocity_of(prediction, output, point, time)

    if sampler.solver in ODE_SOLVERS:
        start = first / noise_schedule.network_scale(prediction, times[0])
        return ODE_SOLVERS[sampler.solver](velocity, start, times)

    def denoise(mixture: jax.Array, number: jax.Array) -> Denoised:
        alpha, sigma = alphas[number], sigmas[number]
        predicted = network(mixture, noise_schedule.network_time(prediction, times[number]))
        data = (
            mixture + sigma * predicted.output
            if prediction == "velocity"
            else (mixture - sigma * predicted.output) / alpha
        )
        return Denoised(data, predicted.variance_share)

    return diffusion_solvers.ancestral(
        denoise, first, alphas, sigmas, lambda number: noise(number + 1)
    )


class DiffusionSampler(ObjectiveSampler):
    """Sampling from diffusion models, in steps from noise.

    The preset "fid" has the guidance 1.5 of DiT and SiT, which is t = 0.5 in this package's form,
    and Heun's method.
    """

    presets: ClassVar[dict[str, Settings]] = {"fid": {"cfg": 0.5, "steps": 50, "solver": "heun"}}
    program = staticmethod(generate)

    def prepare(self, config: ModelConfig, settings: Settings) -> Prepared:
        transformer = config.transformer
        require_number("cfg", settings["cfg"], transformer.objective)
        require_number("steps", settings["steps"], transformer.objective)
        steps, solver = int(settings["steps"]), settings["solver"]
        require(
            transformer.prediction != "epsilon" or steps <= noise_schedule.STEPS,
            "steps",
            steps,
            f"at most the {noise_schedule.STEPS} that a model of prediction 'epsilon' is trained "
            "on",
        )
        require(solver in SOLVERS, "solver", repr(solver), " or ".join(map(repr, SOLVERS)))
        guided = settings["cfg"] > 0
        compiled = DiffusionSamplerConfig(solver, steps, guided)
        return Prepared(compiled, np.float32(settings["cfg"]), guided)

    def generation_flops(self, config: ModelConfig, prepared: Prepared) -> float:
        return flops.generation_flops(
            config.transformer, guided=prepared.guided, evaluations=_evaluations(prepared)
        )

    def sequential_passes(self, config: ModelConfig, prepared: Prepared) -> int:
        return _evaluations(prepared)

    def generation_bytes(self, config: ModelConfig, prepared: Prepared, batch: int) -> int:
        """Returns the bytes of the network's weights, which every evaluation reads.

        Activations are not counted: they could stay on the chip.
        """
        c = config.transformer
        count = flops.param_count(c)
        elsewhere = count["total"] - count["body"] - (c.num_classes + 1) * c.width
        return _evaluations(prepared) * int8_weights.bytes_of(c, count["body"], elsewhere)

    def network_alone(
        self, config: ModelConfig, prepared: Prepared, weights: dict[str, Any], labels: jax.Array
    ) -> Callable[[], Any]:
        return functools.partial(
            _network_alone,
            config,
            weights,
            labels,
            guided=prepared.guided,
            evaluations=_evaluations(prepared),
        )

    def picture_settings(self, config: ModelConfig) -> Prepared:
        settings = {**self.presets["fid"], "steps": PICTURE_STEPS}
        return self.prepare(config, Settings(**settings))


def _evaluations(prepared: Prepared) -> int:
    return diffusion_solvers.evaluations(prepared.compiled.solver, prepared.compiled.steps)


@functools.partial(jax.jit, static_argnames=("config", "guided", "evaluations"))
def _network_alone(config: ModelConfig, weights, labels, *, guided: bool, evaluations: int):
    """Runs the network as many times as sampling does, without guidance or a solver.

    Each pass takes the prediction before, so that the compiler can leave none out.
    """
    network = _network(config, weights, labels, 0.0, guided=guided)

    def step(latents, time):
        return network(latents, time).output, None

    start = jnp.ones((len(labels), *config.transformer.latent_shape))
    return jax.lax.scan(step, start, jnp.linspace(0, noise_schedule.STEPS, evaluations))[0]
