"""The published d16 and its tokenizer at full size, from seeded weights of the released shapes (about 4 GB)."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from reference.seeded_weights import seeded_state_dict

from var_jax import Pipeline
from var_jax.config import SCALES_256

RELEASED = json.loads((Path(__file__).parent / "reference" / "released_checkpoints.json").read_text())


@pytest.mark.slow
def test_d16_is_converted_encodes_decodes_and_samples():
    states = [seeded_state_dict(RELEASED[name], seed=1) for name in ("vae_d16", "d16")]
    model = Pipeline.from_torch(*states, scales=SCALES_256)
    del states
    counts = {name: sum(x.size for x in jax.tree.leaves(tree)) for name, tree in model.params.items()}
    assert counts == {"tokenizer": 108_948_355, "transformer": 310_283_520}

    image, tokens = model.sample([207], cfg=0, top_k=1, top_p=0, return_tokens=True)
    assert image.shape == (1, 256, 256, 3) and tokens.shape == (1, 680)
    assert 0 <= image.min() < image.max() <= 1
    np.testing.assert_allclose(model.decode(tokens), image * 2 - 1, atol=1e-3)
    assert model.encode(image * 2 - 1).shape == (1, 680)

    # Greedy generation chose, at every place, the largest of the teacher-forced logits (to rounding between near-ties).
    logits = model.logits(tokens, [207])
    chosen = np.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    assert np.max(logits.max(axis=-1) - chosen) < 1e-3 * np.abs(logits).max()
    assert len(np.unique(tokens)) > 50
