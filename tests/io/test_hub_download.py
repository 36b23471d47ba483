"""Models on the Hugging Face hub, from a server on this machine that imitates it."""

import dataclasses
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from helpers import hub_server, small
from helpers.files import contents
from var_jax import Pipeline
from var_jax.config.model import ModelConfig
from var_jax.errors import RunFailed, UserError
from var_jax.io import hub_download, releases
from var_jax.io.hub_address import Address
from var_jax.io.hub_download import local_directory
from var_jax.io.hub_library import library

constants = pytest.importorskip("huggingface_hub.constants", reason="the extra [hub] has it")
REPOSITORY = "owner/small"
LARGE = 21 << 20  # bytes; the library writes 10 MiB at a time


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, bytes]:
    """The files of the small model, which has names of classes."""
    directory = tmp_path_factory.mktemp("model")
    model = small.pipeline()
    Pipeline(model.config, model.params, [f"class {i}" for i in range(10)]).save(directory)
    return contents(directory)


def cached(directory: Path) -> list[str]:
    """Returns the names of the files in a cache that hold content: links that lead nowhere and
    empty files do not."""
    return [path.name for path in directory.rglob("*") if path.is_file() and path.stat().st_size]


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("hf://owner/name", Address("owner/name")),
        ("hf://owner/name/", Address("owner/name")),
        ("hf://owner/na-me_1.0@v1.0", Address("owner/na-me_1.0", "v1.0")),
        ("hf://owner/name/a/b", Address("owner/name", "main", "a/b")),
        ("hf://owner/name@refs%2Fpr%2F1/a", Address("owner/name", "refs/pr/1", "a")),
    ],
)
def test_address_parse_reads_every_part(text, address):
    """The parts are those of the address; without a revision it is the branch `main`."""
    assert Address.parse(text) == address


@pytest.mark.parametrize(
    "text", ["hf://", "hf://owner", "hf://owner/name@", "hf://owner/name/../x", "hf://o/n@a@b"]
)
def test_address_parse_names_the_form(text):
    """An address with a part missing, twice or leading out of the repository is a user's mistake,
    and the message has the right form."""
    with pytest.raises(UserError, match="hf://OWNER/NAME"):
        Address.parse(text)


def test_from_pretrained_is_the_published_model(hub, files):
    """Weights and names of classes are those that were published."""
    hub.commits[REPOSITORY] = [files]
    model = Pipeline.from_pretrained(f"hf://{REPOSITORY}")
    jax.tree.map(np.testing.assert_array_equal, model.params, small.pipeline().params)
    assert model.class_names[3] == "class 3"


def test_local_directory_fetches_a_model_once(hub, files, monkeypatch):
    """A second call downloads nothing, and neither without the server nor in offline mode is
    anything missing."""
    hub.commits[REPOSITORY] = [files]
    assert contents(local_directory(f"hf://{REPOSITORY}")) == files
    assert len(hub.downloads()) == len(files) == 4
    assert contents(local_directory(f"hf://{REPOSITORY}")) == files
    assert len(hub.downloads()) == 4

    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{hub_server.unused_port()}")
    assert contents(local_directory(f"hf://{REPOSITORY}")) == files
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert contents(local_directory(f"hf://{REPOSITORY}")) == files


def test_local_directory_takes_a_revision_and_a_folder(hub, files):
    """A tag and a folder give another model than the branch `main` has; all files are of one
    commit, and a model that is published anew is fetched anew."""
    nameless = {name: content for name, content in files.items() if name != "data.json"}
    hub.commits[REPOSITORY] = [{f"sub/{name}": data for name, data in nameless.items()}, files]
    hub.tags["v1"] = 0
    assert contents(local_directory(f"hf://{REPOSITORY}@v1/sub")) == nameless
    assert contents(local_directory(f"hf://{REPOSITORY}")) == files
    newer = {**files, "data.json": b'{"class_names": ["other"]}'}
    hub.commits[REPOSITORY].append(newer)
    assert contents(local_directory(f"hf://{REPOSITORY}")) == newer
    pinned = hub.commit(REPOSITORY, 1)
    assert contents(local_directory(f"hf://{REPOSITORY}@{pinned}")) == files


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("hf://owner/none", "hf://owner/none: http.* has no such repository"),
        (f"hf://{REPOSITORY}@v9", "no revision 'v9'"),
        (f"hf://{REPOSITORY}/none", "has no file model.json.*`convert`"),
    ],
)
def test_local_directory_names_what_is_not_there(hub, files, address, words):
    """The line names the repository, the revision or the file."""
    hub.commits[REPOSITORY] = [files]
    with pytest.raises(UserError, match=words):
        local_directory(address)


def test_local_directory_names_a_file_that_is_missing(hub, files):
    """A repository without its weights is refused by the file's name, at the second try too."""
    hub.commits[REPOSITORY] = [{"model.json": files["model.json"]}]
    for _ in range(2):
        with pytest.raises(UserError, match="has no file tokenizer.safetensors"):
            local_directory(f"hf://{REPOSITORY}")


