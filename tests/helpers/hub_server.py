"""A server on this machine that imitates the part of the Hugging Face hub's API that its library
calls for files of models: to download them, and to commit them."""

import base64
import contextlib
import dataclasses
import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from helpers import small
from helpers.files import contents
from reference import torch_writer
from var_jax.config.model import ModelConfig, TokenizerConfig, TransformerConfig
from var_jax.io import releases

FILE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
API = re.compile(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main")
LARGE = (".safetensors", ".pth")  # endings of files that are stored by their SHA-256, as in LFS


class Hub:
    """The state of the server, which a test sets and looks at.

    Attributes:
      url: of the server.
      commits: {repository: [{path: content}, ...]}, the newest commit last.
      tags: {revision: index of the commit}, the same for all repositories.
      wrong: {path: content that is sent in place of the right one, by GET alone}.
      cut: {path: bytes after which the connection is cut off, at every try}.
      refuses: whether commits are refused, as without a token.
      requests: "METHOD path" of every request so far.
      cache: the directory that files are downloaded to.
    """

    cache: Path

    def __init__(self, url: str):
        self.url = url
        self.objects: dict[str, bytes] = {}
        self.reset()

    def reset(self):
        self.commits: dict[str, list[dict[str, bytes]]] = {}
        self.tags: dict[str, int] = {}
        self.wrong: dict[str, bytes] = {}
        self.cut: dict[str, int] = {}
        self.refuses = False
        self.requests: list[str] = []

    def commit(self, repository: str, index: int = -1) -> str:
        """Returns the name of a commit, from its content."""
        commits = self.commits[repository]
        number = index % len(commits)
        names = [*commits[number], *map(hash_of, commits[number], commits[number].values())]
        return hashlib.sha1(f"{number} {names}".encode()).hexdigest()

    def find(self, repository: str, revision: str) -> int | None:
        """Returns the index of a revision's commit; None if there is no such revision."""
        if revision == "main":
            return len(self.commits[repository]) - 1
        if revision in self.tags:
            return self.tags[revision]
        names = [self.commit(repository, i) for i in range(len(self.commits[repository]))]
        return names.index(revision) if revision in names else None

    def downloads(self) -> list[str]:
        return [request for request in self.requests if request.startswith("GET ")]


def add_release(hub: Hub, directory: Path, monkeypatch) -> releases.Release:
    """Adds a release "var-d2" of the small model, whose files are in PyTorch's format as the
    published ones are, to the server and to the table of releases."""
    files = "vae_small.pth", "var_d2.pth"
    directory.mkdir()
    for name, state in zip(files, small.pipeline().to_torch(with_buffers=True), strict=True):
        torch_writer.save(directory / name, state)
    hub.commits[releases.REPOSITORY] = [contents(directory)]
    config = ModelConfig(
        dataclasses.replace(small.TOKENIZER, init_codes=TokenizerConfig.init_codes),
        TransformerConfig(
            depth=2,
            width=16,
            heads=2,
            num_classes=10,
            vocab_size=16,
            z_channels=4,
            scales=small.SCALES,
        ),
    )
    release = releases.Release(*files, config)
    monkeypatch.setitem(releases.RELEASES, "var-d2", release)
    return release


def hash_of(path: str, content: bytes) -> str:
    """Returns the hash that the hub declares for a file."""
    if path.endswith(LARGE):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._file(with_content=False)

    def do_GET(self):
        self._file(with_content=True)

    def do_PUT(self):
        content = self._read()
        self.hub.objects[hashlib.sha256(content).hexdigest()] = content
        self._answer(200)

    def do_POST(self):
        self.hub.requests.append(f"POST {self.path}")
        body = self._read()
        if self.hub.refuses:
            return self._answer(403, error="Forbidden")
        if self.path == "/api/repos/create":
            values = json.loads(body)
            repository = f"{values['organization']}/{values['name']}"
            if repository in self.hub.commits:
                return self._json({"url": f"{self.hub.url}/{repository}"}, 409)
            self.hub.commits[repository] = [{}]
            return self._json({"url": f"{self.hub.url}/{repository}"})
        if self.path == "/api/validate-yaml":
            return self._json({"warnings": [], "errors": []})
        if self.path.endswith(".git/info/lfs/objects/batch"):
            return self._json({"objects": [self._upload(o) for o in json.loads(body)["objects"]]})
        match = API.fullmatch(self.path)
        assert match is not None, self.path
        if match[2] == "preupload":
            modes = [self._mode(file["path"]) for file in json.loads(body)["files"]]
            return self._json({"files": modes})
        return self._commit(match[1], [json.loads(line) for line in body.splitlines()])

    def _mode(self, path: str) -> dict:
        mode = "lfs" if path.endswith(LARGE) else "regular"
        return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": None}

    def _upload(self, item: dict) -> dict:
        return {**item, "actions": {"upload": {"href": f"{self.hub.url}/objects/{item['oid']}"}}}

    def _commit(self, repository: str, lines: list[dict]):
        commits = self.hub.commits[repository]
        files = dict(commits[-1])
        for line in lines:
            value = line["value"]
            match line["key"]:
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.hub.objects[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        commits.append(files)
        name = self.hub.commit(repository)
        url = f"{self.hub.url}/{repository}/commit/{name}"
        self._json({"commitUrl": url, "commitOid": name, "success": True})

    def _file(self, *, with_content: bool):
        hub = self.hub
        hub.requests.append(f"{self.command} {self.path}")
        match = FILE.fullmatch(self.path)
        repository, revision, path = match.groups() if match else ("", "", "")
        if repository not in hub.commits:
            return self._answer(401, error="RepoNotFound")
        index = hub.find(repository, revision)
        if index is None:
            return self._answer(404, error="RevisionNotFound")
        headers = {"X-Repo-Commit": hub.commit(repository, index)}
        if path not in hub.commits[repository][index]:
            return self._answer(404, headers, error="EntryNotFound")
        content = hub.commits[repository][index][path]
        headers["ETag"] = f'"{hash_of(path, content)}"'
        if with_content and path in hub.cut:
            self._answer(200, headers, content, sent=hub.cut[path])
            self.close_connection = True
            return None
        if with_content:
            content = hub.wrong.get(path, content)
        return self._answer(200, headers, content)

    def _read(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _json(self, value: dict, status: int = 200):
        self._answer(status, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def _answer(
        self,
        status: int,
        headers: dict[str, str] | None = None,
        content: bytes = b"",
        *,
        sent: int | None = None,
        error: str = "",
    ):
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if error:
            self.send_header("X-Error-Code", error)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            with contextlib.suppress(ConnectionError):
                self.wfile.write(content[:sent])


@contextlib.contextmanager
def serving() -> Iterator[Hub]:
    """Serves a hub on a free port of this machine within a `with` block."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    hub = _Handler.hub = Hub(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def unused_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return unused.getsockname()[1]


@pytest.fixture(scope="module")
def hub_service() -> Iterator[Hub]:
    with serving() as hub:
        yield hub


@pytest.fixture
def hub(hub_service, tmp_path_factory, monkeypatch) -> Hub:
    """A hub without repositories, and an empty cache, `hub.cache`."""
    constants = pytest.importorskip("huggingface_hub.constants", reason="the extra [hub] has it")
    hub_service.reset()
    hub_service.cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("HF_ENDPOINT", hub_service.url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub_service.cache))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between the library's tries
    return hub_service
