"""How good edits of held-out images are: in-painting, out-painting, lower half, and a box as
another class.

`python -m var_jax.studies.editing --model D --reference fashion_mnist_idx:test --resize pad --out
DIR` writes `editing.json`, the tables `editing.md` and `editing.png`; rows that are there already
are not measured again. The model's fills stand beside the truth and two that need no model: the
mean of the training images there, and the pixels of the training image that is nearest by what is
kept.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image, ImageDraw, ImageFont

from var_jax import Pipeline
from var_jax.config.scales import Scales
from var_jax.config.strict import require
from var_jax.data import fingerprints
from var_jax.errors import Parser
from var_jax.evaluate import classifier, features, scores
from var_jax.evaluate.classifier import Classifier, agreement, pixel_classifier
from var_jax.evaluate.features import FeatureNetwork
from var_jax.evaluate.image_sets import open_images
from var_jax.evaluate.samples import Distance
from var_jax.io import atomic, pictures
from var_jax.io.pictures import to_uint8
from var_jax.sampling import settings, validate
from var_jax.sampling.sampler import published_given
from var_jax.studies import rows as study
from var_jax.studies.fills import (
    TASKS,
    Region,
    held_out,
    mean_image,
    nearest,
    nearest_of_class,
    region,
    regions_of,
)

ANOTHER = "another class"
PART = 512  # images edited at once
UNCOMPOSITED = 256  # images that are also edited without putting kept pixels back
PICTURED = 8
HIDDEN = 127  # level of the region in pictures
NOTES = (
    "The edited images are drawn from the reference by the seed, and compared with the others of it: the row 'truth' "
    "is real images against real images at the same counts, the floor of every row of its task.",
    "from_scale is the first scale with new content. Coarser ones are the image's own everywhere, and tell the model "
    "something of what is to be filled; the mean and the nearest image see kept pixels alone, and so does the model "
    "from scale 0.",
    "kept: mean absolute difference of kept pixels from the image, in levels of 0 to 255: of the pixels put back "
    "(composited), and of the model's own on the first images. region: Fréchet distance of the filled region alone. "
    "filled: mean absolute difference of the filled pixels from the image's own.",
    "All but kept.uncomposited is of composited images. New content is asked for by the image's own label, in "
    f"'{ANOTHER}' by the next one. region.label: whether a classifier of that region, which sees nothing else, finds "
    "the wanted class.",
)


def strengths(scales: Scales, given: str) -> list[int]:
    """First scales with new content: as given, else 0, the published rule's and a later one.

    Raises:
      UserError: what is given are no scales of the model.
    """
    if not given:
        first = _published(scales)
        return sorted({0, first, min(max(first + 1, len(scales) // 2), len(scales) - 1)})
    for part in given.split(","):
        require(
            part.isdecimal() and int(part) < len(scales),
            "--from-scales",
            given,
            f"whole numbers from 0 to {len(scales) - 1}, separated by commas",
        )
    return sorted({int(part) for part in given.split(",")})


def _published(scales: Scales) -> int:
    return min(published_given(scales), len(scales) - 1)


def edited(
    model: Pipeline,
    images: UInt8[np.ndarray, "n H W c"],
    keep: Bool[np.ndarray, "h w"],
    labels: Int[np.ndarray, " n"],
    *,
    seed: int,
    composite: bool,
    from_scale: int,
    preset: str,
) -> Float[np.ndarray, "n H W c"]:
    """Edits in [0, 1], by parts, each of a seed of its own: within one call the first image has the
    first key."""
    parts = []
    for start in range(0, len(images), PART):
        part_seed = int(np.random.SeedSequence([seed, start]).generate_state(1)[0])
        parts.append(
            model.edit(
                images[start : start + PART].astype(np.float32) / 127.5 - 1,
                keep,
                labels[start : start + PART],
                seed=part_seed,
                composite=composite,
                from_scale=from_scale,
                preset=preset,
            )
        )
    return np.concatenate(parts)


def apart(a: np.ndarray, b: np.ndarray, where: Bool[np.ndarray, "H W"]) -> dict[str, Any]:
    """Mean absolute difference where a mask says, in levels of 0 to 255, with the interval of the
    mean over images."""
    each = np.abs(a[:, where].astype(np.float64) - b[:, where]).reshape(len(a), -1).mean(axis=1)
    return {
        **scores.mean_interval(each),
        "largest": float(np.abs(a[:, where].astype(np.float64) - b[:, where]).max()),
        "count": len(a),
    }


@dataclasses.dataclass(frozen=True)
class Editor:
    """Images to edit, and what fills them.

    Attributes:
      images, labels: held-out ones.
      training, training_labels: what baselines fill from.
    """

    model: Pipeline
    images: UInt8[np.ndarray, "n H W c"]
    labels: Int[np.ndarray, " n"]
    training: UInt8[np.ndarray, "m H W c"]
    training_labels: Int[np.ndarray, " m"]
    seed: int
    preset: str

    def region(self, task: str) -> Region:
        keep = region(task, self.model.config.tokenizer.scales.finest)
        return Region(keep, validate.kept_pixels(self.model.config.tokenizer, keep))

    def wanted(self, task: str) -> Int[np.ndarray, " n"]:
        classes = validate.transformer(self.model.config).num_classes
        return (self.labels + 1) % classes if task == ANOTHER else self.labels

    def fill(
        self, task: str, method: str | int, seed: int | None = None, count: int | None = None
    ) -> UInt8[np.ndarray, "n H W c"]:
        """Composited images.

        Args:
          method: "truth", "mean", "nearest", or the model's first scale with new content.
          seed: of the model's, by default the study's.
          count: the first images alone.
        """
        images, wanted, filled = self.images[:count], self.wanted(task)[:count], self.region(task)
        if method == "truth":
            return images
        if isinstance(method, int):
            return to_uint8(
                edited(
                    self.model,
                    images,
                    filled.keep,
                    wanted,
                    seed=self.seed if seed is None else seed,
                    composite=True,
                    from_scale=method,
                    preset=self.preset,
                )
            )
        if method == "mean":
            source = mean_image(self.training)
        elif task == ANOTHER:
            source = self.training[
                nearest_of_class(images, wanted, self.training, self.training_labels, filled.pixels)
            ]
        else:
            source = self.training[nearest(images, self.training, filled.pixels)]
        return np.where(filled.pixels[..., None], images, source)

    def drift(self, task: str, from_scale: int) -> dict[str, Any]:
        """How far kept pixels of the model's own are from the image's, nothing put back."""
        some, filled = self.images[:UNCOMPOSITED], self.region(task)
        raw = edited(
            self.model,
            some,
            filled.keep,
            self.wanted(task)[:UNCOMPOSITED],
            seed=self.seed,
            composite=False,
            from_scale=from_scale,
            preset=self.preset,
        )
        return apart(np.clip(raw, 0, 1) * 255, some, filled.pixels)


def measure(
    editor: Editor,
    task: str,
    method: str | int,
    network: FeatureNetwork,
    whole: Distance,
    alone: Distance,
    classify: Classifier,
    classify_alone: Classifier,
) -> dict[str, Any]:
    """A row; `classify_alone` is of the filled region's own images."""
    images, filled = editor.fill(task, method), editor.region(task)
    inside = filled.alone(images)
    pixels = images.astype(np.float32) / 255
    return {
        "kept": {
            "composited": apart(images, editor.images, filled.pixels),
            "uncomposited": editor.drift(task, method) if isinstance(method, int) else None,
        },
        "frechet_distance": whole.of(study.features_of(network, images)),
        "region": {
            **alone.of(study.features_of(network, inside)),
            **filled.described(),
            "label": agreement(
                classify_alone, inside.astype(np.float32) / 255, editor.wanted(task)
            ),
        },
        "wanted_label": agreement(classify, pixels, editor.wanted(task)),
        "original_label": agreement(classify, pixels, editor.labels),
        "filled": None if task == ANOTHER else apart(images, editor.images, ~filled.pixels),
    }


