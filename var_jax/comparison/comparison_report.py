"""What a comparison of objectives leaves: compare.json, laws.json, report.md and the plots."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from matplotlib.figure import Figure

from var_jax.comparison import compared_run, equal_compute, quality_laws
from var_jax.comparison.compared_run import AXES, TRAINING, Comparison
from var_jax.comparison.quality_laws import QualityLaw
from var_jax.errors import UserError
from var_jax.io import atomic
from var_jax.scaling import plots, report_text
from var_jax.scaling.report_text import plain

Laws = Mapping[str, Mapping[str, QualityLaw]]
SHORT_AXES = {
    TRAINING: "training FLOPs",
    "images_seen": "images seen",
    "generation_flops": "FLOPs per image, no decoder",
    "passes": "passes",
    "seconds_per_image": "s per image",
}


def points(comparison: Comparison) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Returns the content of compare.json: {objective: {quality: [point]}}.

    A point has "run", "x" (the training FLOPs), "value", "ci95" (null without an interval), "seeds"
    (the number of runs that it is the mean of), and the other costs by their names (`AXES`).
    """
    return {
        objective: {
            quality: [
                {
                    "run": run.run,
                    "x": run.costs[TRAINING],
                    "value": run.quality[quality].value,
                    "ci95": run.quality[quality].ci95,
                    "seeds": run.seeds,
                    **{axis: value for axis, value in run.costs.items() if axis != TRAINING},
                }
                for run in sorted(runs, key=lambda run: run.costs[TRAINING])
            ]
            for quality in comparison.qualities
            if (runs := comparison.of(objective, quality))
        }
        for objective in comparison.objectives
    }


def markdown(
    comparison: Comparison, laws: Laws, pictures: Sequence[str], sources: Sequence[str]
) -> str:
    """Returns the text of report.md."""
    lines = [
        "# Comparison of objectives",
        "",
        f"From {', '.join(f'`{epath.Path(source).name}`' for source in sources)}. Brackets are "
        "95 % intervals; of a mean over seeds they are Student's t over the seeds, else what the "
        "source states.",
        "",
        "## Runs",
        "",
        *runs_table(comparison),
        "",
    ]
    if incomparable := _incomparable(comparison):
        lines += ["## What is not comparable", "", *incomparable, ""]
    if equal := equal_compute.sentences(comparison):
        lines += ["## At equal training FLOPs", "", *(f"- {text}" for text in equal), ""]
    lines += ["## Laws of training FLOPs", "", *_laws_table(laws), ""]
    lines += ["## What the laws tell", ""]
    sentences = [text for _, text in quality_laws.verdicts(comparison, laws)]
    lines += [f"- {text}" for text in sentences or [no_verdict(laws)]]
    lines.append("")
    for title, items in (
        ("Warnings", [*comparison.notes, *_law_warnings(laws)]),
        ("Left out", [f"{row}: {reason}" for row, reason in comparison.dropped]),
    ):
        if items:
            lines += [f"## {title}", "", *(f"- {item}" for item in items), ""]
    lines += ["## Plots", ""]
    for name in pictures:
        axis = name.removesuffix(".png")
        lines += [f"![quality against {AXES[axis]}]({name})", ""]
        if axis == TRAINING:
            lines += [
                "Lines are the laws up to ten times the most training FLOPs, bands their 95 % "
                "intervals. Bars of points are their 95 % intervals in all plots.",
                "",
            ]
    return "\n".join(lines)


