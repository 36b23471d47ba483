"""Measures the processor time of `var-jax fit` on a table of 133 runs.

`python -m var_jax.studies.fit_speed` plants a joint law with heavy-tailed noise, writes a table of
19 sizes with 7 token budgets each, and fits it in a process of its own: all laws, 1,000 bootstrap
resamples and the plots. It prints the seconds of user and system time.
"""

import csv
import math
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from var_jax.studies.planted_laws import Planted, student_4

LAW = (1.82, math.log(478), 0.347, math.log(2143), 0.367)  # Hoffmann et al., refitted
PLANTED = Planted("", LAW, (3e7, 6e8), (3e9, 6e10), ((19, 7),), 0.005, student_4)


def write_table(path: Path, planted: Planted = PLANTED):
    """Writes a synthetic sweep of a planted joint law as a CSV file, with 6 N D as its compute."""
    p = planted.draw(np.random.default_rng(1))
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["run", "params", "tokens", "compute", "loss"])
        for i, (size, tokens) in enumerate(np.exp(p.logx)):
            rows.writerow([f"r{i}", size, tokens, 6 * size * tokens, math.exp(p.logy[i])])


def main():
    """Prints the processor time of one fit."""
    with tempfile.TemporaryDirectory() as folder:
        table, out = Path(folder) / "runs.csv", Path(folder) / "fits"
        write_table(table)
        command = [sys.executable, "-m", "var_jax", "fit", str(table), "--out", str(out)]
        subprocess.run(command, check=True)
        plots = len(list(out.glob("*.png")))
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = used.ru_utime + used.ru_stime
    print(f"133 runs, 1,000 resamples, {plots} plots: {seconds:.1f} s of processor time")


if __name__ == "__main__":
    main()
