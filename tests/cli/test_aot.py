"""`var-jax aot`: mistakes are found before anything is compiled."""

import pytest

from helpers import small
from var_jax.cli.main import main


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["--topology", "v5e"],
            "--topology is v5e; it must be a chip and the slice's shape, such as v5e:16x16",
        ),
        (["--topology", "v5x:4x4"], "unknown chip v5x"),
        (["--topology", "v5e:2x2", "--images", "0"], "--images is 0; it must be at least 1"),
        (["--topology", "v5e:2x2", "--json", "nowhere/a.json"], "in a directory that exists"),
        (["--topology", "v5e:2x2", "--step", "serve"], "invalid choice: 'serve'"),
    ],
)
def test_aot_names_a_mistake_before_it_compiles(tmp_path, capsys, args, message):
    """One line names the flag, its value and the right ones; a compilation would need libtpu and
    minutes."""
    (tmp_path / "config.py").write_text(small.CONFIG_FILE)
    assert main(["aot", "--config", str(tmp_path / "config.py"), *args]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_aot_names_meshes_that_divide(tmp_path, capsys):
    """A mesh that leaves parameters whole is refused with one that divides more of them."""
    pytest.importorskip(
        "libtpu", reason="libtpu, the TPU compiler, is not installed (pip install 'var-jax[aot]')"
    )
    (tmp_path / "config.py").write_text(small.CONFIG_FILE)
    args = [
        "--topology",
        "v5e:4x8",
        "--config.batch_size=64",
        "--config.mesh.data=32",
        "--config.mesh.model=1",
    ]
    assert main(["aot", "--config", str(tmp_path / "config.py"), *args]) == 2
    assert "data=16, model=2 would divide more" in capsys.readouterr().err
