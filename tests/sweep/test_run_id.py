"""Which configs have the same run id, by which a sweep finds the directories of its runs."""

import dataclasses
import hashlib
import json
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from etils import epath

from helpers import small
from sweep.expanding import BASE, BRANCH, OPTIMIZER, expand, resolve
from var_jax.config.alignment_config import AlignmentConfig
from var_jax.config.model import ModelConfig
from var_jax.config.strict import plain
from var_jax.data import token_manifest
from var_jax.io import model_directory
from var_jax.io.tokenizer_fingerprint import tokenizer_fingerprint
from var_jax.sweep import plan, run_id
from var_jax.train.workdir import RESUMABLE


@pytest.mark.parametrize("key", run_id.VOLATILE)
def test_run_id_ignores_volatile_keys(key):
    """Two configs that differ in one volatile key alone have the same run id."""
    other = {
        "log_every": 7,
        "eval_every": 7,
        "checkpoint_every": 7,
        "keep_checkpoints": 7,
        "keep_steps": (7,),
        "sample_classes": 7,
        "wandb_project": "x",
        "tokenizer_dir": "x",
    }
    section, _, name = key.rpartition(".")
    if section in ("transformer", "tokenizer"):
        value = {"attention": "splash", "remat": "full", "gradient_dtype": "bfloat16"}[name]
        sizes = dataclasses.replace(getattr(BASE, section), **{name: value})
        changed = dataclasses.replace(BASE, **{section: sizes})
    elif key == "mesh":
        changed = dataclasses.replace(BASE, mesh=dataclasses.replace(BASE.mesh, model=2))
    elif key in other:
        changed = dataclasses.replace(BASE, **{key: other[key]})
    else:
        field = key.removeprefix("data.")
        changed = dataclasses.replace(
            BASE, data=dataclasses.replace(BASE.data, **{field: 1 if field == "workers" else "x"})
        )
    assert changed != BASE and run_id.of_config(changed) == run_id.of_config(BASE)


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 101},
        {"seed": 1},
        {"batch_size": 8},
        {"branch_step": 1},
        {"eval_images": 5},
        {"trainable": "x"},
        {"transformer": dataclasses.replace(small.TRANSFORMER, depth=3)},
        {"optimizer": dataclasses.replace(OPTIMIZER, base_lr=2e-4)},
    ],
)
def test_run_id_changes_with_other_keys(changes):
    """Changes of the run, its model and its optimizer outside the volatile keys each give another
    run id."""
    assert run_id.of_config(dataclasses.replace(BASE, **changes)) != run_id.of_config(BASE)


def test_volatile_keys_may_change_when_a_run_resumes():
    """Every key that a run id ignores may change when a run resumes; otherwise a sweep would find
    the directory of a run that refuses to resume."""
    assert set(run_id.VOLATILE) <= set(RESUMABLE)


@pytest.mark.parametrize("resize", ["stretch", "whole"])
def test_run_id_has_the_first_name_of_stretch(resize, monkeypatch):
    """The runs of sweeps that an earlier version started are found again: what their ids are
    digests of says "whole"."""
    digested = []

    def sha256(text):
        digested.append(json.loads(text))
        return hashlib.sha256(text)

    monkeypatch.setattr(run_id, "hashlib", SimpleNamespace(sha256=sha256))
    data = dataclasses.replace(BASE.data, resize=resize)
    run_id.of_config(dataclasses.replace(BASE, data=data))
    assert [values["data"]["resize"] for values in digested] == ["whole"]


def test_run_id_is_that_of_the_version_before_rivals():
    """Sweeps that an earlier version began find their runs' directories: settings that came later
    are not in the id at their defaults."""
    assert run_id.of_config(BASE) == "a47a0277e60e"
    for changes in (
        {"transformer": dataclasses.replace(BASE.transformer, prediction="epsilon")},
        {"optimizer": dataclasses.replace(OPTIMIZER, skip_spikes=3.0)},
        {"alignment": AlignmentConfig(decay=0.5)},
    ):
        assert run_id.of_config(dataclasses.replace(BASE, **changes)) != "a47a0277e60e"


def test_run_id_is_equal_for_equal_configs():
    """A run id is 12 hexadecimal digits, and equal configs have equal ids."""
    assert run_id.of_config(BASE) == run_id.of_config(dataclasses.replace(BASE))
    assert len(run_id.of_config(BASE)) == 12 and int(run_id.of_config(BASE), 16) > 0


def test_run_id_changes_with_the_tokenizer(tmp_path, model_dir):
    """A run id depends on the tokenizer itself, and not on where it lies or on whether it is in a
    token cache or a model directory."""
    model, params = model_directory.load(epath.Path(model_dir))
    other = jax.tree.map(np.copy, params["tokenizer"])
    jax.tree.leaves(other)[0][...] += 1e-3
    for name, weights in (("copy", params["tokenizer"]), ("other", other)):
        model_directory.save(
            epath.Path(tmp_path / name), ModelConfig(model.tokenizer), {"tokenizer": weights}
        )
    manifest = token_manifest.Manifest(
        tokenizer_fingerprint(model.tokenizer, params["tokenizer"]),
        "digits",
        "stretch",
        (8, 8, 1),
        model.tokenizer.scales,
        16,
        ("a",),
        0,
    )
    (tmp_path / "tokens").mkdir()
    (tmp_path / "tokens" / "manifest.json").write_text(json.dumps(plain(manifest)))
    shutil.copytree(model_dir, tmp_path / "tokens" / "tokenizer")

    def ids(**base) -> list[str]:
        return [
            run.id
            for run in plan.expand(
                [BRANCH], lambda flags: resolve(flags, dataclasses.replace(BASE, **base)), "sweep"
            )
        ]

    first, other = ids(tokenizer_dir=str(model_dir)), ids(tokenizer_dir=str(tmp_path / "other"))
    assert first == ids(tokenizer_dir=str(tmp_path / "copy"))
    assert first == ids(data=dataclasses.replace(BASE.data, tokens_dir=str(tmp_path / "tokens")))
    assert len({*first, *other, *ids()}) == 6  # trunk and branch, of each tokenizer and of none


def test_run_id_of_a_branch_ignores_the_workdir():
    """A branch has the same id in a local directory and in a bucket, because its trunk enters by an
    id and not by a path. A branch of another trunk has another id."""
    ids = [
        [run.id for run in expand(BRANCH, workdir=place)]
        for place in ("sweep", "gs://bucket/sweep/")
    ]
    assert ids[0] == ids[1]
    other = {**BRANCH, "branch_from": {"transformer.depth": 2, "seed": 1}, "seed": 1}
    assert {run.id for run in expand(other)}.isdisjoint(ids[0])
