"""Reads the finished runs of a sweep, with their evaluations, for a comparison of objectives."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from var_jax.comparison.compared_run import TRAINING, ComparedRun, Measured
from var_jax.config.model import ModelConfig
from var_jax.config.strict import build
from var_jax.errors import UserError
from var_jax.io import run_records
from var_jax.io.json import (
    is_finite_number,
    is_number,
    read_object,
    read_object_if_exists,
)

# Reports of `var-jax evaluate --json` and `var-jax bench sample --json` in a run's directory.
EVALUATIONS = ("evaluation.json", "report.json")
TIMES = "bench.json"
LOSSES = ("loss", "loss_last")  # of the last record on held-out images


def read(
    source: epath.Path,
    dropped: list[tuple[str, str]],
    notes: list[str],
    protocols: dict[str, str],
) -> list[tuple[ComparedRun, Any]]:
    """Returns the finished runs of a sweep's directory, or the one of a workdir, with their seeds.

    Compute and images are those of the run's last step, with every step counted as one on all
    scales, as in a sweep's own table; `var-jax plan` counts the smaller steps of progressive
    training as such. FLOPs and passes of generation are those of the objective's default settings,
    guidance included and without the tokenizer's decoder. Qualities come from `evaluation.json`,
    what `var-jax evaluate --samples ... --json` wrote there, seconds from `bench.json` of `var-jax
    bench sample --json`. A run has its held-out losses besides.

    Args:
      dropped: the list to which (run, reason) of every other run is appended.
      notes: the list to which warnings are appended.
      protocols: the dictionary that gets what an evaluation was measured by, with the first run
        that was measured so.

    Raises:
      UserError: there is no run, or a report is damaged.
    """
    directories = [source] if _is_run(source) else sorted(filter(_is_run, source.iterdir()))
    if not directories:
        raise UserError(
            f"{source} has no runs; a comparison takes a sweep's directory, a run's workdir, or a "
            "table of runs"
        )
    runs, has_evaluation = [], False
    for directory in directories:
        try:
            config = _finished_config(directory)
        except UserError as error:
            dropped.append((directory.name, str(error)))
            continue
        report = _evaluation(directory)
        quality = dict(_metrics(directory, report)) | dict(_losses(directory))
        seconds = _seconds(directory)
        try:
            run = _run(directory, config, seconds)
        except UserError as error:
            dropped.append((directory.name, str(error)))
            continue
        except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:
            reason = f"its files lack something: {type(error).__name__}"
            dropped.append((directory.name, reason))
            continue
        if not quality:
            dropped.append((directory.name, "it has neither an evaluation nor a held-out loss"))
            continue
        if report:
            has_evaluation = True
            name = directory.name if directory == source else f"{source.name}/{directory.name}"
            protocols.setdefault(_protocol(report), name)
        runs.append((dataclasses.replace(run, quality=quality), config.get("seed")))
    if runs and not has_evaluation:
        notes.append(
            f"{source.name}: no run has an {EVALUATIONS[0]} (var-jax evaluate --samples F "
            f"--reference R --json RUN/{EVALUATIONS[0]}), so only losses are there"
        )
    return runs


def _is_run(directory: epath.Path) -> bool:
    return directory.is_dir() and (directory / "status.json").exists()


def _finished_config(directory: epath.Path) -> dict[str, Any]:
    """Returns the config of a finished run that trained a generator.

    Raises:
      UserError: it is no such run, or its files cannot be read.
    """
    status = read_object(directory / "status.json")
    if status.get("state") != "done":
        raise UserError(f"it is {status.get('state', 'without a state')}, not done")
    config = read_object(directory / "config.json")
    if config.get("stage") != "transformer":
        raise UserError(f"its stage is {config.get('stage')!r}, not 'transformer'")
    return config


def _run(directory: epath.Path, config: Mapping[str, Any], seconds: float | None) -> ComparedRun:
    """Returns a run without its qualities."""
    # Samplers import JAX, which a table does not need.
    from var_jax.sampling import sampler_registry

    meta = read_object(directory / "meta.json")
    flops = meta["flops_per_step"]
    per_step = float(flops["exact"] if isinstance(flops, dict) else flops)
    sections = {name: config[name] for name in ("tokenizer", "transformer")}
    model = build(ModelConfig, sections, str(directory / "config.json"))
    if model.transformer is None:
        raise UserError("its config has no transformer")
    sampler = sampler_registry.find(model)
    prepared = sampler.prepare(model, sampler.settings("fid", {}, model.transformer.objective))
    costs = {
        TRAINING: per_step * config["steps"],
        "images_seen": float(config["batch_size"] * config["steps"]),
        "generation_flops": sampler.generation_flops(model, prepared),
        "passes": float(sampler.sequential_passes(model, prepared)),
    }
    if seconds is not None:
        costs["seconds_per_image"] = seconds
    objective = model.transformer.objective
    if objective == "next_token" and model.transformer.order != "raster":
        objective = f"{objective}_{model.transformer.order}"
    # Runs that differ only in their seed have one name.
    family = json.dumps({k: v for k, v in config.items() if k != "seed"}, sort_keys=True)
    name = hashlib.sha256(family.encode()).hexdigest()[:12]
    return ComparedRun(
        objective,
        name,
        costs,
        {},
        params=float(meta["params"]["total"]),
        tokenizer=_tokenizer(directory),
    )


def _seconds(directory: epath.Path) -> float | None:
    """Returns the measured seconds per generated image, decoder included; None without a report."""
    report = read_object_if_exists(directory / TIMES)
    rate = (report or {}).get("images_per_s")
    if rate is None:
        return None
    if not is_finite_number(rate) or rate <= 0:
        raise UserError(
            f"{directory / TIMES} has the images_per_s {rate!r:.40}, not a positive number; write "
            "it by var-jax bench sample --json"
        )
    return 1 / rate


def _tokenizer(directory: epath.Path) -> str:
    """Returns the hash of the tokenizer's weights that a run has a copy of; "" without one."""
    file = directory / "tokenizer" / "tokenizer.safetensors"
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12] if file.exists() else ""


