"""Runs whose tokenizer and first weights are on the Hugging Face hub, from a server on this machine
that imitates it."""

import dataclasses

import jax
import pytest
from etils import epath

from helpers import small
from helpers.files import contents
from helpers.runs import assert_same, fake_step, weights
from var_jax.cli.main import main
from var_jax.config.train import MeshConfig, default_config, from_config_dict
from var_jax.devices.mesh import make_mesh
from var_jax.errors import UserError
from var_jax.io.hub_download import local_directory
from var_jax.objectives import frozen_tokenizer
from var_jax.sweep import run_id
from var_jax.train import resume, step
from var_jax.train.loop import train
from var_jax.train.program import Program

REPOSITORY = "owner/small"
ADDRESS = f"hf://{REPOSITORY}"


def fetched(hub) -> set[str]:
    """Returns the names of the files that were downloaded."""
    return {request.rpartition("/")[2] for request in hub.downloads()}


@pytest.fixture
def published(hub, model_dir):
    """The hub with the small model."""
    hub.commits[REPOSITORY] = [contents(model_dir)]
    return hub


@pytest.mark.long
@pytest.mark.usefixtures("compiled_once", "unevaluated")
def test_train_starts_from_models_on_the_hub(published, configs, tmp_path, monkeypatch):
    """A run whose tokenizer and weights are named by address begins with the published ones, has a
    copy of the tokenizer, and resumes without a request: the hub may be gone by then."""
    monkeypatch.setattr(step, "make_train_step", fake_step())
    config = dataclasses.replace(
        configs["transformer"], tokenizer_dir=ADDRESS, init_from=ADDRESS, ema=0.0
    )
    train(config, tmp_path)
    assert_same(weights(tmp_path), small.pipeline().params["transformer"])
    assert (tmp_path / "tokenizer" / "tokenizer.safetensors").exists()
    asked = len(published.requests)
    train(dataclasses.replace(config, steps=4), tmp_path)
    assert len(published.requests) == asked > 0


def test_run_id_of_a_tokenizer_on_the_hub_is_that_of_its_directory(published, model_dir):
    """A tokenizer enters a run's id by itself, and not by where it lies; the transformer that is
    published with it is not fetched for that, and is there when the whole model is needed."""
    assert run_id.tokenizer_of("", ADDRESS) == run_id.tokenizer_of("", str(model_dir))
    assert fetched(published) == {"model.json", "tokenizer.safetensors"}
    assert contents(local_directory(ADDRESS)) == contents(model_dir)


def test_config_names_models_by_address(published, tmp_path):
    """The keys take an address, of which only a model that exists is read; a run that is branched
    from has a directory."""
    config = default_config()
    with config.unlocked():
        config.tokenizer_dir = config.init_from = "hf://owner/none"
    run = from_config_dict(config)
    assert run.tokenizer_dir == run.init_from == "hf://owner/none"
    with pytest.raises(UserError, match="hf://owner/none: .* has no such repository"):
        frozen_tokenizer.load(run, epath.Path(tmp_path))
    objective = small.next_scale(small.train_config("transformer", "", init_from=run.init_from))
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    with jax.set_mesh(mesh), pytest.raises(UserError, match="hf://owner/none"):
        resume.initial_weights(objective, Program(objective, mesh))
    config.branch_from = ADDRESS
    with pytest.raises(UserError, match="branch_from is 'hf://owner/small'"):
        from_config_dict(config)


def test_read_config_of_a_tokenizer_on_the_hub(published, model_dir):
    """Its sizes are those of the published tokenizer, and no weights are fetched for them; the
    whole model is there when it is needed."""
    config = small.train_config("transformer", "", tokenizer_dir=ADDRESS)
    assert frozen_tokenizer.read_config(config) == small.TOKENIZER
    assert fetched(published) == {"model.json"}
    assert contents(local_directory(ADDRESS)) == contents(model_dir)


@pytest.mark.long
def test_plan_fetches_no_weights(published, tmp_path, monkeypatch):
    """The costs of a run whose tokenizer and first weights are on the hub need model.json alone."""
    monkeypatch.chdir(tmp_path)
    flags = [f"--config.tokenizer_dir={ADDRESS}", f"--config.init_from={ADDRESS}"]
    assert main(["plan", "--config", "digits:d2", *flags]) == 0
    assert fetched(published) == {"model.json"}
