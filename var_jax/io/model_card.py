"""The card of a model on the Hugging Face hub: its `README.md`, with the figures that it has."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from var_jax.config.model import ModelConfig
from var_jax.io import run_records
from var_jax.io.hub_library import library
from var_jax.io.json import is_finite_number, read_object_if_exists, read_object_or_none

LIBRARY = "var_jax"
TAGS = ("jax", "flax", "image-generation", "visual-autoregressive-modeling")
GRID, REPORT, META = "samples.png", "report.json", "meta.json"


class Figures(NamedTuple):
    """What a model's directory says about its quality.

    Attributes:
      rows: (name of a figure, value).
      source: the file that they are from, and what wrote it.
      command: the command line that produced them; "" if it was not recorded.
    """

    rows: list[tuple[str, float]]
    source: str
    command: str = ""


def text(
    repository: str,
    config: ModelConfig,
    parameters: int,
    *,
    license: str,
    tags: Sequence[str] = (),
    figures: Figures | None = None,
    has_grid: bool = False,
) -> str:
    """Returns a model card, with its front matter in YAML.

    Args:
      repository: "owner/name".
      config: the model's configuration.
      parameters: number of its parameters.
      license: an identifier that the hub knows, such as "mit".
      tags: further tags.
      figures: of `read_figures`.
      has_grid: whether the repository has a grid of samples.
    """
    transformer, tokenizer = config.transformer, config.tokenizer
    kind = transformer.objective if transformer else "tokenizer"
    front_matter = library().ModelCardData(
        license=license,
        library_name=LIBRARY,
        tags=[*TAGS, kind.replace("_", "-"), *tags],
        pipeline_tag="unconditional-image-generation" if transformer else None,
    )
    height, width, _ = tokenizer.image_shape
    sizes = f"{height} x {width} pixels, token maps {tokenizer.scales}"
    if transformer:
        described = (
            f"A class-conditional image generator ({kind.replace('_', ' ')}, depth "
            f"{transformer.depth}, {transformer.num_classes} classes) with its tokenizer: {sizes}, "
        )
        use = ["images = model.sample([0, 1, 2], seed=0)  # in [0, 1]"]
    else:
        described = f"An image tokenizer: {sizes}, "
        use = ["tokens = model.encode(images)  # images in [-1, 1]"]
    lines = [
        *("---", front_matter.to_yaml(), "---", ""),
        *(f"# {repository.rpartition('/')[2]}", ""),
        *(f"{described}{parameters:,} parameters in all.", ""),
        *("```python", "import var_jax  # pip install 'var_jax[hub]'", ""),
        *(f'model = var_jax.Pipeline.from_pretrained("hf://{repository}")', *use, "```", ""),
    ]
    if has_grid:
        lines += [f"![Samples]({GRID})", ""]
    if figures:
        lines += ["## Figures", "", f"{figures.source}.", ""]
        if figures.command:
            lines += ["They were produced by", "", "```", figures.command, "```", ""]
        else:
            lines += ["The command that produced them was not recorded.", ""]
        lines += ["| figure | value |", "|---|---|"]
        lines += [f"| {name} | {value:.6g} |" for name, value in figures.rows] + [""]
    return "\n".join(lines)


def read_figures(directory: epath.Path) -> Figures | None:
    """Returns the figures that a model's directory has; None if it has none.

    They are those of the report of `quickstart` or `evaluate`, or else of a run's last evaluation.

    Raises:
      UserError: the report cannot be read.
    """
    if report := read_object_if_exists(directory / REPORT):
        source = f"All numbers of `{REPORT}` in the model's directory, which var_jax wrote"
        return Figures(list(_numbers(report)), source, _command(report))
    record = run_records.last_held_out(directory)
    if record is None:
        return None
    source = f"The run's last evaluation on held-out images, from its `{run_records.FILE}`"
    return Figures(list(_numbers(record)), source, _command(read_object_or_none(directory / META)))


def _command(record: Mapping[str, Any] | None) -> str:
    """Returns the command line that a report or a run's meta.json has; "" without one."""
    command = (record or {}).get("command")
    return command if isinstance(command, str) else ""


def find_grid(directory: epath.Path) -> epath.Path | None:
    """Returns a model's grid of samples: the quickstart's, or a run's newest; None without one."""
    if (directory / GRID).exists():
        return directory / GRID
    grids = (directory / "samples").glob("step_*.png")
    return max(grids, key=lambda path: path.name, default=None)


def _numbers(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yields ("a.b", number) for every finite number in nested dicts."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}.")
        elif is_finite_number(value):
            yield f"{prefix}{name}", value