@pytest.mark.parametrize("name", ["tokenizer.safetensors", "model.json"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data[:-1] + b"x", "another content"),
        (lambda data: data[:-1], "another size"),
        (lambda data: data + b"x", "another size"),
    ],
    ids=["hash", "short", "long"],
)
def test_local_directory_refuses_content_that_the_hub_does_not_declare(
    hub, files, tmp_path, name, change, words
):
    """A file with another hash or size is named and not kept; when the hub sends the right one, the
    next call has the model."""
    hub.commits[REPOSITORY] = [files]
    hub.wrong[name] = change(files[name])
    with pytest.raises(UserError, match=f"{name} arrives with {words}"):
        local_directory(f"hf://{REPOSITORY}")
    assert name not in cached(hub.cache)
    assert hub_server.hash_of(name, files[name]) not in cached(hub.cache)
    hub.wrong.clear()
    assert contents(local_directory(f"hf://{REPOSITORY}")) == files


@pytest.mark.parametrize(
    ("size", "sent", "words"),
    [
        (None, 1000, "cannot be reached: .*tokenizer.safetensors"),
        (LARGE, LARGE - 1000, "tokenizer.safetensors is cut off again and again"),
    ],
    ids=["small", "large"],
)
def test_local_directory_gives_up_a_transfer_that_is_cut_off(
    hub, files, tmp_path, size, sent, words
):
    """A connection that ends within a file, at every try, ends in one error. Of a large file each
    try receives more bytes, for which the library would try without end."""
    name = "tokenizer.safetensors"
    content = files[name] if size is None else bytes(size)
    hub.commits[REPOSITORY] = [{**files, name: content}]
    hub.cut[name] = sent
    with pytest.raises(RunFailed, match=words):
        local_directory(f"hf://{REPOSITORY}")
    assert name not in cached(hub.cache)
    assert not list((hub.cache).rglob("*.incomplete"))
    assert len([request for request in hub.downloads() if request.endswith(name)]) < 10


@pytest.mark.parametrize("content", [b"sent", b"other"])
def test_content_is_compared_with_the_hash_of_the_repositorys_own_entry(tmp_path, content):
    """Where repositories share files, the entry that a hash of the content names is a link, too,
    and the name that it leads to is another hash."""
    shared, entry = tmp_path / ("ab" * 32), tmp_path / hashlib.sha256(b"sent").hexdigest()
    shared.write_bytes(content)
    entry.symlink_to(shared)
    (tmp_path / "snapshot").mkdir()
    file = tmp_path / "snapshot" / "model.safetensors"
    file.symlink_to(f"../{entry.name}")
    if content == b"sent":
        hub_download._require_declared_content(file, "it")
        assert file.read_bytes() == content
        return
    with pytest.raises(UserError, match="it arrives with another content"):
        hub_download._require_declared_content(file, "it")
    assert not any(path.is_symlink() or path.exists() for path in (shared, entry, file))


def test_local_directory_tells_no_network_from_offline_mode(hub, files, monkeypatch):
    """Without a network the line names the server; in offline mode, the variable that asks for
    it."""
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{hub_server.unused_port()}")
    with pytest.raises(RunFailed, match="cannot be reached: .*model.json on http://127.0.0.1"):
        local_directory(f"hf://{REPOSITORY}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE"):
        local_directory(f"hf://{REPOSITORY}")


def test_local_directory_names_a_cache_that_cannot_be_written(hub, files, monkeypatch, tmp_path):
    """A file in place of the cache is the user's mistake; the line has its path, and it stays."""
    hub.commits[REPOSITORY] = [files]
    (tmp_path / "cache").write_text("mine")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match=f"cannot be written to {tmp_path / 'cache'}"):
        local_directory(f"hf://{REPOSITORY}")
    assert (tmp_path / "cache").read_text() == "mine"


def test_local_directory_names_the_extra(monkeypatch):
    """Without the library, the line has the command that installs it."""
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"pip install 'var-jax\[hub\]'"):
        local_directory(f"hf://{REPOSITORY}")


