"""Both stages of a config, samples, and a report that says how good they are, in one go."""

import dataclasses
import json
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from var_jax import Pipeline
from var_jax.config.strict import require
from var_jax.config.train import TrainConfig
from var_jax.data import loader, sources
from var_jax.evaluate.classifier import agreement, pixel_classifier, shrink
from var_jax.io import atomic, pictures
from var_jax.io.checkpoint import Checkpoints
from var_jax.io.json import read_object
from var_jax.objectives import registry
from var_jax.sampling import labels as class_labels
from var_jax.train import data_sizes
from var_jax.train.loop import train

STATISTICS_SIDE = 8  # of the images that variance and distance are measured at
SHOWN = {"cfg": "cfg", "top_k": "top-k", "top_p": "top-p", "steps": "steps", "solver": "solver"}
OFF = {"cfg": 0.0, "top_k": 0, "top_p": 0.0}
SOME_GUIDANCE = 1.0


def run(
    tokenizer: TrainConfig,
    transformer: TrainConfig,
    workdir: str,
    samples: int = 1000,
    *,
    command: str | None = None,
) -> dict[str, Any]:
    """Trains the missing stages, and writes model, `samples.png` and `report.json` to `workdir`.

    Args:
      samples: number of samples that the report measures.
      command: the command line that runs it, for the report and the records of both runs.
    Returns:
      the report; `lines` prints it. Its seconds are those of complete stages. Those of a stage that
      an earlier run finished come from the earlier report; they are None without one, or if the
      stage was interrupted.
    Raises:
      UserError: as `train`, or a config of the wrong stage.
    """
    makes_tokens = not registry.find(tokenizer).generates
    require(makes_tokens, "the stage of the tokenizer's config", tokenizer.stage, "tokenizer")
    makes_images = registry.leaves_generator(transformer)
    require(makes_images, "the stage of the transformer's config", transformer.stage, "transformer")
    directory, seconds = epath.Path(workdir), {}
    transformer = dataclasses.replace(transformer, tokenizer_dir=str(directory / "tokenizer-run"))
    tokenizer = data_sizes.from_data(tokenizer, directory / "tokenizer-run")
    transformer = data_sizes.from_data(transformer, directory / "transformer-run")
    evaluations = {}
    for name, config in (("tokenizer", tokenizer), ("transformer", transformer)):
        run_directory = directory / f"{name}-run"
        checkpoints = Checkpoints(run_directory / "checkpoints", keep=1)
        begun, started = checkpoints.latest_step(), time.time()
        evaluations[name] = train(config, str(run_directory), command=command)
        if begun is None:
            seconds[name] = round(time.time() - started, 1)
        else:
            seconds[name] = _reported_seconds(directory, name) if begun >= config.steps else None
    sampling = time.time()

    model = Pipeline.from_pretrained(directory / "transformer-run")
    model.save(directory)
    report: dict[str, Any] = {
        "command": command,
        "reconstruction": evaluations["tokenizer"],
        "validation": evaluations["transformer"],
    }
    report["samples"] = judge(model, transformer, samples)
    _samples_picture(model, transformer, directory)
    seconds["samples"] = round(time.time() - sampling, 1)
    total = None if None in seconds.values() else round(sum(seconds.values()), 1)
    report["seconds"] = {**seconds, "total": total}
    atomic.write(directory / "report.json", json.dumps(report, indent=1))
    return report


def judge(model: Pipeline, config: TrainConfig, samples: int) -> dict[str, Any]:
    """Compares samples with real images.

    It measures a classifier's agreement with the label, diversity, and distance to training images.

    The classifier is trained on the real training split. `variance_ratio` is the within-class
    variance of samples over that of held-out images; `nearest_ratio` the median distance to the
    nearest training image over that of held-out images. Both are of pixels in [0, 1] at 8x8.
    """
    images, labels = _split(config, config.data.train_split, model.class_names)
    held_images, held_labels = _split(config, config.data.eval_split, model.class_names)
    classify = pixel_classifier(images, labels)
    asked = np.arange(samples) % config.transformer.num_classes
    variance = within_class_variance(held_images, held_labels)
    distance = nearest_distance(held_images, images)
    report: dict[str, Any] = {
        "classifier_accuracy_on_held_out": float(np.mean(classify(held_images) == held_labels)),
        "held_out_images": len(held_images),
        "count": samples,
    }
    for name, settings in compared_settings(model).items():
        sampled = model.sample(asked, seed=1, **settings)
        report[name] = {
            "label_accuracy": agreement(classify, sampled, asked)["value"],
            "variance_ratio": within_class_variance(sampled, asked) / variance,
            "nearest_ratio": nearest_distance(sampled, images) / distance,
        }
    return report


