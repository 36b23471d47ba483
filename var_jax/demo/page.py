"""The page of `var-jax demo`: its fields, its buttons and their handlers."""

from __future__ import annotations

import html
import secrets
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from var_jax.demo import results, session, uploads
from var_jax.demo.session import Choices
from var_jax.errors import UserError
from var_jax.io import pictures
from var_jax.pipeline import Pipeline
from var_jax.sampling import sampler_registry
from var_jax.sampling.settings import PRESETS

if TYPE_CHECKING:
    import gradio as gr  # an extra, so that it is imported where it is used

MAX_CFG = 10
HINT = '<div class="result"><p class="hint">{}</p></div>'
HINT_GENERATE = HINT.format("The image, and how it looked after each scale, will appear here.")
HINT_EDIT = HINT.format("The edited image will appear here.")
INTRODUCTION = "A VAR model draws an image coarse to fine, a whole token map at a time."
EDITING = (
    "## Edit\nPaint over what is to be drawn anew; every other pixel stays as it is. Preset and "
    "guidance are those above."
)
NO_EDITING = "Editing needs a model of objective next_scale or masked; this one's is {}."
CSS = """
.gradio-container {max-width: 1200px !important; margin: 0 auto !important}
#editor {width: min(100%, 440px)}
.roll {align-self: flex-end; height: 44px}
.pictures {display: flex; flex-wrap: wrap; gap: 10px; align-items: flex-end}
.pictures figure {margin: 0; max-width: 100%}
.pictures img {display: block; max-width: 100%; height: auto; background: #8884}
.pictures img.pixels, #editor canvas {image-rendering: pixelated}
.pictures figcaption {text-align: center; font-size: 14px; line-height: 1.6}
.result p {margin: 8px 0}
.result .hint {display: flex; align-items: center; justify-content: center; min-height: 200px;
  padding: 0 24px; margin: 0; text-align: center; opacity: .75;
  border: 1px dashed var(--border-color-primary); border-radius: 6px}
.result a.download {display: inline-block; margin: 0 8px 8px 0; padding: 6px 14px;
  border: 1px solid var(--border-color-primary); border-radius: 6px;
  background: var(--button-secondary-background-fill);
  color: var(--button-secondary-text-color); text-decoration: none; font-size: 14px}
.result a.download:hover {background: var(--button-secondary-background-fill-hover)}
"""


class Handlers:
    """The handlers of the page's buttons, for a model.

    Each method takes the values of the page's fields, and returns new values for some of them.
    """

    def __init__(self, model: Pipeline, classes: Sequence[tuple[str, int]]):
        self._model = model
        self._class_texts = [text for text, _ in classes]
        self._no_class = classes[-1][1]
        self._scales = pictures.scale_titles(model.config.tokenizer.scales)

    def generate(self, label: int, seed: int, preset: str, cfg: float) -> tuple:
        """Returns the components' values after generation.

        They are the result's HTML, the source image, its magnified copy for the editor, the empty
        HTML of the edit result, and None as the edited image.
        """
        choices = Choices(label, seed, preset, cfg)
        started = time.perf_counter()
        steps = session.draw(self._model, choices)
        status = self._status(choices, time.perf_counter() - started)
        content = results.generated(steps, self._scales[-len(steps) :], choices, status)
        return content, steps[-1], results.magnified(steps[-1]), HINT_EDIT, None

    def upload(self, path: str) -> tuple:
        """Returns the components' values after an upload.

        They are the uploaded image, its magnified copy for the editor, the empty HTML of the edit
        result, and None as the edited image.
        """
        image = uploads.read_upload(path, self._model.config.tokenizer)
        return image, results.magnified(image), HINT_EDIT, None

    def edit(
        self,
        image: UInt8[np.ndarray, "H W c"] | None,
        drawing: dict | None,
        keep_scales: int,
        *chosen,
    ) -> tuple:
        """Returns the result's HTML and the edited image.

        Args:
          drawing: the editor's value, whose layers are the mask.
          chosen: the fields of `Choices`.
        Raises:
          UserError: there is no image to edit, the mask is empty, or a choice is out of range.
        """
        if image is None:
            raise UserError("there is no image to edit yet; generate one, or upload one")
        mask = session.read_mask((drawing or {}).get("layers") or [], self._model.config.tokenizer)
        choices = Choices(*chosen)
        started = time.perf_counter()
        after = session.redraw(self._model, image, mask, choices, keep_scales)
        status = self._status(choices, time.perf_counter() - started)
        return results.edited(image, mask, after, choices, status), after

    def edit_further(self, after: UInt8[np.ndarray, "H W c"] | None) -> tuple:
        """Returns the edited image as the new source image, and its magnified copy for the editor.

        Raises:
          UserError: there is no edited image yet.
        """
        if after is None:
            raise UserError(
                "there is no edited image yet; paint over a part of the image and press Edit"
            )
        return after, results.magnified(after)

    def _status(self, choices: Choices, seconds: float) -> str:
        class_text = self._class_texts[choices.label]
        if choices.label != self._no_class:
            class_text = f"class {class_text}"
        return (
            f"{class_text}, seed {choices.seed}, preset {choices.preset}, "
            f"guidance {choices.cfg:g}: {seconds:.1f} s"
        )


class Sampling(NamedTuple):
    """The fields of one way to sample, and the button that starts it."""

    label: gr.Dropdown
    seed: gr.Number
    new_seed: gr.Button
    start: gr.Button


