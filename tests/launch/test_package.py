"""The package as pip installs it, built from the files that the Dockerfile copies."""

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Runs commands one after another, and prints the exit code of each.
COMMANDS = """
import sys
from var_jax.cli.main import main
for line in sys.stdin.read().splitlines():
    print("exit code", main(line.split()), flush=True)
"""


def instructions(name: str) -> list[str]:
    """Returns the arguments of every instruction of one kind in the Dockerfile."""
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    return [line.removeprefix(f"{name} ") for line in lines if line.startswith(f"{name} ")]


def run_setuptools(directory: Path, *arguments: str | Path):
    """Runs a command of setuptools, which is the build backend that pip calls."""
    subprocess.run(
        [sys.executable, "-c", "import setuptools; setuptools.setup()", *map(str, arguments)],
        cwd=directory,
        check=True,
        capture_output=True,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The folder that the package of a source distribution is installed into."""
    directory = tmp_path_factory.mktemp("package")
    for words in map(str.split, instructions("COPY")):
        *names, target = words
        for name in names:
            source, copy = ROOT / name, directory / "image" / target
            if source.is_dir():
                shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                copy.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, copy)
    run_setuptools(directory / "image", "sdist", "--dist-dir", directory / "dist")
    (archive,) = (directory / "dist").iterdir()
    with tarfile.open(archive) as file:
        file.extractall(directory / "unpacked", filter="data")
    (unpacked,) = (directory / "unpacked").iterdir()
    run_setuptools(unpacked, "build_py", "--build-lib", directory / "site")
    return directory / "site"


def test_package_holds_every_source_and_config(site):
    """A file that is in the checkout and not in the package would be missing only for users."""
    package = site / "var_jax"
    installed = {path.relative_to(package) for path in package.rglob("*.py")}
    sources = {path.relative_to(ROOT / "var_jax") for path in (ROOT / "var_jax").rglob("*.py")}
    configs = {Path("configs", path.name) for path in (ROOT / "configs").glob("*.py")}
    assert installed == sources | configs and len(configs) >= 10
    assert (package / "py.typed").is_file()
    assert [path.name for path in site.iterdir()] == ["var_jax"]


def test_package_finds_its_configs_by_name(site, tmp_path):
    """Away from a checkout a config is found by its name and by the path that it has in the
    checkout; another path is answered with the name, and a file of that name comes first."""
    (tmp_path / "emoji").write_text((ROOT / "configs" / "emoji.py").read_text() + "\nraise OSError")
    lines = [
        "config digits:d2 --diff",
        "config --config imagenet256:tokenizer --diff",
        "config emoji",
        "config configs/digits.py:d2 --diff",
        "config other/digits.py",
        "config digit",
    ]
    run = subprocess.run(
        [sys.executable, "-c", COMMANDS],
        input="\n".join(lines),
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    )
    codes = re.findall(r"exit code (\d)", run.stdout)
    assert codes == ["0", "0", "2", "0", "2", "2"], run.stderr
    assert "transformer.depth" in run.stdout and "loss.perceptual" in run.stdout
    own, refused, unknown = run.stderr.splitlines()
    assert "emoji, line" in own and "OSError" in own
    assert "no config file 'other/digits.py'" in refused and "as 'digits'" in refused
    assert "no config file 'digit'" in unknown and "did you mean 'digits'?" in unknown
    assert {path.name for path in tmp_path.iterdir()} - {"__pycache__"} == {"emoji"}


def test_image_installs_extras_that_exist():
    """The words that pip is given for a build argument are the package alone, or with extras of
    setup.cfg; the test extra has what the tests of other extras need."""
    (argument,) = instructions("ARG")
    assert argument == "EXTRA="
    (install,) = (line for line in instructions("RUN") if "pip install" in line)
    packages = {}
    for extra in ("", "tpu,gcs", "cuda"):
        words = subprocess.run(
            ["sh", "-c", f"printf '%s\\n' {install}"],
            env={"EXTRA": extra},
            check=True,
            capture_output=True,
            text=True,
        ).stdout.split()
        packages[extra] = words[-1]
    assert packages == {"": ".", "tpu,gcs": ".[tpu,gcs]", "cuda": ".[cuda]"}
    setup_cfg = configparser.ConfigParser()
    setup_cfg.read(ROOT / "setup.cfg")
    extras = setup_cfg["options.extras_require"]
    assert {"tpu", "gcs", "cuda"} <= extras.keys()
    for extra in ("slurm", "jobset", "perceptual", "features", "demo", "hub", "wandb"):
        requirement = extras[extra].partition("#")[0].strip()
        assert requirement in [
            line.partition("#")[0].strip() for line in extras["test"].split("\n")
        ]


@pytest.mark.slow
def test_steps_of_the_image_work(tmp_path):
    """The Dockerfile's own lines, in its order, put the package into a new environment that has
    what its base image has: an interpreter and pip. No container engine is needed or tried: COPY
    takes the committed files that it names into its working directory, and RUN is given to sh."""
    environment = tmp_path / "python"
    venv.create(environment, with_pip=True)
    variables = {
        **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        "PATH": f"{environment / 'bin'}:{os.environ['PATH']}",
        "EXTRA": "",
    }
    image, workdir, last = tmp_path / "image", tmp_path / "image", ""
    steps = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text()).splitlines()
    for step in steps:
        name, _, rest = step.partition(" ")
        if name == "WORKDIR":
            workdir = image / rest.lstrip("/")
            workdir.mkdir(parents=True, exist_ok=True)
        elif name == "COPY":
            *sources, target = rest.split()
            for source in sources:
                assert tracked(source), source
                if (ROOT / source).is_dir():
                    shutil.copytree(ROOT / source, workdir / target, dirs_exist_ok=True)
                else:
                    shutil.copy(ROOT / source, workdir / target)
        elif name == "RUN":
            done = subprocess.run(
                ["sh", "-c", rest], cwd=workdir, env=variables, capture_output=True, text=True
            )
            assert done.returncode == 0, (rest, done.stderr)
            last = done.stdout
        else:
            assert name in ("FROM", "ARG", "ENTRYPOINT", "#", ""), step
    assert "transformer.depth" in last  # of the config's differences, read from the package
    (entry,) = instructions("ENTRYPOINT")
    command = [*json.loads(entry), "--version"]
    run = subprocess.run(command, cwd=workdir, env=variables, capture_output=True, text=True)
    assert run.stdout.startswith("var-jax "), run.stderr


def tracked(path: str) -> bool:
    """Whether Git has the file, or files of the directory."""
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", path], capture_output=True, text=True, check=True
    )
    return bool(listed.stdout)