def test_warnings_of_the_library_stay_silenced():
    """In a new process, the level that is set before the library's first download is still set
    after its functions, which it imports at their first use, are there."""
    program = (
        "import logging\n"
        "from var_jax.io.hub_library import library\n"
        "hub, logger = library(), logging.getLogger('huggingface_hub')\n"
        "logger.setLevel(logging.ERROR)\n"
        "hub.hf_hub_download\n"
        "print(logger.level == logging.ERROR)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr


@pytest.mark.parametrize("before", ["", "import huggingface_hub.file_download\n"])
@pytest.mark.parametrize(("setting", "disabled"), [(None, True), ("0", False), ("1", True)])
def test_files_come_over_plain_http_unless_asked_otherwise(setting, disabled, before):
    """In a new process hf_xet is off, whose tries have no limit here, and on where the user's own
    variable says so; also after another package, as Gradio does, has imported the library."""
    environment = {k: v for k, v in os.environ.items() if k != "HF_HUB_DISABLE_XET"}
    if setting is not None:
        environment["HF_HUB_DISABLE_XET"] = setting
    program = (
        f"{before}from var_jax.io.hub_library import library\n"
        "print(library().constants.HF_HUB_DISABLE_XET)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment
    )
    assert done.stdout == f"{disabled}\n", done.stderr


def test_push_to_hub_publishes_what_from_pretrained_reads(hub, files, tmp_path):
    """The model comes back with its names. Its card has the front matter that the hub reads, and
    figures and a grid only of a directory that has them. A later model without class names and
    transformer does not keep the earlier one's."""
    model = small.pipeline()
    model = Pipeline(model.config, model.params, ["zero", "one"])
    (tmp_path / "report.json").write_text('{"samples": {"count": 200}, "name": "x"}')
    (tmp_path / "samples.png").write_bytes(b"picture")
    model.push_to_hub(REPOSITORY, license="mit", tags=["digits"], figures_from=tmp_path)
    assert Pipeline.from_pretrained(f"hf://{REPOSITORY}").class_names == ("zero", "one")
    card = hub.commits[REPOSITORY][1]["README.md"].decode()
    data = library().ModelCard(card).data
    assert (data.license, data.library_name) == ("mit", "var_jax")
    assert {"jax", "next-scale", "digits"} <= set(data.tags)
    assert "| samples.count | 200 |" in card and "(samples.png)" in card
    assert hub.commits[REPOSITORY][1]["samples.png"] == b"picture"

    model.tokenizer_alone().push_to_hub(REPOSITORY)
    (*_, newest) = hub.commits[REPOSITORY]
    assert sorted(newest) == ["README.md", "data.json", "model.json", "tokenizer.safetensors"]
    assert Pipeline.from_pretrained(f"hf://{REPOSITORY}").config.transformer is None
    card = newest["README.md"].decode()
    assert "license: unknown" in card and "Figures" not in card and "samples.png" not in card


def test_push_to_hub_names_who_refuses(hub, monkeypatch):
    """Without access the line says how to log in; without a network it names the server; nothing
    is committed."""
    model = small.pipeline().tokenizer_alone()
    with pytest.raises(UserError, match="OWNER/NAME"):
        model.push_to_hub("name")
    with pytest.raises(UserError, match="tags is 'gray'; it must be a list"):
        model.push_to_hub(REPOSITORY, tags="gray")  # which is a sequence of letters
    hub.refuses = True
    with pytest.raises(UserError, match="HF_TOKEN"):
        model.push_to_hub(REPOSITORY)
    assert hub.commits == {}
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{hub_server.unused_port()}")
    with pytest.raises(RunFailed, match="cannot be reached"):
        model.push_to_hub(REPOSITORY)


@pytest.fixture
def release(hub, tmp_path, monkeypatch) -> releases.Release:
    """A release "var-d2" of the small model, on the server."""
    return hub_server.add_release(hub, tmp_path / "torch", monkeypatch)


def test_releases_load_converts_the_published_files(hub, release):
    """The weights are those of the files, and the files are named with their size and commit."""
    loaded = releases.load("var-d2")
    jax.tree.map(np.testing.assert_array_equal, loaded.params, small.pipeline().params)
    sizes = {name: len(data) for name, data in hub.commits[releases.REPOSITORY][0].items()}
    assert {file.name: file.size for file in loaded.files} == sizes
    assert {file.commit for file in loaded.files} == {hub.commit(releases.REPOSITORY)}


@pytest.mark.parametrize("fault", ["wrong", "cut"])
def test_releases_load_refuses_files_that_arrive_damaged(hub, release, fault):
    """A file of PyTorch's format with other bytes than the hub declares, or one that is cut off at
    each try, is named in one line, and nothing of it stays in the cache to be taken for whole."""
    name = release.transformer_file
    content = hub.commits[releases.REPOSITORY][0][name]
    if fault == "wrong":
        hub.wrong[name] = content[:-8] + bytes(8)
    else:
        hub.cut[name] = len(content) // 2
    with pytest.raises((UserError, RunFailed), match=name) as raised:
        releases.load("var-d2")
    assert "\n" not in str(raised.value)
    hub.wrong.clear(), hub.cut.clear()
    jax.tree.map(
        np.testing.assert_array_equal, releases.load("var-d2").params, small.pipeline().params
    )


def test_releases_load_refuses_other_tensors(hub, release, monkeypatch):
    """Files that hold another model than the release are refused by the size that differs, and an
    unknown release by its name."""
    transformer = dataclasses.replace(release.config.transformer, depth=16)
    config = ModelConfig(release.config.tokenizer, transformer)
    monkeypatch.setitem(releases.RELEASES, "var-d2", release._replace(config=config))
    with pytest.raises(UserError, match="var-d2 .*transformer.depth: 16 here, 2 there"):
        releases.load("var-d2")
    with pytest.raises(UserError, match="did you mean 'var-d16'"):
        releases.load("var-d15")
