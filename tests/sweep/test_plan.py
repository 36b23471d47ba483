import dataclasses
import hashlib
import json
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from etils import epath
from ml_collections import config_dict
from PIL import Image

from helpers import small
from var_jax.config.model import ModelConfig
from var_jax.config.strict import plain
from var_jax.config.train import OptimizerConfig, TrainConfig, from_config_dict
from var_jax.config.transformer_config import OF_TOKENIZER
from var_jax.data import fingerprints, sources, token_manifest
from var_jax.errors import UserError
from var_jax.io import model_directory
from var_jax.models import flops
from var_jax.sweep import plan
from var_jax.train.workdir import RESUMABLE

OPTIMIZER = OptimizerConfig(schedule="cooldown", cooldown_steps=20, final_lr_ratio=0.0)
BASE = TrainConfig(
    stage="transformer",
    steps=100,
    batch_size=4,
    checkpoint_every=5,
    tokenizer=small.TOKENIZER,
    transformer=small.TRANSFORMER,
    optimizer=OPTIMIZER,
)
TRUNK = {"transformer.depth": 2}
BRANCH = {
    **TRUNK,
    "steps": 50,
    "optimizer.cooldown_steps": 10,
    "branch_from": TRUNK,
    "branch_step": 40,
}


def resolve(flags, base: TrainConfig = BASE) -> TrainConfig:
    """What the command line does, without its files."""
    values = plain(base)
    for name in OF_TOKENIZER:
        del values["transformer"][name]
    config = config_dict.ConfigDict(values)
    for flag in flags:
        key, _, text = flag.removeprefix("--config.").partition("=")
        old = (
            config.get_ref(key).get()
            if "." not in key
            else config[key.split(".")[0]][key.split(".")[1]]
        )
        value = (
            text
            if isinstance(old, str)
            else ()
            if text == "()"
            else type(old)(float(text))
            if isinstance(old, int | float)
            else tuple(int(n) for n in text.strip("()").split(",") if n.strip())
        )
        config.update_from_flattened_dict({key: value})
    return from_config_dict(config)


def expand(*family, workdir="sweep"):
    return plan.expand(list(family), resolve, workdir)


def refused(*family) -> str:
    with pytest.raises(UserError) as caught:
        expand(*family)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("key", plan.VOLATILE)
def test_run_id_ignores_volatile_keys(key):
    other = {
        "log_every": 7,
        "eval_every": 7,
        "checkpoint_every": 7,
        "keep_checkpoints": 7,
        "keep_steps": (7,),
        "sample_classes": 7,
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
    assert changed != BASE and plan.run_id(changed) == plan.run_id(BASE)


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 101},
        {"seed": 1},
        {"batch_size": 8},
        {"branch_step": 1},
        {"eval_images": 5},
        {"transformer": dataclasses.replace(small.TRANSFORMER, depth=3)},
        {"optimizer": dataclasses.replace(OPTIMIZER, base_lr=2e-4)},
    ],
)
def test_run_id_changes_with_every_other_key(changes):
    assert plan.run_id(dataclasses.replace(BASE, **changes)) != plan.run_id(BASE)


def test_plan_ids_ignore_volatile_keys():
    assert set(plan.VOLATILE) <= set(RESUMABLE)


@pytest.mark.parametrize("resize", ["stretch", "whole"])
def test_run_id_has_the_first_name_of_stretch(resize, monkeypatch):
    """The runs of sweeps that an earlier version started are found again: what their ids are
    digests of says "whole"."""
    digested = []

    def sha256(text):
        digested.append(json.loads(text))
        return hashlib.sha256(text)

    monkeypatch.setattr(plan, "hashlib", SimpleNamespace(sha256=sha256))
    data = dataclasses.replace(BASE.data, resize=resize)
    plan.run_id(dataclasses.replace(BASE, data=data))
    assert [values["data"]["resize"] for values in digested] == ["whole"]


def test_run_id_is_that_of_the_version_before_rivals():
    """Sweeps that an earlier version began find their runs' directories: settings that came later
    are not in the id at their defaults."""
    assert plan.run_id(BASE) == "a47a0277e60e"
    rival = dataclasses.replace(BASE.transformer, prediction="epsilon")
    assert plan.run_id(dataclasses.replace(BASE, transformer=rival)) != "a47a0277e60e"