def run(args: argparse.Namespace):
    study.check_arguments(args)
    require(args.preset in settings.PRESETS, "--preset", args.preset, " or ".join(settings.PRESETS))
    model = Pipeline.from_pretrained(args.model)
    transformer = validate.transformer(model.config)
    shape, scales = model.config.tokenizer.image_shape, model.config.tokenizer.scales
    methods = ["truth", "mean", "nearest", *strengths(scales, args.from_scales)]
    opened = [
        open_images(name, shape=shape, **study.image_arguments(args))
        for name in (args.reference, study.training_name(args))
    ]
    drawn, others = held_out(opened[0], args.num, args.seed)
    network = features.load("efficientnet", args.weights)
    about = {
        "study": "editing",
        "model": fingerprints.model_fingerprint(model.config, model.params),
        "num": args.num,
        "seed": args.seed,
        "resamples": args.resamples,
        "preset": args.preset,
        "edited": drawn.described(),
        "reference": others.described(),
        "training": opened[1].described(),
        "features": network.described(),
    }
    out = epath.Path(args.out)
    rows = study.Rows(out / "editing.json", about, NOTES)
    wanted = {row_name(task, method): (task, method) for task in TASKS for method in methods}
    missing = rows.missing(list(wanted))
    picture_missing = missing or not (out / "editing.png").exists()
    if picture_missing:
        held, (training, known) = (
            classifier.load_all(one, transformer.num_classes) for one in (drawn, opened[1])
        )
        editor = Editor(model.spread(), *held, training, known, args.seed, args.preset)
    if missing:
        classify = pixel_classifier(training.astype(np.float32) / 255, known)
        whole = Distance(
            features.of_reference(network, others, args.cache), args.resamples, args.seed
        )
        alone: dict[str, tuple[Distance, Classifier]] = {}
        with features.progress(len(missing), "rows", " rows") as bar:
            for name in missing:
                bar.set_description(name[:40])
                task, method = wanted[name]
                if task not in alone:
                    real = features.of_reference(
                        network, regions_of(others, editor.region(task)), args.cache
                    )
                    inside = editor.region(task).alone(training).astype(np.float32) / 255
                    alone = {
                        task: (
                            Distance(real, args.resamples, args.seed),
                            pixel_classifier(inside, known),
                        )
                    }
                distance, classify_alone = alone[task]
                rows.add(
                    name,
                    measure(
                        editor, task, method, network, whole, distance, classify, classify_alone
                    ),
                )
                bar.update()
    if picture_missing:
        pictured = int(args.from_scales.split(",")[0]) if args.from_scales else _published(scales)
        pictures.save_png(out / "editing.png", picture(editor, pictured))
    atomic.save(out / "editing.md", markdown(rows), "the tables")


