"""`var-jax demo`: its mistakes, and the page in a real Chromium, served as a user would."""

import base64
import contextlib
import io
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import types
import zlib

import numpy as np
import psutil
import pytest
from PIL import Image

from helpers.processes import free_port
from var_jax import Pipeline
from var_jax.cli.main import main

WAIT_MS = 120_000  # where several programs share the cores


@pytest.fixture
def refused(capsys, monkeypatch):
    """Runs the command, with a Gradio that nothing may use, and gives its one line."""
    monkeypatch.setitem(sys.modules, "gradio", types.ModuleType("gradio"))
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "")  # put back afterwards

    def run(*argv) -> str:
        assert main(["demo", *map(str, argv)]) == 2
        printed = capsys.readouterr()
        assert printed.err.count("\n") == 1 and printed.out == "", printed
        return printed.err

    return run


def test_demo_names_mistakes_before_it_loads_a_model(refused, model_dir, tmp_path, monkeypatch):
    """Ports, hosts, directories and a missing package are refused in one line each; most are given
    with a directory that does not exist, so that loading would fail first."""
    port, nowhere = free_port(), tmp_path / "none"
    assert "no model directory" in refused("--model", nowhere, "--port", port)
    assert "required: --model" in refused()
    for wrong in (0, 65536, -1):
        assert f"--port is {wrong}; it must be from 1 to 65535" in refused(
            "--model", nowhere, "--port", wrong
        )
    assert "--port: invalid int value: 'http'" in refused("--model", nowhere, "--port", "http")
    assert "--host 'no.such.host.invalid' is no address" in refused(
        "--model", nowhere, "--host", "no.such.host.invalid", "--port", port
    )
    assert "--host '192.0.2.1' is no address of this machine; give 127.0.0.1" in refused(
        "--model", nowhere, "--host", "192.0.2.1", "--port", port
    )
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        busy = listener.getsockname()[1]
        assert f"--port {busy} is in use on 127.0.0.1; give another one" in refused(
            "--model", nowhere, "--port", busy
        )
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert "needs the package gradio; install it by pip install 'var-jax[demo]'" in refused(
        "--model", model_dir
    )


def test_demo_refuses_a_tokenizer_alone(refused, model_dir, tmp_path):
    """A model directory without a transformer cannot sample images, so that the demo refuses it and
    says what it needs."""
    from var_jax.config.model import ModelConfig

    model = Pipeline.from_pretrained(model_dir)
    Pipeline(ModelConfig(model.config.tokenizer), {"tokenizer": model.params["tokenizer"]}).save(
        tmp_path / "alone"
    )
    assert "a tokenizer alone; it must be one with a transformer" in refused(
        "--model", tmp_path / "alone", "--port", free_port()
    )


class Server:
    """The command as a process of its own; its files go where the test sees them."""

    def __init__(self, model, directory, port: int):
        self.port, self.temporary, self._logs = port, directory / "tmp", directory / "told.log"
        self.temporary.mkdir()
        environment = {
            **os.environ,
            "XLA_FLAGS": "",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "TMPDIR": str(self.temporary),
        }
        with self._logs.open("w") as file:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "var_jax",
                    "demo",
                    "--model",
                    str(model),
                    "--port",
                    str(port),
                ],
                env=environment,
                stdout=file,
                stderr=file,
            )

    def output(self) -> str:
        return self._logs.read_text()

    def wait_until_ready(self, seconds: float):
        end = time.monotonic() + seconds
        while "ready at" not in self.output():
            assert self.process.poll() is None and time.monotonic() < end, self.output()
            time.sleep(0.1)


@pytest.fixture
def server(model_dir, tmp_path):
    pytest.importorskip("gradio", reason="gradio is not installed (pip install 'var-jax[demo]')")
    running = Server(model_dir, tmp_path, free_port())
    try:
        running.wait_until_ready(400)
        yield running
    finally:
        running.process.kill()
        running.process.wait()


