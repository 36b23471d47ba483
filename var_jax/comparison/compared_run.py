"""What a run contributes to a comparison of objectives, and what is known of a quality by name."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from var_jax.config.strict import require

Direction = Literal["lower", "share", "higher", "unknown"]

TRAINING = "train_flops"  # the axis that compare.json and the laws have as x
# What a quality is drawn against, as columns of a table, with the labels of the plots.
AXES = {
    TRAINING: "training FLOPs",
    "images_seen": "training images seen, repeats counted",
    "generation_flops": "FLOPs per generated image, without the decoder",
    "passes": "sequential passes per generated image",
    "seconds_per_image": "seconds per generated image",
}
# Numbers of a run that are neither an axis nor a quality.
DESCRIPTIONS = (
    "seed",
    "params",
    "params_body",
    "tokens",
    "compute",
    "depth",
    "width",
    "heads",
    "step",
    "steps",
    "epochs",
    "batch_size",
    "cfg",
)
# How the names of qualities begin, after a split such as "val_", by what is better.
LOWER = ("frechet", "fd_", "fid", "sfid", "rfid", "gfid", "kid", "cmmd", "err", "lpips")
LOWER += ("perceptual", "bits")
SHARES = ("precision", "recall", "agreement", "accuracy", "label_accuracy", "coverage", "ssim")
HIGHER = ("inception", "density", "psnr")
SPLITS = ("val", "valid", "validation", "test", "train", "eval", "heldout", "held_out")
# Qualities of a model's own tokens or noise, which other tokens or objectives do not share: how
# their names begin, and words that they have anywhere.
OWN_UNITS = ("loss", "err", "accuracy", "bits")
LOSSES = ("nll", "bpd", "bits", "nats", "perplexity", "ppl", "ce", "xent")
LIKELIHOODS = ("elbo", "likelihood", "logprob")
NEXT_TOKEN = "next_token"


class Measured(NamedTuple):
    """A quality with its 95 % interval, where there is one."""

    value: float
    ci95: tuple[float, float] | None

    def __str__(self) -> str:
        ends = "" if self.ci95 is None else f" [{self.ci95[0]:.4g}, {self.ci95[1]:.4g}]"
        return f"{self.value:.4g}{ends}"


@dataclasses.dataclass(frozen=True)
class ComparedRun:
    """A run of an objective.

    Attributes:
      objective: its label: an objective of this package, or any other name.
      run: its name.
      costs: numbers by axis (`AXES`); an axis that is not known is left out.
      quality: measured qualities by name.
      params: number of parameters, if known.
      seeds: number of runs whose mean it is.
      tokenizer: an identification of its tokenizer, "" if it is not known.
    """

    objective: str
    run: str
    costs: Mapping[str, float]
    quality: Mapping[str, Measured]
    params: float | None = None
    seeds: int = 1
    tokenizer: str = ""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """All runs of a comparison.

    Attributes:
      runs: in the order of their sources.
      notes: warnings, one sentence each.
      dropped: (row, reason) of each row or run that is left out.
    """

    runs: Sequence[ComparedRun]
    notes: Sequence[str] = ()
    dropped: Sequence[tuple[str, str]] = ()

    @property
    def objectives(self) -> list[str]:
        """Labels of the objectives, in the order of their first runs."""
        return list(dict.fromkeys(run.objective for run in self.runs))

    @property
    def qualities(self) -> list[str]:
        """Names of the qualities: those that objectives share first."""
        names = dict.fromkeys(name for run in self.runs for name in run.quality)
        return sorted(names, key=has_own_units)

    def only(self, qualities: Sequence[str]) -> "Comparison":
        """Returns the comparison of these qualities alone, and of the runs that have any.

        Raises:
          UserError: no run has one of them.
        """
        for name in qualities:
            require(name in self.qualities, "--qualities", name, f"of {', '.join(self.qualities)}")
        runs = [
            dataclasses.replace(
                run, quality={name: run.quality[name] for name in qualities if name in run.quality}
            )
            for run in self.runs
        ]
        return dataclasses.replace(self, runs=[run for run in runs if run.quality])

    def of(self, objective: str, quality: str) -> list[ComparedRun]:
        """Returns the runs of an objective that have a quality."""
        return [r for r in self.runs if r.objective == objective and quality in r.quality]


def direction(quality: str) -> Direction:
    """Returns what is better in a quality: "lower", or "higher" with 1 as the best of a "share"."""
    name = _without_split(quality)
    if _is_loss(name) or name.startswith(LOWER):
        return "lower"
    if name.startswith(SHARES):
        return "share"
    return "higher" if name.startswith(HIGHER) else "unknown"


def has_own_units(quality: str) -> bool:
    """Returns whether a quality is of a model's own tokens or noise, by its name."""
    name = _without_split(quality)
    has_likelihood = any(word.endswith(LIKELIHOODS) for word in _words(name))
    return name.startswith(OWN_UNITS) or _is_loss(name) or has_likelihood


def _is_loss(name: str) -> bool:
    if "cross_entropy" in name or name.startswith("loss"):
        return True
    return any(word in LOSSES or word.endswith(("loss", "crossentropy")) for word in _words(name))


def _words(name: str) -> list[str]:
    return re.split("[^a-z0-9]+", name)


def _without_split(quality: str) -> str:
    """Returns a quality's name in lower case, without the split before it."""
    return re.sub(rf"^({'|'.join(SPLITS)})[^a-z0-9]+", "", quality.lower())


def comparable(comparison: Comparison, quality: str, objectives: Sequence[str]) -> bool:
    """Returns whether a quality means the same for some objectives.

    Cross-entropy and accuracy are of a model's own tokens, and the error of a denoiser is of its
    noise: they depend on the tokenizer and on what is predicted from what. Orders of next-token
    prediction over one tokenizer alone factorize the same probability.
    """
    if not has_own_units(quality) or len(set(objectives)) < 2:
        return True
    tokenizers = {r.tokenizer for name in objectives for r in comparison.of(name, quality)}
    orders = all(name.startswith(NEXT_TOKEN) for name in objectives)
    return orders and len(tokenizers) == 1 and "" not in tokenizers
