"""Held-out metrics and sample pictures during training."""

import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from PIL import Image

from var_jax.config.train import TrainConfig
from var_jax.devices import sharding
from var_jax.devices.preemption import Preemption
from var_jax.io import pictures
from var_jax.models.tokenizer import Tokenizer
from var_jax.objectives import losses
from var_jax.objectives.frozen_networks import Networks
from var_jax.objectives.step import make_eval_step
from var_jax.ops import codebook
from var_jax.sampling import sampler
from var_jax.train import frozen_parts
from var_jax.train.batches import Inputs

PICTURE_ROWS = 4

log = logging.getLogger(__name__)


class Evaluator:
    """The held-out split of a run, and what is measured on it.

    Args:
      frozen: what the steps use of the weights that are not trained, on the devices.
      tokenizer: all parameters of the tokenizer that a transformer learns from, on the host; what
        only pictures need of them is placed while one is drawn.
      preemption: ends every method with `StopRequested` when a host is told to stop: between batches, and
        while a program is compiled. None in a process that nobody tells.
    """

    def __init__(
        self,
        config: TrainConfig,
        networks: Networks,
        frozen: Any,
        data: Inputs,
        replicated: NamedSharding,
        tokenizer: Any = None,
        preemption: Preemption | None = None,
    ):
        self.config, self.frozen, self.data = config, frozen, data
        self._tokenizer, self._preemption, self._replicated = tokenizer, preemption, replicated
        self._programs: dict[str, jax.stages.Compiled] = {}
        # Every host reads what comes out, so it lies whole on each of them.
        self.step = jax.jit(make_eval_step(config, networks), out_shardings=replicated)
        self.whole = jax.jit(lambda x: x, out_shardings=replicated)
        self.reconstruct = jax.jit(
            functools.partial(_reconstruct, config), out_shardings=replicated
        )

    def metrics(self, params: Any) -> dict[str, Any]:
        """Means over the held-out images; a tokenizer's code usage and perplexity over all of
        them."""
        sums = None
        for batch in self.data.held_out():
            arguments = params, self.data.on_devices(batch), self.frozen
            program = self._compiled("step", lambda: self.step.lower(*arguments))  # noqa: B023 - asked for at once
            parts = jax.tree.map(np.asarray, program(*arguments))
            self._check()
            sums = parts if sums is None else jax.tree.map(np.add, sums, parts)
        count = int(sums.pop("images"))
        counts = sums.pop("code_counts", None)
        means = {name: (value / count).tolist() for name, value in sums.items()}
        if counts is not None:
            means |= code_metrics(counts)
            _warn_of_collapse(self.config, counts)
        else:
            means = {"loss": means["loss_mean"], **means}
        return {**means, "images": count}

    def picture(self, params: Any) -> Image.Image:
        """Originals over reconstructions, or samples with one class a column."""
        columns = self.config.sample_classes
        if self.config.stage == "tokenizer":
            batch = self.data.on_devices(next(self.data.held_out()))
            images, mask = map(np.asarray, self.whole((batch["image"], batch["mask"])))
            program = self._compiled(
                "reconstruct", lambda: self.reconstruct.lower(params, batch["image"])
            )
            rec = np.asarray(program(params, batch["image"]))
            shown = np.flatnonzero(mask)[:columns]
            return pictures.grid(
                np.concatenate([images[shown] / 255, rec[shown]]), columns=len(shown)
            )
        columns = min(columns, len(self.data.class_names))  # classes beyond the data have no title
        labels = np.tile(np.arange(columns, dtype=np.int32), PICTURE_ROWS)
        keys = sampler.image_keys(self.config.seed, np.arange(len(labels), dtype=np.uint32))
        static = sampler.Static(top_k=0, use_top_p=True, guided=True)
        arguments = self._model(params), labels, keys, sampler.Dynamic(1.5, 0.96, 1.0)
        program = self._compiled(
            "sampler", lambda: sampler.generate.lower(self.config.model, static, *arguments)
        )
        images, _ = program(*arguments)
        names = self.data.class_names
        titles = [pictures.title(names[i], str(i)) for i in labels[:columns]]
        return pictures.grid(np.asarray(self.whole(images)), columns=columns, titles=titles)

    def _model(self, params: Any) -> dict[str, Any]:
        """Parameters of the whole model: of its tokenizer, the parts that turn tokens into
        images."""
        held = {
            name: self._tokenizer[name] for name in frozen_parts.DECODER if name not in self.frozen
        }
        decoder = sharding.place(held, jax.tree.map(lambda _: self._replicated, held))
        return {"tokenizer": {**self.frozen, **decoder}, "transformer": params}

    def _compiled(self, name: str, lower: Callable[[], jax.stages.Lowered]) -> jax.stages.Compiled:
        """A program of this run, compiled when it is first asked for."""
        if name not in self._programs:
            lowered = lower()
            self._programs[name] = (
                self._preemption.compile(lowered) if self._preemption else lowered.compile()
            )
        return self._programs[name]

    def _check(self):
        if self._preemption is not None:
            self._preemption.check()


def _warn_of_collapse(config: TrainConfig, counts: np.ndarray):
    """Names every scale whose codes have collapsed: it carries next to nothing of the image any
    more.

    Every process computes it and one tells: under a mesh, what one of them computed alone would
      wait for the others.
    """
    for k in codebook.collapsed(counts, config.codebook.collapse_share):
        height, width = config.tokenizer.scales.sizes[k]
        used, share = int(codebook.used(counts[k])), float(codebook.perplexity(counts[k]))
        if jax.process_index() == 0:
            log.warning(
                "scale %dx%d has collapsed: %d of %d codes are used, with a perplexity of %.1f",
                height,
                width,
                used,
                counts.shape[1],
                share,
            )


def code_metrics(counts: np.ndarray) -> Mapping[str, Any]:
    """From (K, V) counts: the share of the vocabulary used and the perplexity, a scale and over all
    scales."""
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    total = counts.sum(axis=0)
    return {
        "code_usage": (counts > 0).mean(axis=1).tolist(),
        "code_usage_all": float((total > 0).mean()),
        "perplexity": [perplexity(p) for p in share],
        "perplexity_all": perplexity(total / max(total.sum(), 1)),
    }


def perplexity(p: np.ndarray) -> float:
    return float(np.exp(-np.sum(p * np.log(np.where(p > 0, p, 1)))))


def _reconstruct(config: TrainConfig, params: Any, images: jax.Array) -> jax.Array:
    """Reconstructions in [0, 1] of uint8 images."""
    model = Tokenizer(config.tokenizer)
    signal = sharding.constrain(losses.to_signal(images), "images", None, None, None)
    tokens = model.apply({"params": params}, signal, method="encode")
    return (model.apply({"params": params}, tokens, method="decode") + 1) / 2
