"""The page of `var-jax demo`: what is on it, what its buttons do, and its server on this
machine."""

from __future__ import annotations

import base64
import contextlib
import html
import io
import os
import secrets
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from var_jax.demo import session
from var_jax.demo.session import Choices
from var_jax.errors import UserError
from var_jax.io import pictures
from var_jax.pipeline import Pipeline
from var_jax.sampling.settings import PRESETS

if TYPE_CHECKING:
    import gradio as gr  # an extra, so that it is imported where it is used

LARGE, TILE = (
    384,
    96,
)  # pixels on the page that the longer side of an image, and of one of a strip, has at least
MAX_CFG = 10
MAX_WAITING = 64  # visitors; the model serves one at a time
HOUR = 3600
# Uploads and the editor's pictures lie in a directory of their own; a day after their making they
# are not asked for.
CLEAN_EVERY, KEEP = HOUR, 24 * HOUR
HINT_DRAW = '<div class="result"><p class="hint">The image, and what it was after each scale, come here.</p></div>'
HINT_EDIT = '<div class="result"><p class="hint">The edited image comes here.</p></div>'
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
.result .hint {display: flex; align-items: center; justify-content: center; min-height: 200px; padding: 0 24px;
  margin: 0; text-align: center; opacity: .75; border: 1px dashed var(--border-color-primary); border-radius: 6px}
.result a.download {display: inline-block; margin: 0 8px 8px 0; padding: 6px 14px; border-radius: 6px;
  border: 1px solid var(--border-color-primary); background: var(--button-secondary-background-fill);
  color: var(--button-secondary-text-color); text-decoration: none; font-size: 14px}