def test_run_id_is_stable():
    assert plan.run_id(BASE) == plan.run_id(dataclasses.replace(BASE))
    assert len(plan.run_id(BASE)) == 12 and int(plan.run_id(BASE), 16) > 0


def test_expand_puts_a_trunk_before_its_branches():
    trunk, branch = expand(BRANCH)
    assert branch.trunk == trunk.id and trunk.trunk == ""
    assert f"--config.branch_from=sweep/{trunk.id}" in branch.flags
    assert trunk.config.keep_steps == (40,) and "--config.keep_steps=(40,)" in trunk.flags
    assert expand(TRUNK, BRANCH) == expand(BRANCH, TRUNK, BRANCH) == [trunk, branch]
    assert (branch.config.steps, branch.own_steps, trunk.own_steps) == (50, 10, 100)


def test_plan_saves_the_step_at_which_a_branch_leaves():
    trunk, branch = expand({**BRANCH, "branch_step": 38})
    assert (
        trunk.config.checkpoint_every == 5
        and trunk.config.keep_steps == (38,)
        and branch.config.branch_step == 38
    )


def test_run_id_changes_with_the_tokenizer(tmp_path, model_dir):
    """By what the tokenizer is, and not by where it lies or whether a token cache or a model
    directory tells of it."""
    model, params = model_directory.load(epath.Path(model_dir))
    other = jax.tree.map(np.copy, params["tokenizer"])
    jax.tree.leaves(other)[0][...] += 1e-3
    for name, weights in (("copy", params["tokenizer"]), ("other", other)):
        model_directory.save(
            epath.Path(tmp_path / name), ModelConfig(model.tokenizer), {"tokenizer": weights}
        )
    manifest = token_manifest.Manifest(
        fingerprints.tokenizer_fingerprint(model.tokenizer, params["tokenizer"]),
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


@pytest.mark.parametrize("key", ["data.tokens_dir", "tokenizer_dir"])
def test_expand_names_a_missing_tokenizer(key, tmp_path):
    assert str(tmp_path / "none") in refused({key: str(tmp_path / "none")})


def test_run_id_of_a_branch_ignores_the_workdir():
    ids = [
        [run.id for run in expand(BRANCH, workdir=place)]
        for place in ("sweep", "gs://bucket/sweep/")
    ]
    assert ids[0] == ids[1]
    other = {**BRANCH, "branch_from": {"transformer.depth": 2, "seed": 1}, "seed": 1}
    assert {run.id for run in expand(other)}.isdisjoint(ids[0])


def test_run_compute_and_tokens():
    trunk, branch = expand(BRANCH)
    image = flops.train_flops_per_image(small.TRANSFORMER)
    assert trunk.compute == trunk.own_compute == 100 * 4 * image
    assert (branch.compute, branch.own_compute) == (50 * 4 * image, 10 * 4 * image)
    assert branch.tokens == 50 * 4 * 17 and branch.params == flops.param_count(small.TRANSFORMER)


def test_labels_distinguish_the_runs():
    labels = [run.label for run in expand({"steps": 50, "seed": 1}, {"steps": 60, "seed": 1})]
    assert labels == ["steps=50", "steps=60"]
    labels = [
        run.label
        for run in expand(
            *(
                {"transformer.depth": d, "optimizer.base_lr": 1 / d, "steps": n}
                for d in (2, 4)
                for n in (50, 60)
            )
        )
    ]
    assert labels == [
        "depth=2 steps=50",
        "depth=2 steps=60",
        "depth=4 steps=50",
        "depth=4 steps=60",
    ]


def test_command_works_on_the_command_line():
    trunk, _ = expand(BRANCH)
    command = trunk.command("configs/x.py:small", "sweep", 3)
    assert command.argv[1:6] == ("-m", "var_jax", "train", "--config", "configs/x.py:small")
    assert (
        command.argv[-2:] == ("--workdir", f"sweep/{trunk.id}")
        and command.directory == f"sweep/{trunk.id}"
    )
    assert (command.run, command.attempt) == (trunk.id, 3)
    assert command.environment == {"VAR_JAX_FENCE": f"sweep/{trunk.id}/claims/0003.json"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 5}, "differs from its trunk in more than its end: seed: 5 here, 0 there"),
        (
            {"branch_step": 45},
            "branch_step is 45; the branch has a constant rate from step 1 to 40 only",
        ),
        (
            {"steps": 95, "branch_step": 85},
            "branch_step is 85; the trunk has a constant rate from step 1 to 80 only",
        ),
        ({"branch_step": 0}, "branch_step is 0"),
        ({"optimizer.schedule": "lin0"}, "the branch has optimizer.schedule 'lin0'"),
        (
            {"optimizer.final_weight_decay": 0.1},
            "in more than its end: optimizer.final_weight_decay",
        ),
    ],
)
def test_expand_refuses_a_branch_that_does_not_fit_its_trunk(changes, words):
    assert words in refused({**BRANCH, **changes})


