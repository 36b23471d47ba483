"""The server of the demo's page, on this machine."""

import contextlib
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence

from PIL import Image

from var_jax.demo import page, uploads
from var_jax.errors import UserError
from var_jax.pipeline import Pipeline

MAX_WAITING = 64  # visitors; the model serves one at a time


@contextlib.contextmanager
def serving(
    model: Pipeline, classes: Sequence[tuple[str, int]], name: str, host: str, port: int
) -> Iterator[str]:
    """Serves the page while the block runs, and yields its address.

    For a process that does nothing else: it sets Pillow's limit of pixels and the kinds of files
    that Pillow opens, and Gradio's environment.

    Args:
      classes: see `page.build`.
      name: the model's name, for the title.
    Raises:
      UserError: the server does not start there.
    """
    import gradio as gr

    # Gradio itself opens images of the editor, by Pillow.
    uploads.open_only_formats()
    Image.MAX_IMAGE_PIXELS = uploads.MAX_PIXELS
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    # Gradio asks its own address whether it is up, which no proxy must answer.
    os.environ["no_proxy"] = ",".join(
        filter(None, [os.environ.get("no_proxy") or os.environ.get("NO_PROXY"), host, "localhost"])
    )
    with tempfile.TemporaryDirectory(prefix="var_jax_demo_") as directory:
        os.environ["GRADIO_TEMP_DIR"] = directory
        blocks = page.build(model, classes, name)
        blocks.queue(max_size=MAX_WAITING, api_open=False)
        try:
            _, address, _ = blocks.launch(
                server_name=f"[{host}]" if ":" in host else host,
                server_port=port,
                share=False,
                inbrowser=False,
                prevent_thread_lock=True,
                quiet=True,
                max_file_size=uploads.MAX_BYTES,
                css=page.CSS,
                footer_links=[],
                theme=page.theme(gr),
                ssr_mode=False,
                mcp_server=False,
                pwa=False,
                enable_monitoring=False,
            )
        except OSError as error:
            raise UserError(
                f"the page cannot be served at {host}, port {port}: another program may listen "
                "there; give another --port"
            ) from error
        try:
            yield address
        finally:
            blocks.close(verbose=False)