def build(model: Pipeline, classes: Sequence[tuple[str, int]], name: str) -> gr.Blocks:
    """Returns the page.

    Args:
      classes: (text, class id), as `session.class_choices` returns them.
      name: the model's name, for the title.
    """
    import gradio as gr

    config = model.config.tokenizer
    objective = model.config.transformer.objective
    by_scale = sampler_registry.find(model.config).by_scale
    scales = pictures.scale_titles(config.scales)
    first = Choices(classes[0][1], cfg=model.sampling_settings()["cfg"])
    handlers = Handlers(model, classes)

    with gr.Blocks(
        title=f"VAR: {name}",
        analytics_enabled=False,
        delete_cache=(uploads.CLEAN_EVERY, uploads.KEEP),
    ) as page:
        source, result = gr.State(None), gr.State(None)
        gr.Markdown(
            f"# {html.escape(name)}\n{INTRODUCTION}"
            if by_scale
            else f"# {html.escape(name)}\nA model of objective {objective}."
        )

        # Generation: its fields, and the image after each scale.
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                label = gr.Dropdown(
                    list(classes), value=first.label, label="Class", filterable=True
                )
                seed, new_seed = _seed(gr)
                preset = gr.Radio(
                    list(PRESETS),
                    value=first.preset,
                    label="Preset",
                    info="How tokens are drawn. The first use of another one takes longer.",
                )
                cfg = gr.Slider(
                    0,
                    MAX_CFG,
                    value=first.cfg,
                    step=0.1,
                    label="Guidance (cfg)",
                    info="How strongly the class is followed; 0 for none.",
                )
                start = gr.Button("Generate", variant="primary")
            with gr.Column(scale=3, min_width=300):
                generated = gr.HTML(HINT_GENERATE, elem_id="generated", min_height=160)
        generation = Sampling(label, seed, new_seed, start)

        # Editing: the editor, the fields, and the edited image.
        gr.Markdown(EDITING if model.edits else NO_EDITING.format(objective))
        with gr.Row(visible=model.edits):
            # The column is never narrower than the editor, which does not follow it.
            with gr.Column(scale=3, min_width=440):
                editor = _editor(gr, config.image_shape)
                choose = gr.UploadButton("Upload an image instead", file_types=["image"])
            with gr.Column(scale=2, min_width=280):
                label = gr.Dropdown(
                    list(classes),
                    value=classes[-1][1],
                    label="Class of the new content",
                    filterable=True,
                )
                seed, new_seed = _seed(gr)
                keep_scales = gr.Slider(
                    0,
                    max(len(scales) - 1, 1),
                    value=session.default_keep_scales(config),
                    step=1,
                    visible=by_scale,
                    label="First new scale",
                    info=f"0 to {len(scales) - 1}, of {', '.join(scales)} tokens. The later, the "
                    "closer to the old image. The first use of another one takes longer.",
                )
                start = gr.Button("Edit", variant="primary")
            with gr.Column(scale=3, min_width=300):
                edited = gr.HTML(HINT_EDIT, elem_id="edited", min_height=160)
                edit_further = gr.Button("Edit the result further")
        editing = Sampling(label, seed, new_seed, start)

        # The handlers of the buttons; the model serves one visitor at a time.
        with_model: dict[str, Any] = {
            "concurrency_id": "model",
            "concurrency_limit": 1,
            "api_visibility": "private",
        }
        generation.start.click(
            _answered(gr, handlers.generate),
            [generation.label, generation.seed, preset, cfg],
            [generated, source, editor, edited, result],
            **with_model,
        )
        choose.upload(
            _answered(gr, handlers.upload), choose, [source, editor, edited, result], **with_model
        )
        editing.start.click(
            _answered(gr, handlers.edit),
            [source, editor, keep_scales, editing.label, editing.seed, preset, cfg],
            [edited, result],
            **with_model,
        )
        edit_further.click(
            _answered(gr, handlers.edit_further), result, [source, editor], **with_model
        )
        preset.input(
            lambda name: model.sampling_settings(name)["cfg"],
            preset,
            cfg,
            api_visibility="private",
            show_progress="hidden",
        )
        for fields in (generation, editing):
            fields.new_seed.click(
                lambda: secrets.randbelow(2**32),
                None,
                fields.seed,
                api_visibility="private",
                show_progress="hidden",
            )
    return page


def theme(gr) -> Any:
    """Returns Gradio's default theme with a darker gray for small text.

    Its fonts are in the package.
    """
    return gr.themes.Default().set(
        block_info_text_color="*neutral_500", block_info_text_color_dark="*neutral_400"
    )


def _answered(gr, handler: Callable) -> Callable:
    """Returns a handler that shows a user's mistake as a line on the page.

    All fields stay as they are; Gradio's own error would cover them.
    """

    def run(*args):
        try:
            return handler(*args)
        except UserError as error:
            gr.Warning(html.escape(" ".join(str(error).split())), title="Not done")
            return gr.skip()

    return run


def _seed(gr) -> tuple[gr.Number, gr.Button]:
    """Adds the field of a seed, and the button that fills it with a random one."""
    with gr.Row():
        seed = gr.Number(
            0, label="Seed", precision=0, minimum=0, maximum=2**32 - 1, min_width=140, scale=3
        )
        button = gr.Button("New seed", size="sm", min_width=90, scale=1, elem_classes="roll")
    return seed, button


def _editor(gr, image_shape: tuple[int, int, int]) -> gr.ImageEditor:
    """Adds the editor, in which the image is magnified and painted on."""
    factor = results.magnification(image_shape, results.LARGE)
    height, width = (side * factor for side in image_shape[:2])
    return gr.ImageEditor(
        label="Paint here",
        sources=(),
        transforms=(),
        layers=False,
        type="numpy",
        format="png",
        canvas_size=(width, height),
        height="min(410px, 76vw)",
        buttons=[],
        elem_id="editor",
        brush=gr.Brush(
            default_size=max(width, height) // 10,
            colors=["#e6194b"],
            color_mode="fixed",
        ),
    )
