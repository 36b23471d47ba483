"""A run without a model: takes steps, writes status.json, metrics.jsonl, meta.json and checkpoint
directories as training does, resumes and branches, and ends as the plan in its environment says.
Its records go through training's own writer of metrics where the plan has `records`, which takes
longer to start.

Its command line is that of `var_jax train`, of which it reads --workdir and some --config keys.
"""

import datetime
import json
import os
import signal
import sys
import time
from pathlib import Path


def main(argv: list[str]) -> int:
    keys = dict(
        arg.removeprefix("--config.").split("=", 1) for arg in argv if arg.startswith("--config.")
    )
    workdir = Path(argv[argv.index("--workdir") + 1])
    plan = json.loads(Path(os.environ["STUB_PLAN"]).read_text())
    pause, wrong = plan.get("pause", 0.0), plan.get("wrong", {}).get(workdir.name, {})
    steps, every = int(keys["steps"]), 5
    keep = [int(n) for n in keys.get("keep_steps", "()").strip("()").split(",") if n.strip()]
    checkpoints = workdir / "checkpoints"
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / "starts").open("a") as file:
        file.write(f"{os.getpid()}\n")
    saved = [int(entry.name) for entry in checkpoints.iterdir()] if checkpoints.exists() else []
    first = max(saved, default=0)
    if not saved and keys.get("branch_from"):
        first = int(keys["branch_step"])
        assert (Path(keys["branch_from"]) / "checkpoints" / str(first)).is_dir(), (
            "the trunk has not got there"
        )
    starts = len((workdir / "starts").read_text().split())
    step = first
    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))

    def status(state: str):
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        text = json.dumps(
            {
                "step": step,
                "steps": steps,
                "state": state,
                "loss": 5.0 - step / steps,
                "images_per_s": 10.0,
                "eta_s": (steps - step) * pause,
                "restarts": starts - 1,
                "updated": now,
            }
        )
        (workdir / "status.tmp").write_text(text)
        (workdir / "status.tmp").replace(workdir / "status.json")

    def save():
        (checkpoints / str(step)).mkdir(parents=True, exist_ok=True)

    if starts <= wrong.get("refused", 0):
        from var_jax.train import workdir as real

        real.note_refusal("data.name is wrong;\nit must be right")
        return 2
    (workdir / "meta.json").write_text(
        json.dumps(
            {
                "params": {"total": 1000, "body": 700},
                "tokens_per_step": 10,
                "flops_per_step": {"exact": 50.0},
            }
        )
    )
    status("running")
    writer = None
    if plan.get("records"):
        from var_jax.train.progress import MetricWriter

        writer = MetricWriter(workdir, steps=steps, resume_step=step)
    while step < steps:
        if step == wrong.get("fails_at") and starts <= wrong.get("times", 99):
            print(f"loss of step {step} is nan", file=sys.stderr)
            status("failed")
            return 1
        if step == wrong.get("vanishes_at") and starts <= wrong.get("times", 99):
            os._exit(9)
        time.sleep(pause)
        if step == steps - 1 and workdir.name in plan.get("waits", {}):
            wait_until_done(workdir.parent / plan["waits"][workdir.name])
        step += 1
        if stopped:
            save()
            status("preempted")
            return 75
        if writer:
            writer.write(step, "train", {"loss": 5.0 - step / steps, "process": os.getpid()})
        if step % every == 0 or step in keep or step == steps:
            save()
        status("running")
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, "split": "val", "loss": 5.0 - step / steps}) + "\n")
    status("done")
    return 0


def wait_until_done(workdir: Path, seconds: float = 100):
    """Returns when another run is done, or after this time."""
    end = time.monotonic() + seconds
    status = workdir / "status.json"
    while time.monotonic() < end:
        if status.exists() and json.loads(status.read_text())["state"] == "done":
            return
        time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