@pytest.fixture
def chromium():
    api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed (pip install playwright)"
    )
    program = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if program is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    with api.sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=program, args=["--no-sandbox"]
        )  # root has no sandbox
        yield browser
        browser.close()


def gray(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as opened:
        return np.asarray(opened.convert("L"))


class Page:
    """What a visitor does."""

    def __init__(self, page):
        from playwright.sync_api import TimeoutError

        self.page, self.late = page, TimeoutError

    def press(self, name: str):
        self.page.get_by_role("button", name=name, exact=True).click()

    def choose(self, label: str, option: str):
        field = self.page.get_by_label(label, exact=True)
        field.click()
        field.fill(option)
        self.page.get_by_role("option", name=option, exact=True).click()

    def status(self, where: str, text: str):
        """Waits for the line below a result."""
        self.page.locator(f"#{where} [role=status]", has_text=text).wait_for(timeout=WAIT_MS)

    def download(self, where: str, name: str) -> tuple[str, bytes]:
        with self.page.expect_download() as result:
            self.page.locator(f"#{where} a", has_text=name).click()
        with open(result.value.path(), "rb") as file:
            return result.value.suggested_filename, file.read()

    def tiles(self, where: str) -> list[np.ndarray]:
        sources = [
            image.get_attribute("src") for image in self.page.locator(f"#{where} .strip img").all()
        ]
        return [gray(base64.b64decode(source.partition(",")[2])) for source in sources]

    def paint(self):
        """A few strokes over the middle of the image, none near its edge."""
        canvas = self.page.locator("#editor canvas").first
        canvas.scroll_into_view_if_needed()
        self.page.wait_for_timeout(1500)  # the editor takes an image in without a sign
        box = canvas.bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        self.page.mouse.move(x - 50, y - 40)
        self.page.mouse.down()
        for k in range(6):
            self.page.mouse.move(x + (50 if k % 2 else -50), y - 40 + 14 * k, steps=8)
        self.page.mouse.up()
        self.page.wait_for_timeout(500)

    def edit(self):
        """Paints and edits until there is an edit that was not there: the editor takes an image in
        without a sign, and strokes that come before it are gone."""
        result = self.page.locator("#edited .strip img").first
        old = result.get_attribute("src") if result.count() else None
        for _ in range(4):
            self.paint()
            self.press("Edit")
            with contextlib.suppress(self.late):
                self.page.wait_for_function(
                    "old => { const now = document.querySelector('#edited .strip img');"
                    " return now && now.src !== old }",
                    arg=old,
                    timeout=WAIT_MS / 4,
                )
                return
        raise AssertionError("no edit came")

    def upload(self, file):
        with self.page.expect_file_chooser() as chooser:
            self.press("Upload an image instead")
        chooser.value.set_files(file)

    def error(self, text: str):
        """Waits for an error's line, which goes by itself."""
        self.page.get_by_test_id("toast-body").filter(has_text=text).first.wait_for(timeout=WAIT_MS)


@pytest.mark.slow
def test_page_works_in_a_browser(server, chromium, model_dir, tmp_path):
    """A user generates, downloads, uploads, paints and edits; pixels shown and downloaded are the
    pipeline's, mistakes appear as text, and no other address is asked for anything."""
    page = Page(chromium.new_page(viewport={"width": 1280, "height": 900}))
    page.page.set_default_timeout(WAIT_MS)
    addresses = set()
    page.page.on("request", lambda request: addresses.add(request.url))
    page.page.goto(f"http://127.0.0.1:{server.port}")
    page.press("Edit")
    page.error("there is no image to edit yet")

    page.choose("Class", "3")
    page.page.get_by_label("Seed", exact=True).first.fill("5")
    page.press("Generate")
    page.status("generated", "class 3, seed 5, preset fid, guidance 1.5")
    name, content = page.download("generated", "Download image")
    image = gray(content)
    assert name == "class3_seed5.png" and image.shape == (6, 8)
    expected, steps = Pipeline.from_pretrained(model_dir).sample(
        [3], seed=5, as_uint8=True, return_steps=True
    )
    np.testing.assert_allclose(image.astype(int), expected[0, ..., 0], atol=1)
    tiles = page.tiles("generated")
    np.testing.assert_allclose(np.stack(tiles).astype(int), steps[0, ..., 0], atol=1)
    name, content = page.download("generated", "Download strip")
    assert name == "class3_seed5_strip.png" and gray(content).shape[1] > 3 * 96

    page.choose("Class of the new content", "7")
    page.edit()
    page.status("edited", "class 7, seed 0")
    before, mask, after = page.tiles("edited")
    edited = gray(page.download("edited", "Download image")[1])
    np.testing.assert_array_equal(before, image)
    np.testing.assert_array_equal(after, edited)
    assert 0 < (mask == 255).sum() < mask.size and mask[0].max() == mask[:, 0].max() == 0
    np.testing.assert_array_equal(edited[mask == 0], image[mask == 0])
    assert not np.array_equal(edited, image)

    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    bomb = b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            struct.pack(">I", 13),
            header,
            struct.pack(">I", zlib.crc32(header)),
            struct.pack(">I", 100),
            b"IDAT",
        )
    )
    for content, line in (
        (b"not an image", "the upload is not an image that can be read; it must be PNG"),
        (bomb, "the upload has too many pixels; it must be at most 50 million"),
        (b"\0" * (21 << 20), "exceed the maximum allowed size"),
    ):
        (tmp_path / "bad.png").write_bytes(content)
        page.upload(tmp_path / "bad.png")
        page.error(line)
    np.testing.assert_array_equal(page.tiles("edited")[2], edited)  # what was there stays
    mine = np.random.default_rng(0).integers(0, 256, (6, 8), dtype=np.uint8)
    Image.fromarray(mine).save(tmp_path / "mine.png")
    page.upload(tmp_path / "mine.png")
    page.page.locator("#edited .hint").wait_for()  # the edit of the other image is gone
    page.page.wait_for_timeout(1500)
    page.press("Edit")
    page.error("the painted region is empty")
    page.edit()
    page.status("edited", "class 7, seed 0")
    before, mask, after = page.tiles("edited")
    np.testing.assert_array_equal(before, mine)
    np.testing.assert_array_equal(after[mask == 0], mine[mask == 0])
    assert (mask == 255).any()
    page.press("Edit the result further")
    page.edit()
    np.testing.assert_array_equal(page.tiles("edited")[0], after)

    page.page.get_by_label("Seed", exact=True).first.fill("6")
    page.press("Generate")
    page.status("generated", "class 3, seed 6")
    page.page.set_viewport_size({"width": 420, "height": 900})
    assert page.page.evaluate("document.documentElement.scrollWidth") <= 420
    assert {
        re.match(r"(?:blob:)?http://127\.0\.0\.1:(\d+)/|data:", url) is not None
        for url in addresses
    } == {True}
    assert "Traceback" not in server.output()


@pytest.mark.slow
def test_server_keeps_to_this_machine_and_ends_by_ctrl_c(server):
    """Its only socket listens on 127.0.0.1; Ctrl-C ends it with exit code 0 and removes its
    temporary files."""
    here = {
        connection
        for process in (psutil.Process(server.process.pid),)
        for connection in process.net_connections(kind="inet")
    }
    assert {c.laddr.port for c in here if c.status == psutil.CONN_LISTEN} == {server.port}
    assert {end.ip for c in here for end in (c.laddr, c.raddr) if end} == {"127.0.0.1"}
    assert list(server.temporary.glob("var_jax_demo_*"))
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(timeout=60) == 0
    output = server.output()
    assert "Traceback" not in output
    assert output.endswith(f"ready at http://127.0.0.1:{server.port}/ (Ctrl-C ends it)\nended\n")
    assert not list(server.temporary.glob("var_jax_demo_*"))