.result a.download:hover {background: var(--button-secondary-background-fill-hover)}
"""


def build(model: Pipeline, classes: Sequence[tuple[str, int]], name: str) -> gr.Blocks:
    """The page.

    Args:
      classes: (text, class id), as `demo.class_choices` gives them.
      name: of the model, for the title.
    """
    import gradio as gr

    config = model.config.tokenizer
    scales, texts, nowhere = (
        session.scale_titles(config),
        [text for text, _ in classes],
        classes[-1][1],
    )
    first = Choices(classes[0][1])

    def answered(function: Callable) -> Callable:
        """A user's mistake as a line on the page, where all stays as it was; Gradio's own error
        would cover it."""

        def run(*args):
            try:
                return function(*args)
            except UserError as error:
                gr.Warning(html.escape(" ".join(str(error).split())), title="Not done")
                return gr.skip()

        return run

    def told_of(choices: Choices, seconds: float) -> str:
        which = (
            texts[choices.label] if choices.label == nowhere else f"class {texts[choices.label]}"
        )
        return f"{which}, seed {choices.seed}, preset {choices.preset}, guidance {choices.cfg:g}: {seconds:.1f} s"

    def generate(label, seed, preset, cfg):
        choices = Choices(label, seed, preset, cfg)
        began = time.perf_counter()
        steps = session.draw(model, choices)
        told = told_of(choices, time.perf_counter() - began)
        return (
            generated(steps, scales, choices, told),
            steps[-1],
            magnified(steps[-1]),
            HINT_EDIT,
            None,
        )

    def upload(path):
        image = session.read_upload(path, config)
        return image, magnified(image), HINT_EDIT, None

    def edit(image, drawing, label, seed, from_scale, preset, cfg):
        if image is None:
            raise UserError("there is no image to edit yet; generate one, or upload one")
        mask = session.read_mask((drawing or {}).get("layers") or [], config)
        choices = Choices(label, seed, preset, cfg)
        began = time.perf_counter()
        after = session.redraw(model, image, mask, choices, from_scale)
        return edited(
            image, mask, after, choices, told_of(choices, time.perf_counter() - began)
        ), after

    def go_on(after):
        if after is None:
            raise UserError(
                "there is no edited image yet; paint over a part of the image and press Edit"
            )
        return after, magnified(after)

    def new_seed() -> int:
        return secrets.randbelow(2**32)

    with gr.Blocks(
        title=f"VAR: {name}", analytics_enabled=False, delete_cache=(CLEAN_EVERY, KEEP)
    ) as page:
        source, result = gr.State(None), gr.State(None)
        gr.Markdown(
            f"# {html.escape(name)}\nA VAR model draws an image coarse to fine, a whole token map at a time."
        )
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                label = gr.Dropdown(
                    list(classes), value=first.label, label="Class", filterable=True
                )
                seed, roll = _seed(gr)
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
                draw = gr.Button("Generate", variant="primary")
            with gr.Column(scale=3, min_width=300):
                drawn = gr.HTML(HINT_DRAW, elem_id="generated", min_height=160)
        gr.Markdown(
            "## Edit\nPaint over what is to be drawn anew; every other pixel stays as it is. "
            "Preset and guidance are those above."
        )
        with gr.Row():
            with gr.Column(
                scale=3, min_width=440
            ):  # never less than the editor, which does not follow it
                height, width = (
                    side * _factor(config.image_shape, LARGE) for side in config.image_shape[:2]
                )
                editor = gr.ImageEditor(
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
                choose = gr.UploadButton("Upload an image instead", file_types=["image"])
            with gr.Column(scale=2, min_width=280):
                new_label = gr.Dropdown(
                    list(classes), value=nowhere, label="Class of the new content", filterable=True
                )
                edit_seed, edit_roll = _seed(gr)
                from_scale = gr.Slider(
                    0,
                    len(scales) - 1,
                    value=session.default_from_scale(config),
                    step=1,
                    label="First new scale",
                    info=f"0 to {len(scales) - 1}, of {', '.join(scales)} tokens. The later, the closer to the old "
                    "image. The first use of another one takes longer.",
                )
                change = gr.Button("Edit", variant="primary")
            with gr.Column(scale=3, min_width=300):
                changed = gr.HTML(HINT_EDIT, elem_id="edited", min_height=160)
                again = gr.Button("Edit the result further")

        served: dict[str, Any] = {
            "concurrency_id": "model",
            "concurrency_limit": 1,
            "api_visibility": "private",
        }
        draw.click(
            answered(generate),
            [label, seed, preset, cfg],
            [drawn, source, editor, changed, result],
            **served,
        )
        choose.upload(answered(upload), choose, [source, editor, changed, result], **served)
        change.click(
            answered(edit),
            [source, editor, new_label, edit_seed, from_scale, preset, cfg],
            [changed, result],
            **served,
        )
        again.click(answered(go_on), result, [source, editor], **served)
        preset.input(
            lambda name: PRESETS[name]["cfg"],
            preset,
            cfg,
            api_visibility="private",
            show_progress="hidden",
        )
        for button, number in ((roll, seed), (edit_roll, edit_seed)):
            button.click(new_seed, None, number, api_visibility="private", show_progress="hidden")
    return page


def _theme(gr) -> Any:
    """Gradio's own, whose fonts lie in the package, with a darker grey for small text."""
    return gr.themes.Default().set(
        block_info_text_color="*neutral_500", block_info_text_color_dark="*neutral_400"
    )


def _seed(gr) -> tuple[Any, Any]:
    """The field of a seed and the button that draws one."""
    with gr.Row():
        seed = gr.Number(
            0, label="Seed", precision=0, minimum=0, maximum=2**32 - 1, min_width=140, scale=3
        )
        roll = gr.Button("New seed", size="sm", min_width=90, scale=1, elem_classes="roll")
    return seed, roll


def generated(
    steps: UInt8[np.ndarray, "k H W c"], scales: Sequence[str], choices: Choices, told: str
) -> str:
    """HTML of an image, of what it was after each scale, and of their downloads."""
    return _result(
        steps,
        scales,
        "After each scale, named by its tokens:",
        told,
        f"class{choices.label}_seed{choices.seed}",
    )