def test_expand_refuses_a_branch_with_changing_weight_decay():
    trunk = {"optimizer.final_weight_decay": 0.1}
    assert "changes its weight decay" in refused(
        {
            **trunk,
            "steps": 50,
            "optimizer.cooldown_steps": 10,
            "branch_step": 40,
            "branch_from": trunk,
        }
    )


def test_expand_takes_sizes_from_the_data(tmp_path, monkeypatch):
    """A size that is left to the data counts in a run's id and cost as if it were given; data are
    looked at once."""
    for name in ("cat", "dog", "owl"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / name / "0.png")
    looked = []
    read = sources.sizes
    monkeypatch.setattr(sources, "sizes", lambda data: looked.append(data) or read(data))
    data = {"data.name": "image_folder", "data.source_dir": str(tmp_path)}
    left = expand(
        *(
            {**data, "tokenizer.in_channels": 0, "transformer.num_classes": 0, "steps": n}
            for n in (50, 60)
        )
    )
    assert len(looked) == 1
    values = expand(
        *(
            {**data, "tokenizer.in_channels": 3, "transformer.num_classes": 3, "steps": n}
            for n in (50, 60)
        )
    )
    assert [run.id for run in left] == [run.id for run in values] and left[0].params == values[
        0
    ].params
    assert left[0].config.transformer.num_classes == 3 and left[0].config.tokenizer.in_channels == 3


@pytest.mark.parametrize("spelling", ["photos/", "./photos", "photos/../photos", "photos//"])
def test_expand_takes_spellings_of_a_folder_for_one(spelling, tmp_path):
    """A sweep that is started again with another spelling of its folder goes on; a run of an
    earlier version, whose id came from that spelling, is found again too."""
    key = "data.source_dir"
    ((expected,), (run,)) = (
        expand({key: source}, workdir=str(tmp_path)) for source in ("photos", spelling)
    )
    assert run.id == expected.id == plan.run_id(expected.config)
    earlier = plan.run_id(run.config)
    assert earlier != run.id
    (tmp_path / earlier).mkdir()
    assert expand({key: spelling}, workdir=str(tmp_path))[0].id == earlier


def test_expand_keeps_addresses_of_buckets():
    """An address in a bucket is no path of this machine: `//` is part of it."""
    source = "gs://bucket//photos/"
    (run,) = expand({"data.source_dir": source})
    assert run.id == plan.run_id(run.config)


def test_expand_refuses_an_empty_family():
    assert "no runs" in refused()


@pytest.mark.parametrize(
    "rates",
    [
        np.logspace(-3, -2, 3),
        list(np.logspace(-3, -2, 3)),
        np.float32([0.5, 0.25]),
        np.array([np.float64(0.1)]),
    ],
)
def test_expand_converts_numpy_numbers(rates):
    """The same runs under the same ids, with flags that say numbers alone, also in a trunk and in
    tuples."""
    plain_rates = [float(rate) for rate in rates]

    def family(values, steps):
        trunk = {"optimizer.base_lr": values[0], "keep_steps": steps}
        return [
            *({"optimizer.base_lr": value} for value in values),
            {
                **trunk,
                "steps": 50,
                "optimizer.cooldown_steps": 10,
                "branch_from": trunk,
                "branch_step": 40,
            },
        ]

    expected, actual = (
        expand(*family(list(rates), np.array([40, 60]))),
        expand(*family(plain_rates, (40, 60))),
    )
    assert [run.id for run in expected] == [run.id for run in actual]
    assert [run.flags for run in expected] == [run.flags for run in actual]
    assert [run.config.optimizer.base_lr for run in expected[: len(rates)]] == plain_rates
    assert not [flag for run in expected for flag in run.flags if "np." in flag or "array" in flag]
