"""The record of how a run was started: sizes, tokens, versions and three counts of compute."""

import dataclasses
import json
import subprocess

import jax
import numpy as np
import pytest

from helpers import small
from var_jax.config.train import TrainConfig
from var_jax.objectives import registry
from var_jax.train import run_meta as module
from var_jax.train.run_meta import run_meta

CONFIG = TrainConfig(
    stage="transformer", batch_size=8, tokenizer=small.TOKENIZER, transformer=small.TRANSFORMER
)


def parameters(config: TrainConfig) -> int:
    objective = registry.with_frozen_shapes(config)
    shapes = jax.eval_shape(objective.init, jax.random.key(0))
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize("stage", ["tokenizer", "transformer"])
def test_run_meta_counts_parameters_and_tokens_and_is_json(stage):
    """The totals are those of the initialized parameters and of the scales 1x1 to 3x4."""
    config = dataclasses.replace(CONFIG, stage=stage)
    parsed = json.loads(json.dumps(run_meta(registry.with_frozen_shapes(config)), allow_nan=False))
    assert parsed["params"]["total"] == parameters(config) > parsed["params"]["body"] > 0
    tokens = 1 + 4 + 12
    assert (parsed["tokens_per_image"], parsed["tokens_per_step"]) == (tokens, 8 * tokens)
    assert (
        parsed["devices"]["count"] == jax.device_count()
        and parsed["versions"]["jax"] == jax.__version__
    )


def test_run_meta_has_three_definitions_of_compute():
    """Each count is written out by hand from depth, width and tokens, and a step's is that of its 8
    images."""
    result = run_meta(registry.with_frozen_shapes(CONFIG))
    per_step, per_image = result["flops_per_step"], result["flops_per_image"]
    # depth 2, width 16, V 16, C 4, L 17; M = 1 + 4 * 5 + 12 * 17
    d, w, length, pairs = 2, 16, 17, 225
    rest = 2 * length * (12 * d * w**2 + 16 * w + 4 * w) + 2 * (6 * d * w**2 + 2 * w**2)
    assert per_image["exact"] == 3 * (rest + 4 * d * w * pairs)
    assert per_image["dense"] == 3 * (rest + 4 * d * w * length**2)
    assert per_image["6nd"] == 6 * result["params"]["body"] * length
    assert per_step == {name: 8 * value for name, value in per_image.items()}


def test_run_meta_names_the_commit_and_whether_files_differ_from_it(tmp_path, monkeypatch):
    """In a repository of its own, the commit's hash and a change of a tracked file are recorded,
    and nothing where there is no repository or no git."""
    source = tmp_path / "var_jax" / "run_meta.py"
    source.parent.mkdir()
    source.write_text("")
    monkeypatch.setattr(module, "__file__", str(source))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert run_meta(registry.with_frozen_shapes(CONFIG))["git"] is None

    def git(*arguments: str) -> str:
        author = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        command = ["git", "-C", str(tmp_path), *author, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    commit = git("rev-parse", "HEAD")
    assert run_meta(registry.with_frozen_shapes(CONFIG))["git"] == {
        "commit": commit,
        "dirty": False,
    }
    source.write_text("changed")
    assert run_meta(registry.with_frozen_shapes(CONFIG))["git"] == {"commit": commit, "dirty": True}
    monkeypatch.setenv("PATH", "")
    assert run_meta(registry.with_frozen_shapes(CONFIG))["git"] is None
