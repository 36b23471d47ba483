"""Families of changes of a small config, expanded into runs."""

import pytest
from ml_collections import config_dict

from helpers import small
from var_jax.config.strict import plain
from var_jax.config.train import OptimizerConfig, TrainConfig, from_config_dict
from var_jax.config.transformer_config import OF_TOKENIZER
from var_jax.errors import UserError
from var_jax.sweep import plan

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
    """Returns the config that the command line makes of flags, without reading files."""
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


def expand(*family, workdir="sweep") -> list[plan.Run]:
    """Returns the runs of a family of changes of `BASE`."""
    return plan.expand(list(family), resolve, workdir)


def refused(*family) -> str:
    """Returns the one line by which a family is refused."""
    with pytest.raises(UserError) as caught:
        expand(*family)
    assert "\n" not in str(caught.value)
    return str(caught.value)
