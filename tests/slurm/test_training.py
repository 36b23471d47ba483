"""Real training on a real SLURM: a sweep as an array, a run over two tasks, and
`launch/slurm.sbatch`."""

import itertools
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers import small
from var_jax.sweep import claims

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("one_device")]

ROOT = Path(__file__).parents[2]
STEPS = 120  # more than are taken in the time that the tests need to notice that a run goes
WIDTHS = (4, 8, 16, 32)
SIZE = 16  # of the run that is preempted
# Four sizes train, equally long; of the fifth run the loss is not finite at once.
CONFIG_FILE = f"""{
    small.CONFIG_FILE.replace(
        "    return config",
        f'''
    config.seed, config.log_every, config.checkpoint_every, config.keep_checkpoints = 3, 1, 20, 1
    config.tokenizer_dir, config.data.data_dir = "{{tokenizer}}", "{{digits}}"
    config.optimizer.base_lr, config.optimizer.schedule, config.eval_every = 0.01, "constant", 10**6
    config.transformer.width, config.steps, config.eval_images = {SIZE}, {STEPS}, 64
    return config''',
    )
}

def get_sweep(arg="sizes"):
    if arg == "one":
        return [{{{{"transformer.width": {SIZE}}}}}]
    sizes = [{{{{"transformer.width": width}}}} for width in {WIDTHS}]
    return sizes + [{{{{"transformer.width": {SIZE}, "optimizer.base_lr": 1e30}}}}]
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory, model_dir, digits_dir):
    file = tmp_path_factory.mktemp("config") / "config.py"
    file.write_text(CONFIG_FILE.format(tokenizer=model_dir, digits=digits_dir))
    return str(file)


@pytest.fixture(scope="module")
def uninterrupted(one_device, config, tmp_path_factory) -> list[tuple[int, float]]:
    """Training losses of one process that nobody disturbs."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    subprocess.run(
        var_jax("train", "--config", config, "--workdir", str(workdir)),
        check=True,
        capture_output=True,
    )
    return losses(workdir)


def var_jax(*args: str) -> list[str]:
    return [sys.executable, "-m", "var_jax", *args]


def status(run: Path) -> dict:
    try:
        return json.loads((run / "status.json").read_text())
    except FileNotFoundError:
        return {"state": "none", "step": 0, "restarts": 0}


def losses(run: Path) -> list[tuple[int, float]]:
    """Training losses, in the file's order."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(record["step"], record["loss"]) for record in records if record["split"] == "train"]


def await_step(run: Path, step: int, log: Path):
    until = time.monotonic() + 500
    while status(run)["step"] < step:
        text = log.read_text() if log.exists() else ""
        assert time.monotonic() < until and "Traceback" not in text, text
        time.sleep(0.1)


def planned(workdir: Path) -> dict[str, Path]:
    """Directories of a sweep's runs by their labels."""
    return {
        run["label"]: workdir / run["id"]
        for run in json.loads((workdir / "sweep.json").read_text())["runs"]
    }


