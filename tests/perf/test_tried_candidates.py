"""The figures that a search keeps: which are read again, and which files are refused."""

import pytest
from etils import epath

from helpers import small
from var_jax.devices.chips import CHIPS
from var_jax.errors import UserError
from var_jax.perf.tpu_slices import Slice
from var_jax.perf.tried_candidates import TriedCandidates
from var_jax.train import toolchain

pytest.importorskip(
    "libtpu", reason="libtpu, the TPU compiler, is not installed (pip install 'var-jax[aot]')"
)

CONFIG = small.train_config("transformer", "")
SLICE = Slice("v5e:2x2", CHIPS["v5e"], (2, 2), ())
FIGURES = {"fits": True, "peak_bytes": 1.0, "step_seconds_exposed": 0.1}


@pytest.fixture
def path(tmp_path):
    """A file with the figures of a candidate "a"."""
    path = epath.Path(tmp_path / "a.tried")
    TriedCandidates(path, CONFIG, SLICE, print).add("a", FIGURES)
    return path


def read(path, config=CONFIG, tpu_slice=SLICE):
    """Returns the figures of "a" in a file, and the lines that reading it prints."""
    printed = []
    return TriedCandidates(path, config, tpu_slice, printed.append).get("a"), printed


def test_tried_candidates_are_read_from_the_file(path):
    """Another object on the same file has the figures, and no others."""
    assert read(path) == (FIGURES, [])
    assert TriedCandidates(path, CONFIG, SLICE, print).get("b") is None
    assert TriedCandidates(None, CONFIG, SLICE, print).add("a", FIGURES) == FIGURES


def test_tried_candidates_of_another_config_or_slice_are_left_out(path):
    """They are figures of another program; a line says that they are not used."""
    figures, printed = read(path, small.train_config("transformer", "", batch_size=16))
    assert figures is None and "starts from the beginning" in printed[0]
    figures, printed = read(path, tpu_slice=Slice("v5e:4x4", CHIPS["v5e"], (4, 4), ()))
    assert figures is None and str(path) in printed[0]


@pytest.mark.parametrize("change", ["sources", "versions", "environment"])
def test_tried_candidates_of_other_code_are_left_out_and_replaced(path, monkeypatch, change):
    """Figures that other sources, libraries or options of the compiler made are those of another
    program; the file then has the new ones."""
    monkeypatch.setattr(toolchain, change, lambda _: "another")
    assert read(path)[0] is None
    TriedCandidates(path, CONFIG, SLICE, print).add("a", {**FIGURES, "peak_bytes": 2.0})
    assert read(path) == ({**FIGURES, "peak_bytes": 2.0}, [])


def test_tried_candidates_follow_the_code_that_reads_programs(path, monkeypatch):
    """The fingerprint is also that of the code that counts what a compiled program does."""
    sources = toolchain.sources
    folders = []
    monkeypatch.setattr(toolchain, "sources", lambda f: folders.extend(f) or sources(f))
    assert read(path)[0] == FIGURES
    assert {"perf", "train", "models", "devices"} <= set(folders)


@pytest.mark.parametrize("damage", ["not JSON", "[]", '{"conditions": "", "figures": {}}', ""])
def test_tried_candidates_refuse_a_damaged_file(path, damage):
    """A file that no search wrote, or whose figures are not those that it wrote, is one line that
    names it, and stays as it is."""
    content = damage or path.read_text().replace('"peak_bytes": 1.0,', "")
    path.write_text(content)
    with pytest.raises(UserError) as error:
        read(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)
    assert path.read_text() == content
