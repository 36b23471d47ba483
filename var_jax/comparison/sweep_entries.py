"""Reads the finished runs of a sweep, with their evaluations, for a comparison of objectives."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from var_jax.comparison.compared_run import TRAINING, ComparedRun, Measured
from var_jax.config.model import ModelConfig
from var_jax.config.strict import build
from var_jax.errors import UserError
from var_jax.io import run_records
from var_jax.io.json import read_object, read_object_if_exists

# Reports of `var-jax evaluate --json` and `var-jax bench sample --json` in a run's directory.
EVALUATIONS = ("evaluation.json", "report.json")
TIMES = "bench.json"
LOSSES = ("loss", "loss_last")  # of the last record on held-out images


def read(
    source: epath.Path, dropped: list[tuple[str, str]], notes: list[str]
) -> list[tuple[ComparedRun, Any]]:
    """Returns the finished runs of a sweep's directory, or the one of a workdir, with their seeds.

    Compute and images are those of the run's last step. FLOPs and passes of generation are those of
    the objective's default settings, guidance included. Qualities come from `evaluation.json`, what
    `var-jax evaluate --samples ... --json` wrote there, seconds from `bench.json` of `var-jax bench
    sample --json`. A run has its held-out losses besides.

    Args:
      dropped: the list to which (run, reason) of every other run is appended.
      notes: the list to which warnings are appended.

    Raises:
      UserError: there is no run, or a report is damaged.
    """
    directories = [source] if _is_run(source) else sorted(filter(_is_run, source.iterdir()))
    if not directories:
        raise UserError(
            f"{source} has no runs; a comparison takes a sweep's directory, a run's workdir, or a "
            "table of runs"
        )
    runs, protocols = [], {}
    for directory in directories:
        try:
            config = _finished_config(directory)
        except UserError as error:
            dropped.append((directory.name, str(error)))
            continue
        report = _evaluation(directory)
        try:
            run = _run(directory, config)
        except (KeyError, TypeError, AttributeError, OSError, UserError) as error:
            reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}"
            text = reason if isinstance(error, UserError) else f"its files lack something: {reason}"
            dropped.append((directory.name, text))
            continue
        quality = dict(_metrics(report)) | dict(_losses(directory))
        if not quality:
            dropped.append((directory.name, "it has neither an evaluation nor a held-out loss"))
            continue
        if report:
            protocols.setdefault(_protocol(report), directory.name)
        runs.append((dataclasses.replace(run, quality=quality), config.get("seed")))
    if runs and not protocols:
        notes.append(
            f"{source.name}: no run has an {EVALUATIONS[0]} (var-jax evaluate --samples F "
            f"--reference R --json RUN/{EVALUATIONS[0]}), so only losses are there"
        )
    if len(protocols) > 1:
        listed = "; ".join(f"{text} (as {name})" for text, name in protocols.items())
        notes.append(
            f"{source.name}: evaluations differ in network, reference or number of images, and "
            f"distances compare only at equal ones: {listed}"
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


def _run(directory: epath.Path, config: Mapping[str, Any]) -> ComparedRun:
    """Returns a run without its qualities."""
    # Samplers import JAX, which a table does not need.
    from var_jax.sampling import sampler_registry

    meta = read_object(directory / "meta.json")
    flops = meta["flops_per_step"]
    per_step = float(flops["exact"] if isinstance(flops, dict) else flops)
    sections = {name: config[name] for name in ("tokenizer", "transformer")}
    model = build(ModelConfig, sections, str(directory / "config.json"))
    assert model.transformer is not None  # of the stage that trains it
    sampler = sampler_registry.find(model)
    prepared = sampler.prepare(model, sampler.settings("fid", {}, model.transformer.objective))
    costs = {
        TRAINING: per_step * config["steps"],
        "images_seen": float(config["batch_size"] * config["steps"]),
        "generation_flops": sampler.generation_flops(model, prepared),
        "passes": float(sampler.sequential_passes(model, prepared)),
    }
    rate = (read_object_if_exists(directory / TIMES) or {}).get("images_per_s")
    if rate:
        costs["seconds_per_image"] = 1 / float(rate)
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


def _metrics(report: Mapping[str, Any]) -> Iterator[tuple[str, Measured]]:
    for name, metric in report.get("metrics", {}).items():
        value = metric.get("value") if isinstance(metric, dict) else None
        if _is_number(value):
            ends = metric.get("ci95")
            ends = ends if isinstance(ends, list) and all(map(_is_number, ends)) else None
            yield name, Measured(float(value), (ends[0], ends[1]) if ends else None)


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
    try:
        lines = run_records.read_lines(directory)
    except OSError:
        return
    for line in reversed(lines):
        try:
            record = json.loads(line)
        except ValueError:  # a line that a crash cut off
            continue
        if isinstance(record, dict) and record.get("split") == "val":
            for name in LOSSES:
                if _is_number(record.get(name)):
                    yield name, Measured(float(record[name]), None)
            return


def _is_number(value: object) -> bool:
    right = isinstance(value, int | float) and not isinstance(value, bool)
    return right and math.isfinite(value)
