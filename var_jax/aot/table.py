"""A report as lines for a terminal, and many reports as one Markdown table."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

GIB = 2**30


def gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB"


def lines(found: Mapping[str, Any]) -> list[str]:
    """One report as two columns."""
    rows = [("slice", f"{found['topology']}, {found['devices']} chips as data {found['mesh']['data']} x model "
                      f"{found['mesh']['model']}"),
            ("step", f"{found['step']}, {found['images']} images, remat {found.get('remat', '-')}, "
                     f"compiled in {found['compile_cpu_seconds']:.0f} s of CPU"),
            ("memory a chip", f"{gib(found['peak_bytes'])} of {gib(found['hbm_bytes'])}: "
                              + ("fits" if found["fits"] else "DOES NOT FIT"))]
    if "argument_bytes" in found:
        rows.append(("", f"arguments {gib(found['argument_bytes'])}, temporaries {gib(found['temporary_bytes'])}"))
    if found.get("replicated_bytes"):
        rows.append(("", f"of that {gib(found['replicated_bytes'])} replicated, which the mesh does not divide"))
    if "step_seconds" in found:
        rows += [
            ("FLOPs", f"{found['flops']:.4g} analytic, "
                      f"{found['executed_flops'] / found['flops']:.3f} times that executed"),
            ("collectives", ", ".join(f"{kind} {size / 1e9:.3g} GB" for kind, size in found["collectives"].items())
             or "none"),
            ("reductions", ", ".join(f"{dtype} {size / 1e9:.3g} GB" for dtype, size in
                                     found.get("reduced_bytes", {}).items()) or "none"),
            ("seconds", f"compute {found['compute_seconds']:.4f}, memory {found['hbm_seconds']:.4f}, "
                        f"interconnect {found['interconnect_seconds']:.4f}"),
            ("overlapped", f"{found['step_seconds']:.4f} s a step, MFU at most {found['mfu_bound']:.1%}"),
            ("half exposed", f"{found['step_seconds_exposed']:.4f} s a step, MFU at most "
                             f"{found['mfu_bound_exposed']:.1%}")]
    if "chip_hours" in found:
        rows.append(("whole schedule", f"{found['steps']} steps, {found['chip_hours']:.0f} to "
                                       f"{found['chip_hours_exposed']:.0f} chip-hours"))
    if "least_remat" in found:
        rows.append(("least remat", f"{found['least_remat'] or 'none of them fits'} (estimated: "
                     + ", ".join(f"{name} {gib(size)}" for name, size in found["remat_peak_bytes"].items()) + ")"))
    if "would_help" in found:
        rows.append(("over by", gib(found["over_bytes"])))
        rows += [("would help", text) for text in found["would_help"]]
    return [f"{name:15}{text}" for name, text in rows]


COLUMNS = ("program", "slice", "mesh", "images", "remat", "memory GiB (arguments + temporaries)", "fits",
           "executed / analytic FLOPs", "collectives GB", "compute s", "memory s", "interconnect s",
           "MFU overlapped", "MFU half exposed", "chip-hours", "compile CPU s")


def markdown(directory: str | pathlib.Path) -> str:
    """A table of the reports (`*.json`) in a directory, sorted by name."""
    rows = [COLUMNS, ("---",) * len(COLUMNS)]
    for path in sorted(pathlib.Path(directory).glob("*.json")):
        found = json.loads(path.read_text())
        mesh = found["mesh"]
        row = [f"[{path.stem.split('_')[0]}](aot/{path.name}) {found['step']}", found["topology"],
               f"{mesh['data']} x {mesh['model']}", str(found["images"]), found.get("remat", "-")]
        if "step_seconds" in found:
            row += [f"{found['peak_bytes'] / GIB:.2f} ({found['argument_bytes'] / GIB:.2f} + "
                    f"{found['temporary_bytes'] / GIB:.2f})", "yes" if found["fits"] else "no",
                    f"{found['executed_flops'] / found['flops']:.2f}",
                    f"{sum(found['collectives'].values()) / 1e9:.1f}",
                    f"{found['compute_seconds']:.4f}", f"{found['hbm_seconds']:.4f}",
                    f"{found['interconnect_seconds']:.4f}", f"{found['mfu_bound']:.1%}",
                    f"{found['mfu_bound_exposed']:.1%}",
                    f"{found['chip_hours']:,.0f} to {found['chip_hours_exposed']:,.0f}" if "steps" in found else "-"]
        else:
            row += [f"{found['peak_bytes'] / GIB:.2f}", "no", *["-"] * 8]
        rows.append((*row, f"{found['compile_cpu_seconds']:.0f}"))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
