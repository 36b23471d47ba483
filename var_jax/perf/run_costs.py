"""The costs of a run before it starts: memory, FLOPs, hours, disk, and the losses to expect.

FLOPs and parameters are exact; memory is an estimate from shapes (`train.memory_estimate`), and
hours follow from an assumed utilization of the chips.
"""

import collections
import dataclasses
from typing import Any

import jax
from etils import epath

from var_jax.config import idle_keys
from var_jax.config.model import ModelConfig
from var_jax.config.train import TrainConfig
from var_jax.data import token_manifest
from var_jax.devices.chips import Chip
from var_jax.models import flops
from var_jax.objectives import registry
from var_jax.objectives.base import Objective
from var_jax.perf import aot
from var_jax.sampling import sampler_registry
from var_jax.scaling import published_log
from var_jax.train import memory_estimate, memory_rule, mesh_choice
from var_jax.train.memory_estimate import TrainingMemory

DTYPES = ("float32", "bfloat16")
# Training images of data sets that are the same everywhere.
TRAINING_IMAGES = {
    "digits": 1437,
    "fashion_mnist_idx": 60_000,
    "imagenet2012": published_log.IMAGES,
}


@dataclasses.dataclass(frozen=True)
class Described:
    """A device that need not be there: what the choice of a mesh reads of a `jax.Device`."""

    id: int
    slice_index: int
    process_index: int = 0
    platform: str = "gpu"  # placed by their numbers alone, without a network to look up