def row_name(task: str, method: str | int) -> str:
    return f"{task}: {f'model, from scale {method}' if isinstance(method, int) else method}"


def markdown(rows: study.Rows) -> str:
    """A table a task."""
    about = rows.about
    out = [
        f"{about['num']} images a row, edited with preset {about['preset']}, against {about['reference']['count']} "
        f"other images of the same split (95 % intervals), {about['features']['network']}; differences in levels of "
        "0 to 255, of kept pixels without putting them back (with: see the JSON, 0)."
    ]
    heads = [
        "Fréchet distance",
        "of the filled region",
        "as wanted",
        "filled region as wanted",
        "as labelled at first",
        "filled pixels off by",
        "kept pixels off by",
    ]
    for task in TASKS:
        found = {
            name.partition(": ")[2]: row
            for name, row in rows.rows.items()
            if name.startswith(f"{task}: ")
        }
        if not found:
            continue
        filled = next(iter(found.values()))["region"]
        out += [
            "",
            f"**{task}**: {filled['filled_share']:.1%} filled; of the region alone, {filled['alone']}.",
            "",
            f"| {task} | {' | '.join(heads)} |",
            "|---" * (len(heads) + 1) + "|",
        ]
        for method, row in found.items():
            cells = [
                study.told(row["frechet_distance"]),
                study.told(row["region"]),
                f"{row['wanted_label']['value']:.3f}",
                f"{row['region']['label']['value']:.3f}",
                f"{row['original_label']['value']:.3f}",
                *(
                    "" if one is None else study.told(one)
                    for one in (row["filled"], row["kept"]["uncomposited"])
                ),
            ]
            out.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(out) + "\n"


def picture(editor: Editor, from_scale: int) -> Image.Image:
    """The first images of each task: original, masked, the model's fill by two seeds, mean and
    nearest image."""
    blocks = []
    for task in TASKS:
        images, kept = editor.images[:PICTURED], editor.region(task).pixels[..., None]
        columns = [
            images,
            np.where(kept, images, np.uint8(HIDDEN)),
            *(
                editor.fill(task, from_scale, seed, PICTURED)
                for seed in (editor.seed, editor.seed ^ 1)
            ),
            *(editor.fill(task, method, count=PICTURED) for method in ("mean", "nearest")),
        ]
        titles = ["original", "masked", "model", "other seed", "mean", "nearest"]
        blocks.append((task, pictures.strip(list(np.stack(columns, axis=1)), titles)))
    font, gap = ImageFont.load_default(18), 28
    width, height = (max(block.size[i] for _, block in blocks) for i in (0, 1))
    canvas = Image.new("RGB", (2 * width + gap, 2 * (height + gap)), pictures.PAPER)
    for i, (task, block) in enumerate(blocks):
        corner = i % 2 * (width + gap), i // 2 * (height + gap)
        ImageDraw.Draw(canvas).text(
            (corner[0] + width / 2, corner[1] + 4), task, pictures.INK, font, anchor="ma"
        )
        canvas.paste(block, (corner[0], corner[1] + gap))
    return canvas


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(
        prog="python -m var_jax.studies.editing",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    study.add_arguments(parser)
    parser.add_argument(
        "--from-scales",
        default="",
        metavar="K,K",
        help="first scales with new content (default: the "
        "published rule's, the first of more than 3 tokens, and a later one)",
    )
    parser.add_argument(
        "--preset",
        default="fid",
        help=f"sampling settings, {' or '.join(settings.PRESETS)} (default fid)",
    )
    return study.command(parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
