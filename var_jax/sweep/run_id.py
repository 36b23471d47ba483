"""The id of a sweep's run: a hash of its resolved config and its tokenizer."""

import dataclasses
import hashlib
import json
import os
from typing import Any

from etils import epath

from var_jax.config.sections import LossConfig, oldest_resize_name
from var_jax.config.strict import plain
from var_jax.config.train import TrainConfig
from var_jax.data import token_manifest
from var_jax.data.model_fingerprint import later_defaults
from var_jax.io import hub_download, model_directory
from var_jax.io.tokenizer_fingerprint import tokenizer_fingerprint
from var_jax.sweep.run_state import require_reachable
from var_jax.train.workdir import LOCATIONS, RESUMABLE

# Keys that may change when a run is resumed, and that enter its id nevertheless: other values are
# other runs of a sweep (but for the number of microbatches, which enters as its default).
DISTINGUISHING = (
    "steps",
    "microbatches",
    "eval_images",
    *LOCATIONS,
)
# Keys that do not enter a run's id: how often it logs and saves, its devices and kernels, and the
# locations of its data and tokenizer (the tokenizer itself enters by its fingerprint). A change of
# any other key makes another run.
VOLATILE = tuple(key for key in RESUMABLE if key not in DISTINGUISHING)
ID_DIGITS = 12


def of_config(config: TrainConfig, trunk: str = "", tokenizer: str = "") -> str:
    """Returns 12 hexadecimal digits of the SHA-256 of the resolved configuration.

    A trunk enters by its id rather than its directory, and a tokenizer by its fingerprint, because
    runs on other tokens belong to another law.
    """
    values = plain(config)
    for key in VOLATILE:
        *sections, last = key.split(".")
        node: Any = values
        for section in sections:
            node = node[section]
        node.pop(last, None)
    # Runs of earlier sweeps keep their ids: later settings are left out at their defaults, this one
    # is volatile too, but kept at its default, and the way of resizing has its first name.
    for key in later_defaults(config.transformer) if config.transformer else ():
        del values["transformer"][key]
    if config.loss.kl == LossConfig.kl:
        del values["loss"]["kl"]
    if config.adapter == TrainConfig.adapter:
        del values["adapter"]
    elif not config.adapter.cfg:
        del values["adapter"]["cfg"]
    if config.alignment == TrainConfig.alignment:
        del values["alignment"]
    if config.refiner == TrainConfig.refiner:
        del values["refiner"]
    if config.trainable == TrainConfig.trainable:
        del values["trainable"]
    if not config.optimizer.skip_spikes:
        del values["optimizer"]["skip_spikes"], values["optimizer"]["skip_spikes_window"]
    values["microbatches"] = 1
    values["data"]["resize"] = oldest_resize_name(config.data.resize)
    if trunk:
        values["branch_from"] = trunk
    if tokenizer:
        values["tokenizer_fingerprint"] = tokenizer
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:ID_DIGITS]


def of_workdir(workdir: str, config: TrainConfig, trunk: str, tokenizer: str) -> str:
    """Returns a run's id, the same for `photos`, `photos/` and `./photos` as data.source_dir.

    A run that an earlier version began under the id of another spelling keeps that id.
    """
    spelled = of_config(config, trunk, tokenizer)
    source = config.data.source_dir
    normal = os.path.normpath(source) if source and "://" not in source else source
    if normal == source or (epath.Path(workdir) / spelled).exists():
        return spelled
    data = dataclasses.replace(config.data, source_dir=normal)
    return of_config(dataclasses.replace(config, data=data), trunk, tokenizer)


def tokenizer_of(tokens_dir: str, tokenizer_dir: str) -> str:
    """Returns the fingerprint of a run's tokenizer from its token cache or model directory.

    "" if neither is given.

    Raises:
      UserError: the given directory holds no token cache or tokenizer.
    """
    if tokens_dir:
        require_reachable(tokens_dir)
        return token_manifest.read_manifest(epath.Path(tokens_dir)).fingerprint
    if tokenizer_dir:
        place = hub_download.tokenizer_place(tokenizer_dir)
        require_reachable(place)
        return tokenizer_fingerprint(*model_directory.load_tokenizer(place))
    return ""
