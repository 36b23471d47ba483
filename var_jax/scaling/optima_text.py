"""The best learning rates and batch sizes, as text of report.md and of a terminal."""

from collections.abc import Mapping

INTRODUCTION = (
    "Optima are minima of parabolas in the logarithm of the setting; learning_rate is the peak "
    "rate that was used, batch_size images per step. Of the runs of one size and token budget, "
    "only those at the best rate and batch are points of the laws of losses."
)
COLUMNS = ("params", "tokens", "images", "step", "batch_size")
LABELS = {"learning_rate": "learning rate", "batch_size": "batch size"}


def law_lines(optima: Mapping) -> list[str]:
    """Returns a line per law of the optima, with its warnings."""
    lines = []
    for key, law in optima["laws"].items():
        names = [name for name in law if isinstance(law[name], Mapping)]
        if any(law[name]["value"] is None for name in names):
            text = law["warnings"][0]
        else:
            text = ", ".join(
                "{} {:.4g} [{:.4g}, {:.4g}]".format(name, law[name]["value"], *law[name]["ci95"])
                for name in names
            )
            text += "".join(f" ({note})" for note in law["warnings"])
        lines.append(f"best {key}: {law['form']}: {text}")
    return [*lines, *optima["warnings"]]


def report_lines(optima: Mapping) -> list[str]:
    """Returns the lines of report.md on the optima."""
    lines = ["## Learning rate and batch size", "", INTRODUCTION, ""]
    lines += [*(f"- {line}" for line in law_lines(optima)), ""]
    for name, label in LABELS.items():
        if not optima.get(name):
            continue
        inputs = [key for key in optima[name][0] if key in COLUMNS]
        inputs = [key for key in inputs if key != name]
        head = " | ".join(inputs)
        lines += [f"| {head} | best {label} | {optima['column']} there |"]
        lines += ["|---|---|" + "---|" * len(inputs)]
        for entry in optima[name]:
            cells = [f"{entry[key]:.4g}" for key in inputs]
            if "refused" in entry:
                cells += ["refused", entry["refused"]]
            else:
                cells += [f"{entry[f'best_{name}']:.4g}", f"{entry['loss']:.4g}"]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return lines
