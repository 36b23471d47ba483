"""`sweep` and `status` as commands, and the presets of configs/scaling.py."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from helpers import jobset_schema, small
from helpers.scripts import load_module
from var_jax.cli.main import main
from var_jax.config.train import from_config_dict
from var_jax.scaling import table
from var_jax.sweep import plan

ROOT = Path(__file__).parents[2]
SCALING = str(ROOT / "configs" / "scaling.py")
PRESETS = ("paper", "scaling", "lr", "fashion", "fashion_lr")
SWEEP = """

def get_sweep(arg=""):
    size = {"optimizer.schedule": "cooldown", "optimizer.cooldown_steps": 2, "checkpoint_every": 2}
    trunk = {**size, "steps": 6}
    return [{**size, "steps": 4, "branch_from": trunk, "branch_step": 2}]
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "small.py"
    path.write_text(small.CONFIG_FILE + SWEEP)
    return path


def command(*args) -> list[str]:
    return ["sweep", *map(str, args)]


def preset(name: str) -> list[plan.Run]:
    module = load_module(Path(SCALING))

    def resolve(flags):
        from var_jax.cli.args import read_config

        return read_config(f"{SCALING}:{name}", flags)

    assert from_config_dict(module.get_config(name)).stage == "transformer"
    return plan.expand(module.get_sweep(name), resolve, "sweep")


def test_sweep_dry_run_prints_the_table_and_starts_nothing(config, tmp_path, capsys):
    """`--dry-run` prints a header, a row for each run and the total, and creates no directory."""
    assert (
        main(command("--config", config, "--workdir", tmp_path / "d", "--dry-run", "--price", 2.5))
        == 0
    )
    header, trunk, branch, total = capsys.readouterr().out.splitlines()
    assert header.split()[0] == "run" and header.split()[-1] == "cost"
    assert "steps=6" in trunk and "steps=4" in branch and total.startswith("total  ")
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--backend", "slrum"], "invalid choice: 'slrum'"),
        (["--option", "partition"], "--option is 'partition'; it must be of the form KEY=VALUE"),
        (["--option", "partition=x"], "backend local has no option 'partition'"),
        (["--jobs", "-1"], "--jobs is -1; it must be 0 or more"),
        (["--interval", "0"], "--interval is 0.0; it must be above 0"),
        (["--dry-run", "--chip", "v9"], "--chip 'v9' is not in the table"),
        (["--config.transformer.dept=3"], "unknown key"),
        (["--config.branch_step=5"], "branch_step is 5"),
    ],
)
def test_sweep_names_mistakes_and_leaves_nothing_behind(config, tmp_path, capsys, args, words):
    """One line has the option or the key, and there is no directory of the sweep."""
    assert main(command("--config", config, "--workdir", tmp_path / "d", *args)) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no get_sweep()"),
        ("\ndef get_sweep(arg=''):\n    return {}\n", "it must be a list of dicts"),
        ("\ndef get_sweep(arg=''):\n    return []\n", "the sweep has no runs"),
        ("\ndef get_sweep(arg=''):\n    return [{'stepps': 3}]\n", "unknown key"),
        (
            "\ndef get_sweep(arg=''):\n    return gird.sweep('steps', [3])\n",
            "{}, line 16: get_sweep() ends in NameError: name 'gird' is not defined",
        ),
        ("\ndef get_sweep(a, b):\n    return []\n", "{}: get_sweep() ends in TypeError"),
        ("\nimport sys\nif __name__:\n    sys.nothing\n", "AttributeError"),
    ],
)
def test_sweep_names_a_config_that_is_no_sweep(tmp_path, capsys, text, words):
    """One line says what get_sweep() lacks, or the error that it ends in and where."""
    path = tmp_path / "small.py"
    path.write_text(small.CONFIG_FILE + text)
    assert main(command("--config", path, "--workdir", tmp_path / "d")) == 2
    error = capsys.readouterr().err
    assert words.format(path) in error and error.count("\n") == 1


def test_sweep_names_a_get_sweep_that_takes_no_argument(tmp_path, capsys):
    """The line has the call that failed, with its argument."""
    path = tmp_path / "small.py"
    path.write_text(small.CONFIG_FILE + "\ndef get_sweep():\n    return [{'steps': 3}]\n")
    assert main(command("--config", f"{path}:d2", "--workdir", tmp_path / "d")) == 2
    error = capsys.readouterr().err
    assert f"{path}: get_sweep('d2') ends in TypeError" in error and error.count("\n") == 1


@pytest.mark.parametrize("more", [[], ["--stop"]])
def test_sweep_names_a_bucket_that_cannot_be_reached(config, capsys, monkeypatch, more):
    """Without the package for buckets, starting and stopping are both one line."""
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    assert main(command("--config", config, "--workdir", "gs://bucket/sweep", *more)) == 2
    error = capsys.readouterr().err
    assert error.startswith("var-jax: cannot reach gs://bucket/sweep: ") and error.count("\n") == 1


JOBSET = ("--backend", "jobset", "--option", "image=registry/var-jax")


