"""Reports of compiled steps as text: one in two columns, all of a directory as a table."""

import pathlib
import shlex
from collections.abc import Mapping
from typing import Any

from var_jax.config import key_patterns
from var_jax.devices import chips
from var_jax.io.json import read_object


def gib(size: float) -> str:
    """Returns a number of bytes as text in GiB."""
    return f"{size / chips.GIB:.2f} GiB"


def override_flags(figures: Mapping[str, Any]) -> str:
    """Returns a report's "overrides" as options of a command."""
    return shlex.join(f"--config.{key}={value}" for key, value in figures["overrides"].items())


def lines(figures: Mapping[str, Any]) -> list[str]:
    """Returns one report as two columns."""
    rows = [
        (
            "slice",
            f"{figures['topology']}, {figures['devices']} devices as "
            + " x ".join(f"{axis} {size}" for axis, size in figures["mesh"].items()),
        ),
        (
            "step",
            f"{figures['step']}, {figures['images']} images, "
            + f"policy {figures['policy']}, " * bool(figures.get("policy"))
            + f"remat {figures.get('remat', '-')}, "
            + f"compiled in {figures['compile_cpu_seconds']:.0f} s of CPU",
        ),
        (
            "memory per device",
            f"{gib(figures['peak_bytes'])} of {gib(figures['hbm_bytes'])}: "
            + ("fits" if figures["fits"] else "DOES NOT FIT"),
        ),
    ]
    if figures.get("overrides") and "searched" not in figures:
        rows.append(("", f"what auto chooses does not fit; give a run {override_flags(figures)}"))
    if "argument_bytes" in figures:
        rows.append(
            (
                "",
                f"arguments {gib(figures['argument_bytes'])}, "
                f"temporaries {gib(figures['temporary_bytes'])}",
            )
        )
    if figures.get("replicated_bytes"):
        rows.append(
            (
                "",
                f"of that {gib(figures['replicated_bytes'])} replicated, which the mesh does not "
                "divide",
            )
        )
    if "step_seconds" in figures:
        rows += [
            (
                "FLOPs",
                f"{figures['flops']:.4g} analytic, "
                f"{figures['executed_flops'] / figures['flops']:.3f} times that executed",
            ),
            *[
                ("", text)
                for text in [key_patterns.counted_flops(figures.get("trainable", ""))]
                if text
            ],
            (
                "collectives",
                ", ".join(
                    f"{kind} {size / 1e9:.3g} GB" for kind, size in figures["collectives"].items()
                )
                or "none",
            ),
            (
                "reductions",
                ", ".join(
                    f"{dtype} {size / 1e9:.3g} GB"
                    for dtype, size in figures.get("reduced_bytes", {}).items()
                )
                or "none",
            ),
            (
                "seconds",
                f"compute {figures['compute_seconds']:.4f}, memory {figures['hbm_seconds']:.4f}, "
                f"interconnect {figures['interconnect_seconds']:.4f}"
                + f", host's memory {figures.get('host_seconds', 0):.4f}"
                * bool(figures.get("host_seconds")),
            ),
            (
                "overlapped",
                f"{figures['step_seconds']:.4f} s per step, MFU at most {figures['mfu_bound']:.1%}",
            ),
            (
                "half exposed",
                f"{figures['step_seconds_exposed']:.4f} s per step, MFU at most "
                f"{figures['mfu_bound_exposed']:.1%}",
            ),
        ]
    if "chip_hours" in figures:
        rows.append(
            (
                "whole schedule",
                f"{figures['steps']} steps, {figures['chip_hours']:.0f} to "
                f"{figures['chip_hours_exposed']:.0f} chip-hours",
            )
        )
    if "least_remat" in figures:
        rows.append(
            (
                "least remat",
                f"{figures['least_remat'] or 'none of them fits'} (estimated: "
                + ", ".join(
                    f"{name} {gib(size)}" for name, size in figures["remat_peak_bytes"].items()
                )
                + ")",
            )
        )
    if "would_help" in figures:
        rows.append(("over by", gib(figures["over_bytes"])))
        rows += [("would help", text) for text in figures["would_help"]]
    width = max(len(name) for name, _ in rows) + 2
    return [f"{name:{width}}{text}" for name, text in rows]


COLUMNS = (
    "program",
    "slice",
    "mesh",
    "images",
    "policy",
    "remat",
    "memory GiB (arguments + temporaries)",
    "fits",
    "executed / analytic FLOPs",
    "collectives GB",
    "compute s",
    "memory s",
    "interconnect s",
    "MFU overlapped",
    "MFU half exposed",
    "chip-hours",
    "compile CPU s",
)


def markdown(directory: str | pathlib.Path) -> str:
    """Returns a table of the reports (`*.json`) in a directory, sorted by name."""
    rows = [COLUMNS, ("---",) * len(COLUMNS)]
    for path in sorted(pathlib.Path(directory).glob("*.json")):
        figures = read_object(path)
        mesh = figures["mesh"]
        row = [
            f"[{path.stem.split('_')[0]}](aot/{path.name}) {figures['step']}",
            figures["topology"],
            " x ".join(map(str, mesh.values())),
            str(figures["images"]),
            figures.get("policy", "fsdp" if figures["step"] == "train" else "") or "-",
            figures.get("remat", "-"),
        ]
        if "step_seconds" in figures:
            row += [
                f"{figures['peak_bytes'] / chips.GIB:.2f} "
                f"({figures['argument_bytes'] / chips.GIB:.2f} + "
                f"{figures['temporary_bytes'] / chips.GIB:.2f})",
                "yes" if figures["fits"] else "no",
                f"{figures['executed_flops'] / figures['flops']:.2f}",
                f"{sum(figures['collectives'].values()) / 1e9:.1f}",
                f"{figures['compute_seconds']:.4f}",
                f"{figures['hbm_seconds']:.4f}",
                f"{figures['interconnect_seconds']:.4f}",
                f"{figures['mfu_bound']:.1%}",
                f"{figures['mfu_bound_exposed']:.1%}",
                f"{figures['chip_hours']:,.0f} to {figures['chip_hours_exposed']:,.0f}"
                if "steps" in figures
                else "-",
            ]
        else:
            row += [f"{figures['peak_bytes'] / chips.GIB:.2f}", "no", *["-"] * 8]
        rows.append((*row, f"{figures['compile_cpu_seconds']:.0f}"))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
