"""Fixtures that tests of runs share."""

import jax
import jax.numpy as jnp
import pytest

from helpers import small
from helpers.batches import image_batch
from helpers.hub_server import hub, hub_service  # noqa: F401
from helpers.runs import NoEvaluator
from var_jax.train import evaluation


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory):
    """Keeps programs between runs, as the command line does, and compiles them quickly at the cost
    of their speed."""
    settings = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("xla")),
        "jax_persistent_cache_min_compile_time_secs": 0.1,
        "jax_disable_most_optimizations": True,
    }
    before = {name: jax.config.values[name] for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture
def unevaluated(monkeypatch):
    monkeypatch.setattr(evaluation, "Evaluator", NoEvaluator)


@pytest.fixture(scope="module")
def configs(digits_dir, model_dir):
    """A short run of each stage, from the small model's weights."""
    return {
        "tokenizer": small.train_config("tokenizer", digits_dir, init_from=str(model_dir)),
        "transformer": small.train_config(
            "transformer", digits_dir, init_from=str(model_dir), tokenizer_dir=str(model_dir)
        ),
    }


@pytest.fixture(scope="module")
def batch():
    """Eight random images."""
    return image_batch(8)


@pytest.fixture(scope="module")
def params():
    """The small tokenizer's weights, on the device."""
    return jax.tree.map(jnp.asarray, small.pipeline().params["tokenizer"])