def runs_table(comparison: Comparison) -> list[str]:
    """Returns the lines of a Markdown table of all runs, with their costs and qualities."""
    axes = [axis for axis in AXES if any(axis in run.costs for run in comparison.runs)]
    names = ["objective", "run", *(SHORT_AXES[axis] for axis in axes), *comparison.qualities]
    lines = [f"| {' | '.join(map(_cell, names))} |", "|---" * len(names) + "|"]
    for objective in comparison.objectives:
        runs = [run for run in comparison.runs if run.objective == objective]
        for run in sorted(runs, key=lambda run: run.costs[TRAINING]):
            name = run.run if run.seeds == 1 else f"{run.run} ({run.seeds} seeds)"
            cells = [_cell(objective), _cell(name)]
            cells += [f"{run.costs[a]:.3g}" if a in run.costs else "-" for a in axes]
            cells += [str(run.quality.get(q, "-")) for q in comparison.qualities]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def no_verdict(laws: Laws) -> str:
    """Returns why the laws compare no two objectives."""
    fitted = sum(law.law is not None for by_name in laws.values() for law in by_name.values())
    missing = "there is no law" if not fitted else "no two objectives have a law of a quality"
    return (
        f"{missing.capitalize()} that can be compared: a law needs runs of at least "
        f"{quality_laws.MIN_SIZES} different training FLOPs per objective, and a quality that "
        "means the same for both."
    )


def _incomparable(comparison: Comparison) -> list[str]:
    """Returns paragraphs on the qualities by which no objective is called ahead."""
    names = [
        quality
        for quality in comparison.qualities
        if not compared_run.comparable(
            comparison, quality, [o for o in comparison.objectives if comparison.of(o, quality)]
        )
    ]
    texts = [
        f"{quality}: it is not known whether lower or higher is better, so it ranks nothing."
        for quality in comparison.qualities
        if quality not in names and compared_run.direction(quality) == "unknown"
    ]
    if not names:
        return _paragraphs(texts)
    texts.append(
        f"{', '.join(names)}: each objective predicts other tokens or noise. Cross-entropy, in "
        "nats per token or bits per image, and accuracy depend on the tokenizer and on what is "
        "predicted from what, so these compare runs of one objective only, and orders of "
        "next-token prediction where all runs name the same tokenizer. Distances between images, "
        "precision, recall and agreement with labels compare objectives."
    )
    return _paragraphs(texts)


def _paragraphs(texts: Sequence[str]) -> list[str]:
    return "\n\n".join(texts).splitlines()


def _laws_table(laws: Laws) -> list[str]:
    lines = [
        f"The form is {quality_laws.FORM}. Of a share it is the law of 1 less the share.",
        "",
        "| objective | law of | parameters | runs | at ten times the most FLOPs |",
        "|---|---|---|---|---|",
    ]
    for by_objective in laws.values():
        for objective, law in by_objective.items():
            summary = plain(law.summary)
            text, ahead = report_text.law_text(summary), "-"
            if law.law is None:
                text = summary["warnings"][0]
            else:
                at = summary["prediction"]
                ahead = f"{at['value']:.4g}"
                if None not in at["ci95"]:
                    ahead += " [{:.4g}, {:.4g}]".format(*at["ci95"])
            runs = summary["n_runs"] if law.law is not None else "-"
            cells = [_cell(objective), _cell(summary["of"]), _cell(text), str(runs), ahead]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _law_warnings(laws: Laws) -> list[str]:
    return [
        f"law of {law.summary['of']}, {objective}: {note}"
        for by_objective in laws.values()
        for objective, law in by_objective.items()
        if law.law is not None
        for note in law.summary["warnings"]
    ]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def write(
    out: epath.Path,
    comparison: Comparison,
    laws: Laws,
    figures: Mapping[str, Figure],
    sources: Sequence[str],
):
    """Writes the plots, report.md, laws.json, and compare.json last, when all else is there.

    Plots of an earlier comparison whose costs this one does not have are removed.

    Raises:
      UserError: the directory cannot be written.
    """
    text = markdown(comparison, laws, list(figures), sources)
    summaries = plain(
        {
            quality: {objective: law.summary for objective, law in by_objective.items()}
            for quality, by_objective in laws.items()
        }
    )
    contents = {"laws.json": summaries, "compare.json": plain(points(comparison))}
    try:
        out.mkdir(parents=True, exist_ok=True)
        for axis in AXES:
            if (name := f"{axis}.png") in figures:
                atomic.write(out / name, [plots.png(figures[name])])
            else:
                (out / name).unlink(missing_ok=True)
        atomic.write(out / "report.md", text)
        for name, content in contents.items():
            json_text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
            atomic.write(out / name, json_text + "\n")
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from error
