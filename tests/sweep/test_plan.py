"""Families of runs: their order, sizes, labels and commands, and families that are refused."""

import numpy as np
import pytest
from PIL import Image

from helpers import small
from sweep.expanding import BRANCH, TRUNK, expand, refused
from var_jax.data import sources
from var_jax.models import flops
from var_jax.sweep import run_id


def test_expand_puts_a_trunk_before_its_branches():
    """A branch's trunk is listed once and before the branch, in whatever order and however often a
    family has the two. The branch starts from the trunk's directory, the trunk keeps the checkpoint
    of that step, and the branch itself takes the later steps only."""
    trunk, branch = expand(BRANCH)
    assert branch.trunk == trunk.id and trunk.trunk == ""
    assert f"--config.branch_from=sweep/{trunk.id}" in branch.flags
    assert trunk.config.keep_steps == (40,) and "--config.keep_steps=(40,)" in trunk.flags
    assert expand(TRUNK, BRANCH) == expand(BRANCH, TRUNK, BRANCH) == [trunk, branch]
    assert (branch.config.steps, branch.own_steps, trunk.own_steps) == (50, 10, 100)


def test_expand_keeps_the_step_at_which_a_branch_leaves():
    """A trunk keeps the checkpoint at which a branch leaves, even though step 38 is no multiple of
    `checkpoint_every`."""
    trunk, branch = expand({**BRANCH, "branch_step": 38})
    assert (
        trunk.config.checkpoint_every == 5
        and trunk.config.keep_steps == (38,)
        and branch.config.branch_step == 38
    )


@pytest.mark.parametrize("key", ["data.tokens_dir", "tokenizer_dir"])
def test_expand_names_a_missing_tokenizer(key, tmp_path):
    """A token cache or a tokenizer that does not exist is refused with its path in the message."""
    assert str(tmp_path / "none") in refused({key: str(tmp_path / "none")})


def test_run_compute_and_tokens():
    """A branch's compute and tokens include the steps that it shares with its trunk, because laws
    are fitted to the final model; `own_compute` has the branch's own ten steps alone. All of them
    follow from the FLOPs per image."""
    trunk, branch = expand(BRANCH)
    image = flops.train_flops_per_image(small.TRANSFORMER)
    assert trunk.compute == trunk.own_compute == 100 * 4 * image
    assert (branch.compute, branch.own_compute) == (50 * 4 * image, 10 * 4 * image)
    assert branch.tokens == 50 * 4 * 17 and branch.params == flops.param_count(small.TRANSFORMER)


def test_labels_distinguish_the_runs():
    """A run's label has only the overrides that tell the runs apart: it leaves out a seed that all
    runs share, and a learning rate that follows from the depth."""
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
    """A run's command trains the sweep's config file in the run's own directory. Its environment
    has the path of the attempt's claim, by which the process sees whether a later attempt has
    begun."""
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
    """A branch is refused if it differs from its trunk before the branching step, or if one of the
    two has no constant learning rate there. The message has the key and the steps that are
    possible."""
    assert words in refused({**BRANCH, **changes})


def test_expand_refuses_a_branch_with_changing_weight_decay():
    """A branch is refused if the weight decay changes over the run, even if it changes in its trunk
    too: both reach the final value at different steps, so that they share no steps."""
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
    assert run.id == expected.id == run_id.of_config(expected.config)
    earlier = run_id.of_config(run.config)
    assert earlier != run.id
    (tmp_path / earlier).mkdir()
    assert expand({key: spelling}, workdir=str(tmp_path))[0].id == earlier


def test_expand_keeps_addresses_of_buckets():
    """An address in a bucket is no path of this machine: `//` is part of it."""
    source = "gs://bucket//photos/"
    (run,) = expand({"data.source_dir": source})
    assert run.id == run_id.of_config(run.config)


def test_expand_refuses_an_empty_family():
    """A sweep of no runs is refused."""
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
    """Numbers of NumPy give the same runs and ids as Python's, also in a trunk and in tuples, and
    flags that contain plain numbers only."""
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
