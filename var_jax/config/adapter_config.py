"""The config of an adapter: a small trained change of a frozen model."""

import csv
import dataclasses
from typing import Literal

from var_jax.config.strict import require
from var_jax.errors import UserError, did_you_mean

# Linears of the transformer that LoRA can change (`adapters.targets` has their parameters).
TARGETS = ("qkv", "proj", "fc1", "fc2", "ada", "head_ada", "head")
MEAN = "mean"  # the start of a new class's row that is the mean of the model's classes


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """An adapter of a frozen model: LoRA (arXiv 2106.09685), rows of new classes, or both.

    Attributes:
      base: model directory or workdir of the model that is adapted; its sizes replace the sections
        `tokenizer` and `transformer`.
      kind: "lora" changes linears, and learns a row for each of `classes`; "class_rows" learns only
        these rows, as textual inversion does (arXiv 2208.01618).
      rank: rank of LoRA's change of a linear.
      alpha: strength of LoRA's change, which is alpha / rank times the product of its factors.
      targets: linears that LoRA changes, with commas between them: "qkv", "proj" (attention),
        "fc1", "fc2" (MLP), "ada" (AdaLN of the blocks), "head_ada" and "head".
      classes: names of new classes, with commas between them; a name with a comma goes in double
        quotes. All other classes of the data must be classes of the model.
      start: the class, by name or id, whose row a new class's row starts from, or "mean" for the
        mean of all classes; one for all new classes, or one for each.
      cfg: guidance, written as `--cfg` of sampling, whose results the adapter learns to give in one
        pass, without guidance (`objectives.guidance_distillation`); "" for the frozen model's own
        objective.
    """

    base: str = ""
    kind: Literal["lora", "class_rows"] = "lora"
    rank: int = 8
    alpha: float = 8.0
    targets: str = "qkv,proj,fc1,fc2"
    classes: str = ""
    start: str = MEAN
    cfg: str = dataclasses.field(default="", repr=False)  # earlier adapters keep their identity

    def __post_init__(self):
        require(self.rank >= 1, "adapter.rank", self.rank, "at least 1")
        require(self.alpha > 0, "adapter.alpha", self.alpha, "positive")
        names = split_names(self.targets)
        for name in names:
            if name not in TARGETS:
                raise UserError(f"adapter.targets has {name!r}{did_you_mean(name, TARGETS)}")
        require(
            names and len(set(names)) == len(names),
            "adapter.targets",
            repr(self.targets),
            "names of linears, each once",
        )
        classes = self.class_names
        require(
            "" not in classes and len(set(classes)) == len(classes),
            "adapter.classes",
            repr(self.classes),
            "names of new classes, each once",
        )
        starts = split_names(self.start)
        require(
            "" not in starts and len(starts) in (1, len(classes)),
            "adapter.start",
            repr(self.start),
            f"one class, or one for each of the {len(classes)} new ones",
        )

    @property
    def target_names(self) -> tuple[str, ...]:
        """The linears that LoRA changes; without LoRA none."""
        return split_names(self.targets) if self.kind == "lora" else ()

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the new classes."""
        return split_names(self.classes)

    @property
    def starts(self) -> tuple[str, ...]:
        """The class that each new class starts from, or "mean"."""
        starts = split_names(self.start)
        return starts if len(starts) == len(self.class_names) else starts * len(self.class_names)

    @property
    def scale(self) -> float:
        """The factor on the product of LoRA's factors."""
        return self.alpha / self.rank


def split_names(text: str) -> tuple[str, ...]:
    """Returns names that are written with commas between them; one with a comma is in quotes."""
    if not text.strip():
        return ()
    (row,) = csv.reader([" ".join(text.splitlines())], skipinitialspace=True)
    return tuple(name.strip() for name in row)
