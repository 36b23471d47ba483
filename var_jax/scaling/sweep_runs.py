"""Rows of a sweep's finished runs, for `table.build`."""

import json
from typing import Any

import numpy as np
from etils import epath

from var_jax.io import run_records

FITTED = ("loss", "err")  # columns that start so are fitted


def records(
    sweep: epath.Path, dropped: list[tuple[str, str]], notes: list[str]
) -> list[dict[str, Any]]:
    """A row a validation of each `<sweep>/<id>/{meta.json,config.json,metrics.jsonl,status.json}`.

    `meta.json` gives `params` ({"total", "body"}), `tokens_per_step` and `flops_per_step`
    ({"exact", "6nd", "dense"} or one number); a row's tokens and compute are those times its step.
    Runs that are not done are left out with a reason. Of a run whose config says that its rate is
    constant and cools down at the end, the last step's row alone is a point of a law.

    Columns: `loss` and `err_mean` over all scales, `loss_last` and `err_last` over the last;
    `loss_mean`, which a record holds beside an equal `loss`, counts once.
    """
    rows, bad = [], 0
    for directory in sorted(
        entry for entry in sweep.iterdir() if entry.is_dir() and (entry / "status.json").exists()
    ):
        name = directory.name
        try:
            status, meta = (_json(directory / file) for file in ("status.json", "meta.json"))
            config = (
                _json(directory / "config.json") if (directory / "config.json").exists() else {}
            )
            lines = run_records.read_lines(directory)
            known = _constants(meta)
            annealed_at = (
                config["steps"]
                if config.get("optimizer", {}).get("schedule") == "cooldown"
                else None
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            dropped.append((name, f"its files cannot be read ({type(error).__name__}: {error})"))
            continue
        if status.get("state") != "done":
            dropped.append((name, f"it is {status.get('state', 'without a state')}, not done"))
            continue
        found = []
        for number, line in enumerate(lines, start=1):
            record = _record(line)
            if record is None:
                bad += 1
                dropped.append((name, f"metrics.jsonl line {number} is no JSON object with a step"))
            elif record.get("split") == "val":
                found.append(record)
        if not found:
            dropped.append((name, "it has no validation records"))
        if annealed_at is not None and found:
            before = sum(record["step"] < annealed_at for record in found)
            found = [record for record in found if record["step"] >= annealed_at]
            if before:
                dropped.append(
                    (
                        name,
                        f"{before} validations before the end of its cooldown are no annealed points",
                    )
                )
        rows += [_row(name, known, record) for record in found]
    if bad:
        notes.append(
            f"bad-rows: {bad} lines of metrics.jsonl are no JSON objects with a step and are left out"
        )
    return rows


def _json(path: epath.Path) -> Any:
    return json.loads(path.read_text())


def _record(line: str) -> dict | None:
    try:
        record = json.loads(line)
        return record if record["step"] + 0 >= 0 else None
    except (ValueError, KeyError, TypeError):
        return None


def _constants(meta: dict) -> dict[str, float]:
    flops = meta["flops_per_step"]
    flops = flops if isinstance(flops, dict) else {"exact": flops}
    others = {f"compute_{name}": float(value) for name, value in flops.items() if name != "exact"}
    return {
        "params": float(meta["params"]["total"]),
        "params_body": float(meta["params"]["body"]),
        "tokens": float(meta["tokens_per_step"]),
        "compute": float(flops["exact"]),
        **others,
    }


def _row(name: str, known: dict[str, float], record: dict) -> dict[str, Any]:
    scaled = {
        key: value * record["step"] for key, value in known.items() if not key.startswith("params")
    }
    numbers = {
        key: value
        for key, value in record.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    losses = {key: value for key, value in numbers.items() if key.startswith(FITTED)}
    # Both may be NaN, of a run that diverged, and NaN is unequal to itself.
    if {"loss", "loss_mean"} <= set(losses) and np.array_equal(
        losses["loss_mean"], losses["loss"], equal_nan=True
    ):
        del losses["loss_mean"]
    errors = {
        f"err_{key.removeprefix('accuracy_')}": 1 - value
        for key, value in numbers.items()
        if key.startswith("accuracy_")
    }
    return {"run": name, **known, **scaled, **errors, **losses}
