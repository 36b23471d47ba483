"""The time to the first step: every row of the script is a run that takes a step."""

import json
import os
import subprocess
import sys

import pytest

from helpers.scripts import ROOT, load_script

script = load_script("first_step")
SMALL = {  # flags that make a row's step short
    "digits_tokenizer": ["--config.tokenizer.channels=8", "--config.batch_size=2"],
    "digits": ["--config.transformer.depth=1", "--config.batch_size=2"],
}


@pytest.mark.long
@pytest.mark.parametrize("row", SMALL)
def test_work_takes_a_step_and_starts_from_what_it_saved(row, tmp_path):
    """The first process saves its step, and another one takes it without compiling; each prints the
    seconds of all parts. Both stages have frozen weights of their own kind."""
    file, flags = script.ROWS[row][0], SMALL[row]
    command = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(ROOT / "launch")!r})
import first_step
first_step.work({file!r}, {flags!r}, Path({str(tmp_path / "step")!r}), sys.argv[1])
"""
    for arm in ("cold", "executable"):
        environment = {**os.environ, **script.environment(tmp_path / "programs"), "XLA_FLAGS": ""}
        done = subprocess.run(
            [sys.executable, "-c", command, arm],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            check=True,
        )
        parts = json.loads(done.stdout.splitlines()[-1])
        assert set(parts) == set(script.PARTS) and parts["first_step"] > 0
