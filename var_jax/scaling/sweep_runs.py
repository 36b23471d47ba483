"""Reads the finished runs of a sweep as rows for `table.build`."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from var_jax.errors import UserError
from var_jax.io import run_records
from var_jax.io.json import is_number, read_object, read_object_if_exists
from var_jax.scaling import row_readings

SIZE_KEYS = ("depth", "width", "heads")  # of the transformer
FITTED = ("loss", "err")  # prefixes of the columns that laws are fitted to
BASE_BATCH = 256  # at which optimizer.base_lr is the rate that is used
TUNED_RATES = 3  # learning rates at which a size has to be run for its rate to count as tuned


def read_rows(
    sweep: epath.Path, dropped: list[tuple[str, str]], notes: list[str]
) -> list[dict[str, Any]]:
    """Returns one row per validation record of every finished run of a sweep.

    A run is a directory `<sweep>/<id>` with meta.json, config.json, metrics.jsonl and status.json.
    `meta.json` gives `params` ({"total", "body"}), `tokens_per_step` and `flops_per_step`
    ({"exact", "6nd", "dense"} or one number). The tokens and compute of a row are those times its
    step, and each has its phase of the run's schedule (`row_readings`). Runs that are not done are
    left out with a reason.

    `learning_rate` is the peak rate that was used, base_lr * batch_size / 256, and `batch_size` the
    images per step.

    The columns `loss` and `err_mean` are over all scales, `loss_last` and `err_last` over the last
    scale. A `loss_mean` that equals `loss` gives no column of its own.

    Args:
      dropped: the list to which (run, reason) of everything left out is appended.
      notes: the list to which warnings are appended, as "name: text".
    """
    rows, num_bad_lines = [], 0
    # Directories without a status are no runs.
    for directory in sorted(
        entry for entry in sweep.iterdir() if entry.is_dir() and (entry / "status.json").exists()
    ):
        name = directory.name
        # The run's files.
        try:
            status = read_object(directory / "status.json")
            meta = read_object(directory / "meta.json")
            config = read_object_if_exists(directory / "config.json") or {}
            lines = run_records.read_lines(directory)
            numbers = _numbers(meta, config)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = error if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            dropped.append((name, f"its files cannot be read ({reason})"))
            continue

        # Its state.
        if status.get("state") != "done":
            dropped.append((name, f"it is {status.get('state', 'without a state')}, not done"))
            continue

        # Its validation records.
        validations = []
        for number, line in enumerate(lines, start=1):
            record = _parse_record(line)
            if record is None:
                num_bad_lines += 1
                dropped.append(
                    (name, f"metrics.jsonl line {number} is not a JSON object with a step")
                )
            elif record.get("split") == "val":
                validations.append(record)
        if not validations:
            dropped.append((name, "it has no validation records"))

        rows += [
            {
                **_row(name, numbers, record),
                row_readings.PHASE: row_readings.phase_of(config, record["step"]),
            }
            for record in validations
        ]
    if num_bad_lines:
        notes.append(
            f"bad-rows: {num_bad_lines} lines of metrics.jsonl are not JSON objects with a step "
            "and are left out"
        )
    return rows


def describe(sweep: epath.Path, runs: Iterable[str]) -> dict[str, str]:
    """Returns sentences for a report on a sweep's runs, by subject.

    They say how parameters and compute were counted, and which learning rates and schedules the
    runs used.

    Args:
      runs: the runs that a table has.
    """
    schedules: Counter[str] = Counter()
    rates_by_size: dict[float, set[float]] = {}
    for name in sorted(runs):
        if not (sweep / name / "meta.json").exists():  # --map took the names from a column
            continue
        optimizer = (read_object_if_exists(sweep / name / "config.json") or {}).get("optimizer", {})
        size = read_object(sweep / name / "meta.json")["params"]["total"]
        schedules[optimizer.get("schedule", "unknown")] += 1
        rates_by_size.setdefault(size, set()).add(optimizer.get("base_lr"))
    rates = sorted({rate for values in rates_by_size.values() for rate in values if rate})
    tuned = sum(len(values) >= TUNED_RATES for values in rates_by_size.values())
    rate_text = ", ".join(f"{rate:g}" for rate in rates) or "not recorded"
    return {
        "parameters": "all parameters of the network that is trained (params); params_body leaves "
        "out embeddings and heads",
        "compute": "exact training FLOPs by var_jax.models.flops (compute)",
        "learning rates": f"base rates {rate_text}; "
        f"{tuned} of {len(rates_by_size)} sizes were run at three rates or more",
        "schedules": ", ".join(f"{count} runs {name}" for name, count in schedules.items())
        or "not recorded",
    }


def overrides(sweep: epath.Path, run: str, tokens: float) -> dict[str, Any]:
    """Returns config overrides that repeat a run with another number of training tokens.

    They are an entry of `get_sweep`, and {} where the run's files do not state enough. A cooldown
    keeps its share of the steps.
    """
    config = read_object_if_exists(sweep / run / "config.json") or {}
    meta = read_object_if_exists(sweep / run / "meta.json") or {}
    if not (config.get("transformer") and config.get("optimizer") and "tokens_per_step" in meta):
        return {}
    return of_length(config, meta["tokens_per_step"], tokens)


def of_length(config: Mapping[str, Any], tokens_per_step: float, tokens: float) -> dict[str, Any]:
    """Returns config overrides with a run's size and rate, and another number of training tokens.

    Args:
      config: the run's configuration, as config.json has it.
    """
    steps = max(1, round(tokens / tokens_per_step))
    sizes = {f"transformer.{name}": config["transformer"][name] for name in SIZE_KEYS}
    optimizer = config["optimizer"]
    out = {**sizes, "optimizer.base_lr": optimizer["base_lr"], "steps": steps}
    if "batch_size" in config:
        out["batch_size"] = config["batch_size"]
    if "warmup_steps" in optimizer:
        out["optimizer.warmup_steps"] = min(optimizer["warmup_steps"], steps)
    if optimizer.get("schedule") == "cooldown":
        share = optimizer["cooldown_steps"] / config["steps"]
        out["optimizer.cooldown_steps"] = max(1, round(share * steps))
    return out


def _parse_record(line: str) -> dict | None:
    try:
        record = json.loads(line)
        # The comparison raises TypeError unless the step is a number.
        return record if record["step"] >= 0 else None
    except (ValueError, KeyError, TypeError):
        return None


class _Numbers(NamedTuple):
    """The numbers of a run, by column.

    Attributes:
      sizes: those of every row.
      per_step: those that a row has times its step.
    """

    sizes: dict[str, float]
    per_step: dict[str, float]


def _numbers(meta: dict, config: dict) -> _Numbers:
    flops = meta["flops_per_step"]
    flops = flops if isinstance(flops, dict) else {"exact": flops}
    others = {f"compute_{name}": float(value) for name, value in flops.items() if name != "exact"}
    return _Numbers(
        {
            "params": float(meta["params"]["total"]),
            "params_body": float(meta["params"]["body"]),
            **_settings(config),
        },
        {
            "tokens": float(meta["tokens_per_step"]),
            "compute": float(flops["exact"]),
            **others,
        },
    )


def _settings(config: dict) -> dict[str, float]:
    """Returns the peak learning rate that a run used and its images per step, if it has them."""
    batch, base = config.get("batch_size"), config.get("optimizer", {}).get("base_lr")
    if not (is_number(batch) and is_number(base)):
        return {}
    return {"learning_rate": base * batch / BASE_BATCH, "batch_size": float(batch)}


def _row(name: str, numbers: _Numbers, record: dict) -> dict[str, Any]:
    cumulative = {key: value * record["step"] for key, value in numbers.per_step.items()}
    values = {key: value for key, value in record.items() if is_number(value)}
    losses = {key: value for key, value in values.items() if key.startswith(FITTED)}
    # Both are NaN where a run diverged, and NaN is unequal to itself.
    if {"loss", "loss_mean"} <= set(losses) and np.array_equal(
        losses["loss_mean"], losses["loss"], equal_nan=True
    ):
        del losses["loss_mean"]
    errors = {
        f"err_{key.removeprefix('accuracy_')}": 1 - value
        for key, value in values.items()
        if key.startswith("accuracy_")
    }
    return {"run": name, **numbers.sizes, **cumulative, **errors, **losses}
