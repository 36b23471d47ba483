"""What a model makes of an image's first scales: finer detail of images that were made small, and
variations.

`python -m var_jax.studies.variations --model D --reference fashion_mnist_idx:test --resize pad
--out DIR` writes `continuing.json`, the table `continuing.md` and `continuing.png`; rows that are
there already are not measured again. Small images are held-out ones averaged down and enlarged
again bicubically, which is also what finer detail has to beat; variations keep the first scales of
the images as they are.
"""

import argparse
import sys
from collections.abc import Sequence

import numpy as np
from etils import epath
from jaxtyping import UInt8

from var_jax import Pipeline
from var_jax.config.strict import require
from var_jax.data import fingerprints
from var_jax.errors import Parser
from var_jax.evaluate import classifier, features, scores
from var_jax.evaluate.classifier import agreement, pixel_classifier
from var_jax.evaluate.image_sets import open_images
from var_jax.evaluate.samples import Distance
from var_jax.io import atomic, pictures
from var_jax.io.pictures import to_uint8
from var_jax.ops.resize import resize
from var_jax.sampling import validate
from var_jax.studies import rows as study
from var_jax.studies.fills import held_out

Pixels = UInt8[np.ndarray, "n H W c"]
TRUTH, ENLARGED, REBUILT = "truth", "enlarged", "enlarged, reconstructed"
PICTURED = 8
NOTES = (
    "Images are drawn from the reference by the seed, and compared with the others of it; 'truth' is the images "
    "themselves. off: mean absolute difference from the image, in levels of 0 to 255. Labels are the images' own.",
)


def enlarged(images: Pixels, factor: int) -> Pixels:
    """Averaged down by a factor and enlarged again bicubically: what is left of an image of that
    size."""
    height, width = images.shape[1:3]
    small = resize(images.astype(np.float32) / 255, (height // factor, width // factor), "area")
    return to_uint8(np.asarray(resize(small, (height, width), "bicubic")))


def methods(scales: int) -> dict[str, tuple[str, int]]:
    """{row: (what is continued, scales that it keeps)} of the rows that a model draws."""
    finer = {f"enlarged, first {k} scales kept": (ENLARGED, k) for k in range(scales // 2, scales)}
    return finer | {f"variation, first {k} kept": (TRUTH, k) for k in range(1, scales)}


def run(args: argparse.Namespace):
    study.check_arguments(args)
    model = Pipeline.from_pretrained(args.model)
    classes, shape = (
        validate.transformer(model.config).num_classes,
        model.config.tokenizer.image_shape,
    )
    require(
        args.factor >= 2 and not any(side % args.factor for side in shape[:2]),
        "--factor",
        args.factor,
        f"a divisor of both sides of {shape[0]} x {shape[1]}, at least 2",
    )
    opened = [
        open_images(name, shape=shape, **study.image_arguments(args))
        for name in (args.reference, study.training_name(args))
    ]
    drawn, others = held_out(opened[0], args.num, args.seed)
    network = features.load("efficientnet", args.weights)
    about = {
        "study": "continuing",
        "model": fingerprints.model_fingerprint(model.config, model.params),
        "num": args.num,
        "seed": args.seed,
        "factor": args.factor,
        "resamples": args.resamples,
        "continued": drawn.described(),
        "reference": others.described(),
        "training": opened[1].described(),
        "features": network.described(),
    }
    out = epath.Path(args.out)
    rows = study.Rows(out / "continuing.json", about, NOTES)
    continued = methods(len(model.config.tokenizer.scales))
    missing = rows.missing([TRUTH, ENLARGED, REBUILT, *continued])
    place = out / "continuing.png"
    if missing or not place.exists():
        images, labels = classifier.load_all(drawn, classes)
        model, sources = model.spread(), {TRUTH: images, ENLARGED: enlarged(images, args.factor)}

        def draw(name: str, count: int | None = None) -> Pixels:
            if name in sources:
                return sources[name][:count]
            source, kept = continued.get(name, (ENLARGED, 0))
            signal = sources[source][:count].astype(np.float32) / 127.5 - 1
            if name == REBUILT:
                return to_uint8((model.decode(model.encode(signal)) + 1) / 2)
            return to_uint8(model.vary(signal, labels[:count], keep_scales=kept, seed=args.seed))

        if missing:
            training, known = classifier.load_all(opened[1], classes)
            classify = pixel_classifier(training.astype(np.float32) / 255, known)
            distance = Distance(
                features.of_reference(network, others, args.cache), args.resamples, args.seed
            )
            with features.progress(len(missing), "rows", " rows") as bar:
                for name in missing:
                    found = draw(name)
                    off = np.abs(found.astype(np.float64) - images).mean(axis=(1, 2, 3))
                    rows.add(
                        name,
                        {
                            "frechet_distance": distance.of(study.features_of(network, found)),
                            "agreement": agreement(
                                classify, found.astype(np.float32) / 255, labels
                            ),
                            "off": scores.mean_interval(off),
                        },
                    )
                    bar.update()
        titles = {TRUTH: "original", ENLARGED: "enlarged"} | {
            name: f"{'finer' if source == ENLARGED else 'varied'}, {kept}"
            for name, (source, kept) in continued.items()
        }
        columns = [draw(name, PICTURED) for name in titles]
        pictures.save_png(
            place, pictures.strip(list(np.stack(columns, axis=1)), list(titles.values()))
        )
    atomic.save(out / "continuing.md", markdown(rows), "the table")


def markdown(rows: study.Rows) -> str:
    about = rows.about
    out = [
        f"{about['num']} images a row against {about['reference']['count']} other images of the same split (95 % "
        f"intervals), {about['features']['network']}; small ones by {about['factor']}, drawn with preset fid.",
        "",
        "| | Fréchet distance | as labelled | off by, levels |",
        "|---" * 4 + "|",
    ]
    for name, row in rows.rows.items():
        cells = [
            study.told(row["frechet_distance"]),
            f"{row['agreement']['value']:.3f}",
            study.told(row["off"]),
        ]
        out.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(out) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(
        prog="python -m var_jax.studies.variations",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    study.add_arguments(parser)
    parser.add_argument(
        "--factor", type=int, default=4, help="that images are made smaller by (default 4)"
    )
    return study.command(parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
