"""launch/jobset.yaml against JobSet's schema and a sweep's own manifest."""

import string
import sys
from pathlib import Path

import yaml

from helpers import jobset_schema
from var_jax.sweep.backend import RunCommand
from var_jax.sweep.jobset import JobSet

TEMPLATE = (Path(__file__).parents[2] / "launch" / "jobset.yaml").read_text()
VALUES = {
    "NAME": "var-d16",
    "IMAGE": "registry/var-jax",
    "QUEUE": "tpu",
    "ACCELERATOR": "tpu-v5-lite-podslice",
    "TOPOLOGY": "4x4",
    "CHIPS": "4",
    "HOSTS": "4",
    "CONFIG": "configs/imagenet256.py:d16",
    "WORKDIR": "gs://bucket/d16",
}


def rendered() -> dict:
    return yaml.safe_load(string.Template(TEMPLATE).substitute(VALUES))


def test_template_is_valid_by_the_schema():
    """The template with values for its variables has no problem by JobSet's schema."""
    assert jobset_schema.problems(rendered()) == []


def test_template_is_what_a_sweep_applies_for_one_run():
    """The template equals the manifest that a sweep applies, so that the two cannot drift apart."""
    engine = JobSet(
        image="registry/var-jax",
        queue="tpu",
        accelerator="tpu-v5-lite-podslice",
        topology="4x4",
        chips=4,
    )
    argv = (
        sys.executable,
        "-m",
        "var_jax",
        "train",
        "--config",
        VALUES["CONFIG"],
        "--workdir",
        VALUES["WORKDIR"],
    )
    manifest = engine.manifest(RunCommand("d16", VALUES["WORKDIR"], argv))
    manifest["metadata"]["name"] = VALUES["NAME"]
    assert rendered() == manifest


def test_template_names_every_variable_in_its_comment():
    """The command in the template's comment sets each of its variables, so that a copy of it leaves
    none unset."""
    exported = TEMPLATE.split("export ")[1].split("envsubst")[0]
    assert all(f"{name}=" in exported for name in VALUES)