def _evaluation(directory: epath.Path) -> dict[str, Any]:
    """Returns the report of `evaluate` in a run's directory; {} without one."""
    for name in EVALUATIONS:
        report = read_object_if_exists(directory / name)
        if report and isinstance(report.get("metrics"), dict):
            return report
    return {}


def _metrics(directory: epath.Path, report: Mapping[str, Any]) -> Iterator[tuple[str, Measured]]:
    """Yields the qualities of a report; those that are null or not finite are left out.

    Raises:
      UserError: a value is no number, or an interval does not have two ends.
    """
    where = f"the evaluation in {directory}"
    for name, metric in report.get("metrics", {}).items():
        if not isinstance(metric, dict) or metric.get("value") is None:
            continue
        value, ends = metric["value"], metric.get("ci95")
        if not is_number(value):
            raise UserError(f"{where}: {name} has the value {value!r:.40}, not a number")
        ci95 = None
        if ends is not None:
            if not (isinstance(ends, list) and len(ends) == 2 and all(map(is_number, ends))):
                raise UserError(f"{where}: {name} has the ci95 {ends!r:.40}, not two numbers")
            ci95 = (ends[0], ends[1]) if all(map(is_finite_number, ends)) else None
        if is_finite_number(value):
            yield name, Measured(float(value), ci95)


def _protocol(report: Mapping[str, Any]) -> str:
    """Returns what distances of two reports must have in common to be compared."""
    parts = [report.get(name) or {} for name in ("features", "reference", "samples")]
    network, reference, samples = (part if isinstance(part, dict) else {} for part in parts)
    return (
        f"{network.get('network', 'unknown network')}, {samples.get('count', '?')} images against "
        f"{reference.get('count', '?')} of {reference.get('name', 'an unknown reference')}"
    )


def _losses(directory: epath.Path) -> Iterator[tuple[str, Measured]]:
    """Yields the losses of a run's last record on held-out images."""
    record = run_records.last_held_out(directory) or {}
    for name in LOSSES:
        if is_finite_number(record.get(name)):
            yield name, Measured(float(record[name]), None)