def report(
    config: TrainConfig, chip: Chip | None, count: int, mfu: float, images: int | None = None
) -> dict[str, Any]:
    """Returns what a run costs, as plain values for JSON.

    Args:
      config: the run's, with the sizes of its tokenizer and data.
      chip: None for no chip: memory is that of one device, and there are no hours.
      count: number of chips.
      mfu: share of the chips' peak that training reaches.
      images: training images of an epoch; by default those of the token cache, or of a data set
        whose number is known.

    Raises:
      UserError: a key has no effect, or no mesh of the chips divides the batch.
    """
    idle_keys.refuse(config)
    objective = registry.with_frozen_shapes(config)
    slices, number = config.mesh.slices, count * (chip.devices_per_chip if chip else 1)
    devices: Any = [Described(i, i * slices // number) for i in range(number)]
    mesh = dict(mesh_choice.choose(objective, devices).mesh.shape) if chip else _ONE
    platform, budget = (chip.platform, chip.usable_bytes) if chip else ("cpu", None)
    settings = memory_rule.choose(objective, mesh, platform, budget)
    objective = memory_rule.with_settings(objective, settings)
    figures: dict[str, Any] = {
        "stage": config.stage,
        "model": _model(objective),
        "params": objective.param_count(),
        "trainable": config.trainable,
        "images": config.batch_size,
        "steps": config.steps,
        "mesh": mesh,
        "policy": settings.policy,
        "replicas": mesh.get("replica", 1),
        "devices": number,
        "uncounted_networks": _has_uncounted_networks(objective),
        **_work(objective),
    }
    if chip is not None:
        figures |= {
            "chip": chip.name,
            "platform": platform,
            "hbm_bytes": chip.hbm_bytes,
            "usable_bytes": budget,
        }
        figures |= _times(figures, chip, count, mfu)
    memories = {
        dtype: memory_estimate.of_training(objective, mesh, platform, dtype) for dtype in DTYPES
    }
    figures |= _training(objective, memories, budget)
    if registry.leaves_generator(config):
        figures["sampling"] = {dtype: _sampling(objective, mesh, dtype, budget) for dtype in DTYPES}
    epoch = images or _training_images(config)
    figures |= _disk(objective, epoch)
    figures |= {"epoch_images": epoch}
    if epoch:
        figures["epochs"] = config.steps * config.batch_size / epoch
    return figures | _expected(config)


_ONE = {"data": 1, "model": 1}


def _model(objective: Objective[Any]) -> str:
    """Returns what is trained in a few words."""
    config = objective.config
    transformer = config.transformer if objective.generates else None
    kind = transformer.objective if transformer is not None else ""
    return ", ".join(filter(None, (config.stage, kind, objective.summary())))


def _has_uncounted_networks(objective: Objective[Any]) -> bool:
    """Returns whether a step computes networks that FLOPs leave out: those of losses."""
    further = jax.eval_shape(objective.further_networks, jax.random.key(0))
    of_losses = jax.tree.leaves(objective.step_frozen()) and not objective.encodes_images
    return bool(further or of_losses)


def _work(objective: Objective[Any]) -> dict[str, Any]:
    """Returns FLOPs per image and step, those of the whole run, and those of generating an image.

    `flops` is that of a step with all parts of the run, as `aot` has it; the whole run counts its
    smaller steps (progressive training) as such, and without the steps of a run it branches from.
    `generation_flops` includes the tokenizer's decoder, which `var-jax compare` leaves out.
    """
    config = objective.config
    own_steps = range(config.branch_step, config.steps)
    variants = collections.Counter(map(objective.variant, own_steps))
    per_image = sum(objective.flops_per_image(one) * count for one, count in variants.items())
    encoded = memory_estimate.encodes(objective)
    encoding = flops.encode_flops(config.tokenizer) * config.batch_size if encoded else 0.0
    figures = {
        "tokens_per_image": objective.scales().total,
        "flops_per_image": objective.flops_per_image(),
        "flops": objective.flops_per_image() * config.batch_size,
        "train_flops": per_image * config.batch_size,
        "encoding_flops": encoding,
        "train_encoding_flops": encoding * len(own_steps),
    }
    if registry.leaves_generator(config):
        model = ModelConfig(config.tokenizer, config.transformer)
        sampler = sampler_registry.find(model)
        prepared = sampler.benchmark_settings(model, aot.CFG)
        decoding = flops.decode_flops(config.tokenizer)
        figures["generation_flops"] = sampler.generation_flops(model, prepared) + decoding
    return figures


def _times(figures: dict[str, Any], chip: Chip, count: int, mfu: float) -> dict[str, float]:
    """Returns hours of the run, encoding included; evaluations and pictures are not counted."""
    rate = chip.peak_flops * chip.devices_per_chip * mfu * 3600
    chip_hours = (figures["train_flops"] + figures["train_encoding_flops"]) / rate
    return {
        "mfu": mfu,
        "hours": chip_hours / count,
        "chip_hours": chip_hours,
        "encoding_chip_hours": figures["train_encoding_flops"] / rate,
        "step_seconds": 3600 * (figures["flops"] + figures["encoding_flops"]) / (rate * count),
    }


def _training(
    objective: Objective[Any], memories: dict[str, TrainingMemory], budget: float | None
) -> dict[str, Any]:
    """Returns the memory of training by dtype and policy, and whether the run itself fits."""
    config, model = objective.config, objective.model
    own = memories[model.dtype]
    training: dict[str, Any] = {}
    for dtype, memory in memories.items():
        values = memory_estimate.remat_values(objective)
        training[dtype] = {remat: _fit(memory, remat, config, budget) for remat in values}
    figures = {
        "dtype": model.dtype,
        "remat": model.remat,
        "microbatches": config.microbatches,
        "peak_bytes": own.peak(model.remat, config.batch_size, config.microbatches),
        "state_bytes": own.state,
        "frozen_bytes": own.frozen,
        "gradient_bytes": own.gradients,
        "encoding_bytes": own.encoded * config.batch_size / own.devices,
        "training": training,
    }
    if budget is None:
        return figures
    fitting = [remat for remat, fit in training[model.dtype].items() if fit["fits"]]
    figures["fits"] = figures["peak_bytes"] <= budget
    figures["least_remat"] = fitting[0] if fitting else None
    if not figures["fits"]:
        figures["would_help"] = _advice(objective, own, budget)
    return figures


def _fit(
    memory: TrainingMemory, remat: str, config: TrainConfig, budget: float | None
) -> dict[str, Any]:
    peak = memory.peak(remat, config.batch_size, config.microbatches)
    if budget is None:
        return {"peak_bytes": peak}
    most = memory.most_images(remat, budget, config.microbatches)
    return {"peak_bytes": peak, "fits": peak <= budget, "most_images": most}


def _advice(objective: Objective[Any], memory: TrainingMemory, budget: float) -> list[str]:
    """Returns the settings that would make a run fit, the smallest change first."""
    config, section = objective.config, objective.section
    choices = memory_estimate.remat_values(objective)
    advice = []
    for remat in choices:  # the run's own value, and what keeps more, takes more than there is
        if memory.peak(remat, config.batch_size, config.microbatches) <= budget:
            advice.append(f"{section}.remat={remat}")
            break
    rows = config.batch_size // memory.parts
    for parts in range(config.microbatches + 1, rows + 1):
        fits = memory.peak(choices[-1], config.batch_size, parts) <= budget
        if rows % parts == 0 and fits:
            advice.append(f"{section}.remat={choices[-1]} with microbatches={parts}")
            break
    without = dataclasses.replace(memory, encoded=0.0)
    cached = memory.encoded and without.peak(choices[-1], config.batch_size, config.microbatches)
    if cached and cached <= budget:
        advice.append(
            f"{section}.remat={choices[-1]} with a token cache (data.tokens_dir): encoding takes "
            "the most"
        )
    if most := memory.most_images(choices[-1], budget):
        advice.append(f"batch_size={most} with {section}.remat={choices[-1]}, or more chips")
    return advice or ["more chips, or chips with more memory"]


def _sampling(
    objective: Objective[Any], mesh: dict[str, int], dtype: str, budget: float | None
) -> dict[str, Any]:
    memory = memory_estimate.of_sampling(objective, mesh, dtype)
    figures: dict[str, Any] = {
        "weights_bytes": memory.weights,
        "image_bytes": memory.image,
        "images_per_device": aot.SAMPLES_PER_DEVICE,
        "peak_bytes": memory.peak(aot.SAMPLES_PER_DEVICE),
    }
    if budget is not None:
        figures["most_images_per_device"] = memory.most_images(budget)
    return figures


def _training_images(config: TrainConfig) -> int | None:
    if config.data.tokens_dir:
        manifest = token_manifest.read_manifest(epath.Path(config.data.tokens_dir))
        return manifest.train.images if manifest.train else None
    return TRAINING_IMAGES.get(config.data.name) if config.data.train_split == "train" else None


def _disk(objective: Objective[Any], epoch: int | None) -> dict[str, Any]:
    """Returns the bytes of a checkpoint, and of a token cache with one view of the images."""
    config = objective.config
    figures: dict[str, Any] = {
        "checkpoint_bytes": memory_estimate.state_bytes(objective, _ONE),
        "keep_checkpoints": config.keep_checkpoints,
    }
    if objective.reads_tokens and epoch:
        itemsize = token_manifest.token_dtype(config.tokenizer.vocab_size).itemsize
        record = token_manifest.LABEL.itemsize + itemsize * config.tokenizer.scales.total
        figures["token_cache_bytes_per_view"] = epoch * record
    return figures


def _expected(config: TrainConfig) -> dict[str, Any]:
    """Returns the rows of the published log, or why the run's losses cannot be compared with it."""
    if not registry.leaves_generator(config) or config.transformer is None:
        return {"expected": None}
    if reason := published_log.difference(config.transformer):
        return {"expected": None, "not_comparable": reason}
    return {
        "expected": {
            "training": [{**row._asdict(), "passes": row.passes} for row in published_log.TRAINING],
            "validation": [row._asdict() for row in published_log.VALIDATION],
            "caveats": published_log.caveats(config),
        }
    }