def test_sweep_dry_run_prints_jobsets_that_the_schema_knows(config, capsys):
    """Two manifests, valid by JobSet's own schema, name the runs of the table and run their
    commands."""
    options = ["accelerator=tpu-v5-lite-podslice", "topology=4x4", "slices=2", "queue=tpu"]
    assert (
        main(
            command(
                "--config",
                config,
                "--workdir",
                "gs://bucket/d",
                *JOBSET,
                "--dry-run",
                *(word for option in options for word in ("--option", option)),
            )
        )
        == 0
    )
    printed = capsys.readouterr().out
    table, _, manifests = printed.partition("apiVersion")
    trunk, branch = (line.split()[0] for line in table.splitlines()[1:3])
    result = list(yaml.safe_load_all("apiVersion" + manifests))
    assert [jobset_schema.problems(manifest) for manifest in result] == [[], []]
    assert [manifest["metadata"]["name"] for manifest in result] == [
        f"var-jax-{trunk}-1",
        f"var-jax-{branch}-1",
    ]
    for id, manifest in zip((trunk, branch), result, strict=True):
        (container,) = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"][
            "spec"
        ]["containers"]
        assert container["command"][:5] == ["python", "-m", "var_jax", "train", "--config"]
        assert container["command"][-2:] == ["--workdir", f"gs://bucket/d/{id}"]
        assert {variable["name"]: variable["value"] for variable in container["env"]} == {
            "VAR_JAX_FENCE": f"gs://bucket/d/{id}/claims/0001.json",
            "JAX_COMPILATION_CACHE_DIR": f"gs://bucket/d/{id}/xla",
        }


def test_sweep_names_a_volume_that_is_not_mounted_here(config, tmp_path, capsys):
    """The path is named and not created."""
    assert (
        main(
            command(
                "--config",
                config,
                "--workdir",
                tmp_path / "v" / "d",
                *JOBSET,
                "--option",
                f"volume=shared:{tmp_path / 'v'}",
            )
        )
        == 2
    )
    error = capsys.readouterr().err
    assert f"there is no directory {tmp_path / 'v'} here" in error and error.count("\n") == 1
    assert not (tmp_path / "v").exists()


def test_sweep_names_a_workdir_that_cannot_be_written(config, tmp_path, capsys):
    """A sweep's directory that is a file is refused with exit code 2 and a line that says so."""
    (tmp_path / "file").write_text("")
    assert main(command("--config", config, "--workdir", tmp_path / "file")) == 2
    assert "cannot write the sweep's directory" in capsys.readouterr().err


def test_status_names_a_directory_without_runs(tmp_path, capsys):
    """`status` of an empty directory ends with exit code 2 and says what the directory should
    be."""
    assert main(["status", str(tmp_path)]) == 2
    assert "neither a sweep's directory" in capsys.readouterr().err


@pytest.mark.parametrize("name", PRESETS)
def test_presets_expand_to_distinct_runs(name):
    """Labels and identifiers are unique, and all runs but those of the paper share one recipe."""
    runs = preset(name)
    assert len({run.label for run in runs}) == len({run.id for run in runs}) == len(runs) >= 12
    if name != "paper":  # one recipe: nothing but sizes, rates and lengths differs
        assert {run.config.optimizer.schedule for run in runs} == {"cooldown"}
        assert (
            len({(run.config.batch_size, run.config.optimizer.warmup_steps) for run in runs}) == 1
        )