def compared_settings(model: Pipeline) -> dict[str, dict[str, Any]]:
    """Returns two sampling settings that the report compares, by a description.

    They are the objective's defaults, and no guidance with no filters; where the defaults have
    neither (masked prediction), they are compared with some guidance.
    """
    defaults = model.sampling_settings()
    shown = [f"{text} {_text(defaults[name])}" for name, text in SHOWN.items() if name in defaults]
    off = {name: value for name, value in OFF.items() if name in defaults}
    shown_off = [f"{SHOWN[name]} {_text(value)}" for name, value in off.items()]
    without = "no guidance, no filters" if len(off) > 1 else "no guidance"
    if all(defaults[name] == value for name, value in off.items()):
        guided = {"cfg": SOME_GUIDANCE}
        return {
            f"{without} by default ({', '.join(shown)})": {},
            f"guidance (cfg {_text(SOME_GUIDANCE)})": guided,
        }
    return {
        f"default guidance ({', '.join(shown)})": {},
        f"{without} ({', '.join(shown_off)})": off,
    }


def lines(report: dict[str, Any]) -> list[str]:
    """Returns the report as a few lines for a terminal."""
    rec, val, samples = report["reconstruction"], report["validation"], report["samples"]
    out = [f"reconstruction  PSNR {rec['psnr']:.2f} dB on {rec['images']} held-out images"]
    if "code_usage" in rec:
        usage = " ".join(f"{u:.0%}" for u in rec["code_usage"])
        out.append(f"codes used      {usage} by scale, {rec['code_usage_all']:.0%} over all scales")
    out += [
        f"validation      {_validation(val)}",
        f"classifier      {samples['classifier_accuracy_on_held_out']:.3f} right on real held-out "
        "images",
    ]
    for name, row in samples.items():
        if not isinstance(row, dict):
            continue
        out.append(
            f"{samples['count']} samples    {row['label_accuracy']:.3f} as labeled, variance ratio "
            f"{row['variance_ratio']:.2f}, nearest-training ratio {row['nearest_ratio']:.2f}: "
            f"{name}"
        )
    spent = {
        name: "not known, resumed" if value is None else f"{value:.0f} s"
        for name, value in report["seconds"].items()
    }
    total = report["seconds"]["total"]
    out.append(
        f"time            {spent['total'] if total is None else f'{total / 60:.1f} minutes'} "
        f"(tokenizer {spent['tokenizer']}, transformer {spent['transformer']}, "
        f"samples {spent['samples']})"
    )
    return out


def _text(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _validation(metrics: dict[str, Any]) -> str:
    """Returns the held-out loss, and that over the last scale where there are several."""
    if metrics.get("loss_last", metrics["loss"]) == metrics["loss"]:  # of one map, or of none
        return f"loss {metrics['loss']:.4f}"
    return f"loss {metrics['loss']:.4f} over all scales, {metrics['loss_last']:.4f} over the last"


def _reported_seconds(directory: epath.Path, name: str) -> float | None:
    report = directory / "report.json"
    return read_object(report).get("seconds", {}).get(name) if report.exists() else None


def within_class_variance(images: np.ndarray, labels: np.ndarray) -> float:
    """Mean over classes of the pixels' variance within the class, at 8x8."""
    small = shrink(images, STATISTICS_SIDE)
    return float(np.mean([small[labels == c].var(axis=0).mean() for c in np.unique(labels)]))


def nearest_distance(images: np.ndarray, reference: np.ndarray) -> float:
    """Returns the median Euclidean distance to the nearest reference image, at 8x8."""
    from sklearn.neighbors import NearestNeighbors

    neighbors = NearestNeighbors(n_neighbors=1).fit(shrink(reference, STATISTICS_SIDE))
    return float(np.median(neighbors.kneighbors(shrink(images, STATISTICS_SIDE))[0]))


def _split(
    config: TrainConfig, split: str, class_names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """All images of a split in [0, 1] at the model's size, and their labels."""
    batches = list(
        loader.eval_batches(
            config.data,
            config.tokenizer.image_shape,
            256,
            split=sources.open_split(config.data, split, class_names),
        )
    )
    images, labels = (
        np.concatenate([b[name][b["mask"]] for b in batches]) for name in ("image", "label")
    )
    return images.astype(np.float32) / 255, labels


def _samples_picture(model: Pipeline, config: TrainConfig, directory: epath.Path):
    classes = config.transformer.num_classes
    columns = min(10, classes)
    titles = [
        pictures.title(class_labels.title(i, model.class_names, classes), str(i))
        for i in range(columns)
    ]
    images = model.sample(np.arange(10 * columns) % columns, seed=0)
    pictures.save_png(
        directory / "samples.png", pictures.grid(images, columns=columns, titles=titles)
    )