def test_sweep_goes_on_after_a_preemption_and_gives_up_a_failing_run(
    cluster, config, uninterrupted, tmp_path
):
    """A preempted run resumes with the losses of an uninterrupted one, a diverging one is reported
    and left out of the fit, and the law is a line through the others."""
    workdir = tmp_path / "sweep"
    sweep = subprocess.Popen(
        var_jax(
            "sweep",
            "--config",
            config,
            "--workdir",
            str(workdir),
            "--backend",
            "slurm",
            "--interval",
            "1",
            "--max-restarts",
            "0",
        ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        until = time.monotonic() + 120
        while not (workdir / "sweep.json").exists():
            assert time.monotonic() < until and sweep.poll() is None, sweep.communicate()
            time.sleep(0.2)
        runs = planned(workdir)
        preempted = runs.pop(f"width={SIZE}")
        await_step(preempted, 3, preempted / "log.txt")
        [claim] = claims.read(preempted)
        cluster.run("scontrol", "requeue", claim.job)
        out, err = sweep.communicate(timeout=900)
    finally:
        sweep.kill()
    assert sweep.returncode == 1, out + err
    assert "4 of 5 runs are done" in out and err.count("was given up") == 1
    failed = runs.pop(f"width={SIZE} base_lr=1e+30")
    assert (
        status(failed)["state"] == "failed"
        and [status(run)["state"] for run in runs.values()] == ["done"] * 3
    )
    # SLURM itself started the preempted run again, under the claim that it had.
    assert (status(preempted)["state"], status(preempted)["restarts"]) == ("done", 1)
    every = [preempted, failed, *runs.values()]
    jobs = {claim.job for run in every for claim in claims.read(run)}
    assert len({job.split("_")[0] for job in jobs}) == 1 and len(jobs) == 5  # one array of five

    assert losses(preempted) == uninterrupted and len(uninterrupted) == STEPS
    shown = subprocess.run(
        var_jax("status", str(workdir)), check=True, capture_output=True, text=True
    ).stdout
    assert "\n4 done, 1 failed; " in shown

    subprocess.run(
        var_jax(
            "fit",
            str(workdir),
            "--out",
            str(tmp_path / "fit"),
            "--resamples",
            "0",
            "--irreducible",
            "0",
        ),
        check=True,
    )
    points = []
    for run in (preempted, *runs.values()):
        [last] = [
            record
            for record in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
            if record["split"] == "val" and record["step"] == STEPS
        ]
        params = json.loads((run / "meta.json").read_text())["params"]["total"]
        points.append((math.log(params), math.log(last["loss"])))
    points.sort()
    slopes = [(b - d) / (c - a) for (a, b), (c, d) in itertools.combinations(points, 2)]
    # A robust line through four points is no steeper and no flatter than every line through two of
    # them.
    law = json.loads((tmp_path / "fit" / "fit.json").read_text())["laws"]["loss~params"]
    assert 0 < min(slopes) <= law["alpha"]["value"] <= max(slopes)
    report = (tmp_path / "fit" / "report.md").read_text()
    assert any(
        failed.name in line and "it is failed, not done" in line for line in report.splitlines()
    )


def test_train_in_two_tasks_is_one_process_group(cluster, config, uninterrupted, tmp_path):
    """Two processes with two devices train one run, whose losses are those of one process to
    rounding."""
    subprocess.run(
        var_jax(
            "sweep",
            "--config",
            f"{config}:one",
            "--workdir",
            str(tmp_path),
            "--backend",
            "slurm",
            "--option",
            "tasks=2",
            "--interval",
            "1",
        ),
        check=True,
        capture_output=True,
        timeout=600,
    )
    [run] = planned(tmp_path).values()
    devices = json.loads((run / "meta.json").read_text())["devices"]
    assert (devices["count"], devices["processes"]) == (2, 2)
    assert (status(run)["state"], status(run)["restarts"]) == ("done", 0)
    assert [step for step, _ in losses(run)] == list(
        range(1, STEPS + 1)
    )  # and one process alone wrote them
    assert dict(losses(run)) == pytest.approx(dict(uninterrupted), rel=1e-5)


def test_batch_script_over_two_tasks_goes_on_after_either_preemption(
    cluster, config, uninterrupted, tmp_path, monkeypatch
):
    """The script requeues itself after its own notice and is requeued by SLURM; every step is
    logged once, with the losses of an uninterrupted run."""
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    monkeypatch.setenv("VIRTUAL_ENV", sys.prefix)
    workdir, log = tmp_path / "run", tmp_path / "log.txt"
    job = cluster.run(
        "sbatch",
        "--parsable",
        "--ntasks=2",
        "--cpus-per-task=1",
        f"--output={log}",
        str(ROOT / "launch" / "slurm.sbatch"),
        "--config",
        config,
        "--workdir",
        str(workdir),
        cwd=tmp_path,
    )
    await_step(workdir, 3, log)
    cluster.run(
        "scancel", "--signal=TERM", job
    )  # the tasks' own notice: SLURM does not start them again by itself
    cluster.wait(job, "PENDING", seconds=300)
    assert status(workdir)["state"] == "preempted"
    saved = status(workdir)["step"]
    await_step(workdir, saved + 3, log)
    cluster.run("scontrol", "requeue", job)  # SLURM's preemption
    assert cluster.wait(job, "COMPLETED", "FAILED", "CANCELLED", seconds=600) == "COMPLETED", (
        log.read_text()
    )
    assert (status(workdir)["state"], status(workdir)["restarts"]) == ("done", 2)
    assert [step for step, _ in losses(workdir)] == list(range(1, STEPS + 1))
    meta = json.loads((workdir / "meta.json").read_text())
    assert (meta["devices"]["count"], meta["devices"]["processes"]) == (2, 2)
    assert dict(losses(workdir)) == pytest.approx(dict(uninterrupted), rel=1e-5)