def test_paper_has_the_published_recipe_of_every_depth():
    """Batches, epochs, rates and sizes are those of the published training script, by depth."""
    by_depth = {run.config.transformer.depth: run.config for run in preset("paper")}
    assert min(by_depth) == 6 and max(by_depth) == 30
    for depth, batch, epochs, rate, gamma, final, decay in (
        (16, 768, 200, 1e-4, 1e-3, 0.1, 0.05),
        (20, 768, 250, 1e-4, 1e-3, 0.1, 0.05),
        (24, 768, 350, 8e-5, 1e-4, 0.01, 0.05),
        (30, 1024, 350, 8e-5, 1e-5, 0.01, 0.08),
    ):
        config = by_depth[depth]
        assert (config.batch_size, config.steps) == (batch, epochs * 1_281_167 // batch)
        assert (
            config.optimizer.warmup_steps == config.steps // 50
            and config.optimizer.schedule == "lin0"
        )
        assert (config.optimizer.base_lr, config.transformer.init_adaln_gamma) == (rate, gamma)
        assert (config.optimizer.final_lr_ratio, config.optimizer.final_weight_decay) == (
            final,
            decay,
        )
        assert (config.transformer.width, config.transformer.heads) == (64 * depth, depth)


@pytest.mark.parametrize("name", ["scaling", "fashion"])
def test_presets_anneal_every_budget_of_every_size(name):
    """Every size has every number of tokens, each with a cooldown over its last fifth, and a branch
    trains only that cooldown itself."""
    runs = preset(name)
    sizes = {run.params["total"] for run in runs}
    budgets = {run.tokens for run in runs}
    assert {(run.params["total"], run.tokens) for run in runs} == {
        (n, t) for n in sizes for t in budgets
    }
    for run in runs:
        assert run.config.optimizer.cooldown_steps == pytest.approx(0.2 * run.config.steps, abs=1)
        assert (
            run.config.optimizer.final_lr_ratio == 0 and run.config.eval_every >= run.config.steps
        )
        assert run.own_steps == (
            run.config.optimizer.cooldown_steps if run.trunk else run.config.steps
        )


def test_fashion_keeps_the_limits_of_its_data_and_of_a_small_machine():
    """Six sizes over more than 1.5 decades, at most four epochs each, and less than 1e14 FLOPs in
    all."""
    runs = preset("fashion")
    sizes = sorted({run.params["total"] for run in runs})
    assert len(sizes) >= 6 and np.log10(sizes[-1] / sizes[0]) > 1.5
    assert len({run.tokens for run in runs}) >= 3
    assert max(run.config.steps * run.config.batch_size for run in runs) <= 4 * 60_000
    assert sum(run.own_compute for run in runs) < 1e14


@pytest.mark.long
def test_ctrl_c_leaves_the_runs_alone_and_says_so(model_dir, tmp_path):
    """The sweep is a process of its own, with a stub in place of training, and its runs go on after
    Ctrl-C."""
    script = tmp_path / "main.py"
    script.write_text(
        "import sys\nfrom sweep import drive\nfrom var_jax.sweep import local\n"
        "local.Local = drive.Stub\n"
        "from var_jax.cli.main import main\n"
        "if __name__ == '__main__':\n    sys.exit(main(sys.argv[1:]))\n"
    )
    path = tmp_path / "small.py"
    # Steps for minutes, so that the run has not ended by itself on a slow machine.
    path.write_text(small.CONFIG_FILE + "\ndef get_sweep(arg=''):\n    return [{'steps': 1500}]\n")
    (tmp_path / "plan.json").write_text(json.dumps({"pause": 0.2}))
    environment = os.environ | {
        "STUB_PLAN": str(tmp_path / "plan.json"),
        "PYTHONPATH": str(ROOT / "tests"),
    }
    arguments = [
        sys.executable,
        str(script),
        "sweep",
        "--config",
        str(path),
        "--workdir",
        str(tmp_path / "d"),
        "--interval",
        "0.1",
        f"--config.tokenizer_dir={model_dir}",
    ]
    process = subprocess.Popen(
        arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        while "running" not in (line := process.stdout.readline()):
            assert "queued" in line, process.stderr.read()
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130 and error.count("\n") == 1
    assert error.startswith("var-jax: interrupted; live runs go on")
    (run,) = json.loads((tmp_path / "d" / "sweep.json").read_text())["runs"]

    def status() -> dict:
        return json.loads((tmp_path / "d" / run["id"] / "status.json").read_text())

    before, end = status()["step"], time.monotonic() + 30
    while status()["step"] == before:
        assert time.monotonic() < end, "the run does not go on"
        time.sleep(0.1)
    stopped = subprocess.run(
        [*arguments, "--stop"], env=environment, capture_output=True, text=True, timeout=60
    )
    assert stopped.returncode == 0 and run["id"] in stopped.stdout
    while status()["state"] != "preempted":
        assert time.monotonic() < end, "the run does not stop"
        time.sleep(0.1)


@pytest.mark.slow
def test_sweep_trains_a_real_trunk_and_its_branch(config, model_dir, digits_dir, tmp_path, capfd):
    """Both runs finish with the tokens and FLOPs of the plan; the branch trains only its own steps,
    and the same command again trains none."""
    arguments = command(
        "--config",
        config,
        f"--config.tokenizer_dir={model_dir}",
        f"--config.data.data_dir={digits_dir}",
        "--workdir",
        tmp_path / "d",
        "--interval",
        "0.5",
    )
    assert main(arguments) == 0
    assert capfd.readouterr().out.endswith("2 of 2 runs are done\n")
    plan = json.loads((tmp_path / "d" / "sweep.json").read_text())["runs"]
    runs = table.read(str(tmp_path / "d"))
    assert len(runs) == 2 and dict(zip(runs.run, runs["tokens"], strict=True)) == {
        run["id"]: run["steps"] * 8 * 17 for run in plan
    }
    assert dict(zip(runs.run, runs["compute"], strict=True)) == pytest.approx(
        {r["id"]: r["compute"] for r in plan}
    )
    branch = tmp_path / "d" / plan[1]["id"]
    records = [json.loads(line) for line in (branch / "metrics.jsonl").read_text().splitlines()]
    assert {record["step"] for record in records} == {4} and (branch / "checkpoints" / "4").is_dir()
    written = (branch / "status.json").stat().st_mtime
    assert (
        main(arguments) == 0 and (branch / "status.json").stat().st_mtime == written
    )  # nothing is done again
    assert main(["status", str(tmp_path / "d")]) == 0
    assert "2 done; " in capfd.readouterr().out
