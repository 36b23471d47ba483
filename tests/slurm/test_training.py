"""Real training on a real SLURM: a sweep as an array, one run over two tasks, and `launch/slurm.sbatch`."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import small

from var_jax.sweep import claims

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_device")]

ROOT = Path(__file__).parents[2]
LONG = 200  # steps of the run that is preempted: more than it takes in the time that the test needs to notice it
# Three runs of different sizes train; of the fourth the loss is not finite at once.
CONFIG_FILE = f"""{small.CONFIG_FILE.replace("    return config", '''
    config.seed, config.log_every, config.checkpoint_every, config.keep_checkpoints = 3, 1, 20, 1
    config.tokenizer_dir, config.data.data_dir = "{tokenizer}", "{digits}"
    config.optimizer.base_lr, config.optimizer.schedule, config.eval_every = 0.01, "constant", 10**6
    return config''')}

def get_sweep(arg="d2"):
    widths = [{{{{"transformer.width": width, "steps": steps}}}} for width, steps in ((16, {LONG}), (8, 4), (24, 4))]
    return widths + [{{{{"transformer.width": 16, "steps": 4, "optimizer.base_lr": 1e30}}}}]
"""


@pytest.fixture
def config(tmp_path, model_dir, digits_dir):
    file = tmp_path / "config.py"
    file.write_text(CONFIG_FILE.format(tokenizer=model_dir, digits=digits_dir))
    return str(file)


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


def uninterrupted(config: str, workdir: Path, *flags: str) -> list[tuple[int, float]]:
    subprocess.run(var_jax("train", "--config", config, *flags, "--workdir", str(workdir)), check=True,
                   capture_output=True)
    return losses(workdir)


def test_a_sweep_with_a_preempted_run_and_one_that_fails(cluster, config, tmp_path):
    workdir = tmp_path / "sweep"
    sweep = subprocess.Popen(var_jax("sweep", "--config", config, "--workdir", str(workdir), "--backend", "slurm",
                                     "--interval", "1", "--max-restarts", "1"),
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        until = time.monotonic() + 120
        while not (workdir / "sweep.json").exists():
            assert time.monotonic() < until and sweep.poll() is None, sweep.communicate()
            time.sleep(0.2)
        runs = {run["steps"]: workdir / run["id"] for run in json.loads((workdir / "sweep.json").read_text())["runs"]
                if run["steps"] == LONG}
        preempted = runs[LONG]
        await_step(preempted, 21, preempted / "log.txt")
        [claim] = claims.read(preempted)
        cluster.run("scontrol", "requeue", claim.job)
        out, err = sweep.communicate(timeout=600)
    finally:
        sweep.kill()
    assert sweep.returncode == 1, out + err
    assert "3 of 4 runs are done" in out and "was given up" in err

    states = {run: status(run)["state"] for run in workdir.iterdir() if run.is_dir() and (run / "claims").exists()}
    assert sorted(states.values()) == ["done", "done", "done", "failed"]
    # SLURM itself started the preempted run again, under the claim that it had; the sweep the failed one.
    assert status(preempted)["restarts"] == 1 and len(claims.read(preempted)) == 1
    [failed] = [run for run, state in states.items() if state == "failed"]
    assert len(claims.read(failed)) == 2 and claims.read(failed)[1].after == "failed"
    jobs = {claims.read(run)[0].job for run in states}
    assert len({job.split("_")[0] for job in jobs}) == 1 and len(jobs) == 4  # one array of four

    assert [step for step, _ in losses(preempted)] == list(range(1, LONG + 1))
    expected = uninterrupted(config, tmp_path / "alone", "--config.transformer.width=16", f"--config.steps={LONG}")
    assert losses(preempted) == expected

    shown = subprocess.run(var_jax("status", str(workdir)), check=True, capture_output=True, text=True).stdout
    assert shown.count(" done ") >= 3 and "failed" in shown
    # Of three sizes there is no law, and the fourth run counts for nothing.
    subprocess.run(var_jax("fit", str(workdir), "--out", str(tmp_path / "fit"), "--resamples", "0"), check=True)
    law = json.loads((tmp_path / "fit" / "fit.json").read_text())["laws"]["loss~params"]
    assert law["alpha"]["value"] is None and "3 different params; 4 are needed" in law["warnings"][0]
    report = (tmp_path / "fit" / "report.md").read_text()
    assert any(failed.name in line and "it is failed, not done" in line for line in report.splitlines())


def test_the_batch_script_over_two_tasks_goes_on_after_either_preemption(cluster, config, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    monkeypatch.setenv("VIRTUAL_ENV", sys.prefix)
    workdir, log = tmp_path / "run", tmp_path / "log.txt"
    job = cluster.run("sbatch", "--parsable", "--ntasks=2", f"--output={log}", str(ROOT / "launch" / "slurm.sbatch"),
                      "--config", config, "--config.steps=100", "--workdir", str(workdir), cwd=tmp_path)
    await_step(workdir, 5, log)
    cluster.run("scancel", "--signal=TERM", job)  # the tasks' own notice: SLURM does not start them again by itself
    cluster.wait(job, "PENDING", seconds=300)
    assert status(workdir)["state"] == "preempted"
    saved = status(workdir)["step"]
    await_step(workdir, saved + 5, log)
    cluster.run("scontrol", "requeue", job)  # SLURM's preemption
    assert cluster.wait(job, "COMPLETED", "FAILED", "CANCELLED", seconds=600) == "COMPLETED", log.read_text()
    assert (status(workdir)["state"], status(workdir)["restarts"]) == ("done", 2)
    assert [step for step, _ in losses(workdir)] == list(range(1, 101))  # and one process alone wrote them
    meta = json.loads((workdir / "meta.json").read_text())
    assert (meta["devices"]["count"], meta["devices"]["processes"]) == (2, 2)
    # Without a pause, over two tasks as well: one process rounds otherwise, which Adam makes much of in 100 steps.
    cluster.run("srun", "--ntasks=2", *var_jax("train", "--config", config, "--config.steps=100", "--workdir",
                                               str(tmp_path / "whole")), seconds=600)
    assert dict(losses(workdir)) == pytest.approx(dict(losses(tmp_path / "whole")), rel=1e-5)
