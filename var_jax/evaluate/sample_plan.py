"""The plan of a sample set: its number of images, labels, model and sampling settings."""

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from var_jax import Pipeline
from var_jax.config.strict import require
from var_jax.data.model_fingerprint import model_fingerprint
from var_jax.sampling import validate

SAMPLES_FORMAT = 2
NO_SETTINGS = ("seed", "negative_labels")  # arguments of `Pipeline.sample` that no preset has


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything that determines a sample set: only shards of equal settings may be joined.

    Attributes:
      num: number of images in the set.
      labels: class labels in turn; image i has label `labels[i % len(labels)]`.
      sampling: keyword arguments of `Pipeline.sample`, including the seed, which also shuffles the
        set.
      model: fingerprint of the model's weights and sizes.
      dtype: dtype that the model computes in.
      image_shape: (height, width, channels).
      keep: fraction of the generated images of each class that is kept; 1 for no rejection.
      scorer: name of the scorer that ranks the images; "" without rejection.
      then: fingerprint of the second model, which generates the last scales; "" without one.
      keep_scales: number of leading scales before the second model continues; its key in files is
        "from_scale".
      class_names: the model's class names by id, if it has them.
    """

    num: int
    labels: tuple[int, ...]
    sampling: dict[str, Any]
    model: str
    dtype: str
    image_shape: tuple[int, int, int]
    keep: float = 1.0
    scorer: str = ""
    then: str = ""
    keep_scales: int | None = None
    class_names: tuple[str, ...] = ()

    @property
    def num_drawn(self) -> int:
        """The number of images to generate, before rejection."""
        if self.keep == 1:
            return self.num
        turns = math.ceil(math.ceil(self.num / len(self.labels)) / self.keep)
        return turns * len(self.labels)

    @property
    def settings(self) -> dict[str, Any]:
        """All fields except the class names, as plain JSON values; shards are compared by them."""
        values = json.loads(json.dumps(dataclasses.asdict(self)))
        del values["class_names"]
        # Sample sets of earlier versions are without a strength that is off.
        if values["sampling"].get("ssg") == 0:
            del values["sampling"]["ssg"]
        # The key that sample sets of earlier versions have.
        values["from_scale"] = values.pop("keep_scales")
        return {"format": SAMPLES_FORMAT, **values}

    @property
    def settings_and_names(self) -> dict[str, Any]:
        """The settings, and the class names if the model has them, as in the set's file."""
        if not self.class_names:
            return self.settings
        return {**self.settings, "class_names": list(self.class_names)}

    def label(self, indices: np.ndarray) -> Int[np.ndarray, " n"]:
        """Returns the labels of the images at these indices."""
        return np.asarray(self.labels, np.int32)[indices % len(self.labels)]

    def shards(self, images: int) -> list[range]:
        """Returns the generated images' indices shard by shard, `images` in each but the last."""
        return [
            range(start, min(start + images, self.num_drawn))
            for start in range(0, self.num_drawn, images)
        ]


def make_plan(
    model: Pipeline,
    num: int,
    labels: Sequence[int] | None = None,
    *,
    keep: float = 1.0,
    scorer: str = "",
    then: Pipeline | None = None,
    keep_scales: int | None = None,
    **sampling: Any,
) -> Plan:
    """Returns the plan of a sample set.

    Args:
      num: number of images.
      labels: class labels, repeated in turn; by default every class once, so that the classes'
        counts differ by at most one.
      keep: for rejection sampling, the fraction of each class to keep.
      scorer: the name of the scorer that ranks the images for it.
      then: the second model, as in `Pipeline.sample`.
      keep_scales: the number of leading scales before `then` continues.
      sampling: "seed" and the settings of `Pipeline.sample`; with "preset", all settings that the
        preset has are noted.
    Raises:
      UserError: the model has no transformer or no such label, a number is out of range, or the
        second model does not fit the first.
    """
    transformer = validate.transformer(model.config)
    classes = transformer.num_classes
    require(1 <= num <= 2**31, "--num", num, "from 1 to 2147483648")
    require(0 < keep <= 1, "--reject-keep", keep, "above 0 and at most 1")
    labels = tuple(range(classes)) if labels is None else tuple(int(x) for x in labels)
    for label in labels:
        require(
            0 <= label <= classes, "label", label, f"from 0 to {classes - 1} ({classes}: no class)"
        )
    require(
        keep == 1 or classes not in labels,
        "a label of a set with rejection",
        f"{classes}, no class",
        f"from 0 to {classes - 1}",
    )
    if "preset" in sampling:
        sampling = {
            "seed": 0,
            **model.sampling_settings(
                **{name: value for name, value in sampling.items() if name not in NO_SETTINGS}
            ),
            **{name: sampling[name] for name in NO_SETTINGS if name in sampling},
        }
    model.check_sampling(then=then, keep_scales=keep_scales, **sampling)
    return Plan(
        num=num,
        labels=labels,
        sampling=sampling,
        model=model_fingerprint(model.config, model.params),
        dtype=transformer.dtype,
        image_shape=model.config.tokenizer.image_shape,
        keep=float(keep),
        scorer=scorer,
        then=model_fingerprint(then.config, then.params) if then else "",
        keep_scales=None if keep_scales is None else int(keep_scales),
        class_names=model.class_names,
    )
