"""The six released models: the files they are downloaded from, and the sizes they must have."""

import json
from pathlib import Path

import numpy as np
import pytest

from var_jax.config.strict import plain
from var_jax.io import releases, torch_convert

REFERENCE = Path(__file__).parents[1] / "reference"
# {tensor: shape} of each published file, recorded from the files themselves.
TENSORS = json.loads((REFERENCE / "released_checkpoints.json").read_text())
FILES = {  # of huggingface.co/FoundationVision/var
    "var-d16": "var_d16.pth",
    "var-d20": "var_d20.pth",
    "var-d24": "var_d24.pth",
    "var-d30": "var_d30.pth",
    "var-d36": "var_d36.pth",
    "var-tokenizer": None,
}


def weights(key: str) -> torch_convert.Weights:
    """A published file's tensors, whose values take no memory."""
    zero = np.float32(0)
    tensors = {name: np.broadcast_to(zero, tuple(shape)) for name, shape in TENSORS[key].items()}
    return torch_convert.Weights(tensors, key)


def test_releases_are_the_published_files():
    """Names are those in the published repository: with another one nothing would be found."""
    assert releases.REPOSITORY == "FoundationVision/var"
    assert {name: each.transformer_file for name, each in releases.RELEASES.items()} == FILES
    tokenizers = {each.tokenizer_file for each in releases.RELEASES.values()}
    assert tokenizers == {"vae_ch160v4096z32.pth"}


@pytest.mark.parametrize("name", FILES)
def test_releases_have_the_configuration_of_their_files(name):
    """What is read from a published file's own shapes is what its entry demands, so that a download
    of the real file is accepted; every tensor of the configuration has the file's shape."""
    release = releases.RELEASES[name].config
    key = "vae_d36" if name == "var-d36" else "vae_d16"
    tokenizer = torch_convert.read_tokenizer_config(
        weights(key), release.tokenizer.scales, cosine_codes=False, dtype="float32"
    )
    assert plain(tokenizer) == plain(release.tokenizer)
    if release.transformer is None:
        return
    key = name.removeprefix("var-")
    transformer = torch_convert.read_transformer_config(weights(key), tokenizer, None, "float32")
    assert plain(transformer) == plain(release.transformer)
    shapes = {tensor: tuple(shape) for tensor, shape in TENSORS[key].items()}
    torch_convert.check(release.transformer, shapes, name)