def edited(
    before: UInt8[np.ndarray, "H W c"],
    mask: Bool[np.ndarray, "H W"],
    after: UInt8[np.ndarray, "H W c"],
    choices: Choices,
    told: str,
) -> str:
    """HTML of an edited image beside what it was, and of their downloads; the mask is one that
    `var-jax edit` takes."""
    white = np.broadcast_to(np.where(mask, 255, 0).astype(np.uint8)[..., None], before.shape)
    return _result(
        np.stack([before, white, after]),
        ("before", "mask", "after"),
        "",
        told,
        f"edited_class{choices.label}_seed{choices.seed}",
    )


def _result(
    row: UInt8[np.ndarray, "k H W c"], titles: Sequence[str], heading: str, told: str, name: str
) -> str:
    """The last image of a row large, and all of them small."""
    strip = pictures.strip([row], column_titles=titles)
    links = "".join(
        f'<a class="download" download="{name}{part}.png" href="{_data_url(one)}">{text}</a>'
        for part, text, one in (
            ("", "Download image", pictures.image(row[-1])),
            ("_strip", "Download strip", strip),
        )
    )
    tiles = "".join(_figure(one, title, TILE) for one, title in zip(row, titles, strict=True))
    return (
        f'<div class="result"><div class="pictures large">{_figure(row[-1], "", LARGE)}</div>'
        f'<p role="status">{html.escape(told)}</p><div>{links}</div>{f"<p>{heading}</p>" if heading else ""}'
        f'<div class="pictures strip">{tiles}</div></div>'
    )


def _figure(image: UInt8[np.ndarray, "H W c"], title: str, side: int) -> str:
    """An image of the same pixels, however large they are shown."""
    height, width, _ = image.shape
    factor = _factor(image.shape, side)
    shown = (
        width * factor
        if side == LARGE
        else round(width * min(factor, 1.25 * side / max(height, width)))
    )
    kind = ' class="pixels"' if factor > 1 else ""
    caption = f"<figcaption>{title}</figcaption>" if title else ""
    source = _data_url(pictures.image(image))
    return (
        f'<figure><img{kind} width="{shown}" alt="{title or "result"}" src="{source}">{caption}'
        "</figure>"
    )


def magnified(image: UInt8[np.ndarray, "H W c"]) -> Image.Image:
    """By a whole number, so that one can paint on it."""
    return pictures.grid(image[None], columns=1, scale=_factor(image.shape, LARGE))


def _factor(shape: Sequence[int], side: int) -> int:
    return max(1, side // max(shape[:2]))


def _data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


@contextlib.contextmanager
def serving(
    model: Pipeline, classes: Sequence[tuple[str, int]], name: str, host: str, port: int
) -> Iterator[str]:
    """The page and its server while the block runs; gives the address.

    For a process that does nothing else: sets Pillow's limit of pixels and what kinds of files it
    opens, and Gradio's environment.

    Raises:
      UserError: the server does not start there.
    """
    import gradio as gr

    # Gradio itself opens what the editor sends, by Pillow.
    session.open_only_formats()
    Image.MAX_IMAGE_PIXELS = session.MAX_PIXELS
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    # Gradio asks its own address whether it is up, which no proxy must answer.
    os.environ["no_proxy"] = ",".join(
        filter(None, [os.environ.get("no_proxy") or os.environ.get("NO_PROXY"), host, "localhost"])
    )
    with tempfile.TemporaryDirectory(prefix="var_jax_demo_") as directory:
        os.environ["GRADIO_TEMP_DIR"] = directory
        page = build(model, classes, name)
        page.queue(max_size=MAX_WAITING, api_open=False)
        try:
            _, address, _ = page.launch(
                server_name=f"[{host}]" if ":" in host else host,
                server_port=port,
                share=False,
                inbrowser=False,
                prevent_thread_lock=True,
                quiet=True,
                max_file_size=session.MAX_BYTES,
                css=CSS,
                footer_links=[],
                theme=_theme(gr),
                ssr_mode=False,
                mcp_server=False,
                pwa=False,
                enable_monitoring=False,
            )
        except OSError as error:
            raise UserError(
                f"the page cannot be served at {host}, port {port}: another program may listen there; "
                "give another --port"
            ) from error
        try:
            yield address
        finally:
            page.close(verbose=False)
