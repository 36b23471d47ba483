"""Adapters of one frozen model with their weights, merged from that model each time."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from var_jax.adapters import base_check, class_rows, lora, targets
from var_jax.adapters.adapter_file import Adapter
from var_jax.config.model import ModelConfig
from var_jax.config.strict import require
from var_jax.data.model_fingerprint import model_fingerprint
from var_jax.errors import UserError
from var_jax.io.finite import require_finite


class Link(NamedTuple):
    """An adapter in a chain.

    Attributes:
      weights: the weights that it was added with, whose sum counts.
    """

    adapter: Adapter
    weights: tuple[float, ...]

    @property
    def weight(self) -> float:
        """The sum of the weights, rounded once, so that w and -w cancel to the last bit."""
        return math.fsum(self.weights)


class MergedModel(NamedTuple):
    """A model's config, its parameters, {"tokenizer", "transformer"}, and its class names by id."""

    config: ModelConfig
    params: dict[str, Any]
    class_names: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Chain:
    """A frozen model, and the adapters that were added to it.

    Attributes:
      config: the frozen model's config.
      params: its parameters, {"tokenizer", "transformer"}.
      class_names: its class names by id; may be empty.
      fingerprint: its fingerprint.
      links: the adapters in the order in which they were added, each once.
    """

    config: ModelConfig
    params: dict[str, Any]
    class_names: tuple[str, ...]
    fingerprint: str
    links: tuple[Link, ...] = ()

    @classmethod
    def of(cls, config: ModelConfig, params: dict[str, Any], class_names: tuple[str, ...]) -> Chain:
        """Returns the chain of a model without adapters."""
        fingerprint = model_fingerprint(config, params)
        return cls(config, params, class_names, fingerprint)

    def adding(self, adapter: Adapter, weight: float) -> Chain:
        """Returns the chain with an adapter added; one that it has already adds its weight.

        Raises:
          UserError: the adapter is of another base, its weight is not finite, or a new class has
            the name of another.
        """
        transformer = self.config.transformer
        if transformer is None:
            raise UserError("the model is a tokenizer alone; adapters change a transformer")
        if self.config.refiner is not None:
            raise UserError(
                "the model has a refiner, which was trained on it without adapters; leave one out"
            )
        base_check.require_fits(adapter, transformer, self.fingerprint)
        weight = checked_weight(weight, adapter.source)
        for i, link in enumerate(self.links):
            if link.adapter.identity == adapter.identity:
                longer = link._replace(weights=(*link.weights, weight))
                return dataclasses.replace(
                    self, links=(*self.links[:i], longer, *self.links[i + 1 :])
                )
        adapters = [*(link.adapter for link in self.links), adapter]
        extended_names(self.class_names, transformer.num_classes, adapters)  # refuses equal names
        return dataclasses.replace(self, links=(*self.links, Link(adapter, (weight,))))

    def without(self, adapter: Adapter) -> Chain:
        """Returns the chain without an adapter.

        Raises:
          UserError: the chain does not have it.
        """
        links = [link for link in self.links if link.adapter.identity != adapter.identity]
        if len(links) == len(self.links):
            raise UserError(f"the model has no adapter of {adapter.source} that could be removed")
        return dataclasses.replace(self, links=tuple(links))

    def merged(self) -> MergedModel:
        """Returns the model with its adapters merged in.

        Parameters that no adapter changes are those of the frozen model themselves.

        Raises:
          UserError: a merged parameter is not finite.
        """
        transformer = self.config.transformer
        assert transformer is not None  # `adding` asks for it
        changed = {**self._linears(), **self._class_table()}
        require_finite(changed.items(), "the model with its adapters")
        leaves = flatten_dict(self.params["transformer"], sep="/")
        leaves |= {path: jnp.asarray(leaf) for path, leaf in changed.items()}
        params = {**self.params, "transformer": unflatten_dict(leaves, sep="/")}
        adapters = [link.adapter for link in self.links]
        new = sum(len(adapter.config.class_names) for adapter in adapters)
        extended = dataclasses.replace(transformer, num_classes=transformer.num_classes + new)
        names = self.class_names
        if new:
            names = extended_names(names, transformer.num_classes, adapters)
        return MergedModel(dataclasses.replace(self.config, transformer=extended), params, names)

    def _linears(self) -> dict[str, np.ndarray]:
        """Returns the kernels that LoRA changes, by their paths.

        They do not depend on the order in which adapters were added.
        """
        transformer = self.config.transformer
        assert transformer is not None
        leaves = flatten_dict(self.params["transformer"], sep="/")
        active = [link for link in self.links if link.weight]
        kernels: dict[str, targets.Target] = {}
        changes: dict[str, list[lora.Change]] = {}
        for link in sorted(active, key=lambda link: link.adapter.identity):
            config, params = link.adapter.config, link.adapter.params
            for name, target in targets.find(transformer, config.target_names).items():
                factors = params["lora"][name]
                change = lora.Change(link.weight * config.scale, factors["a"], factors["b"])
                kernels[target.path] = target
                changes.setdefault(target.path, []).append(change)
        return {
            path: lora.merge(target, np.asarray(leaves[path]), changes[path])
            for path, target in kernels.items()
        }

    def _class_table(self) -> dict[str, np.ndarray]:
        """Returns the class table with the rows of new classes; nothing without these."""
        table = np.asarray(self.params["transformer"]["class_embed"])
        rows = []
        for link in self.links:
            if link.adapter.config.class_names:
                starts = class_rows.start_rows(table, link.adapter.starts).astype(np.float64)
                learned = link.adapter.params["class_rows"].astype(np.float64)
                rows.append(starts + link.weight * learned)
        if not rows:
            return {}
        new = np.concatenate(rows).astype(np.float32)
        return {"class_embed": class_rows.merge(table, new)}


def extended_names(
    class_names: Sequence[str], num_classes: int, adapters: Sequence[Adapter]
) -> tuple[str, ...]:
    """Returns the class names of a model with adapters; classes without a name have their ids.

    Args:
      class_names: the names of the frozen model's classes, by id; may be empty.
      num_classes: their number.
    Raises:
      UserError: two classes would have one name.
    """
    names = list(class_names[:num_classes])
    names += map(str, range(len(names), num_classes))
    for adapter in adapters:
        for name in adapter.config.class_names:
            require(
                name not in names,
                f"a new class of the adapter in {adapter.source}",
                repr(name),
                "the name of no other class of the model",
            )
            names.append(name)
    return tuple(names)


def checked_weight(weight: Any, source: str) -> float:
    """Returns an adapter's weight as a float.

    Raises:
      UserError: it is not a finite number, or larger than float32's.
    """
    try:
        value = float(weight)
    except (TypeError, ValueError):
        value = math.nan
    require(
        abs(value) <= float(np.finfo(np.float32).max),
        f"the weight of the adapter in {source}",
        repr(weight),
        "a finite number",
    )
    return value
