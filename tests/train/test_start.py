"""Which weights of another model a run starts from."""

import dataclasses

import jax
import numpy as np
import pytest
import small

from var_jax.errors import UserError
from var_jax.ops.scales import Scales
from var_jax.train import start


def test_a_tokenizer_goes_on_at_other_scales(model_dir):
    """Its parameters depend on the scales' number at most: smaller images first, then larger ones, in two runs."""
    for scales in ("1,2,3x4,4,6x8", "1,2"):
        tokenizer = dataclasses.replace(small.TOKENIZER, scales=Scales.parse(scales))
        config = small.train_config("tokenizer", "", tokenizer=tokenizer, init_from=str(model_dir))
        jax.tree.map(np.testing.assert_array_equal, start._weights(config), small.pipeline().params["tokenizer"])


@pytest.mark.parametrize(("changes", "named"), [
    ({"phi": 0}, "quantize/phi_kernel: \\(3, 3, 3, 4, 4\\) here, \\(2, 3, 3, 4, 4\\) there"),
    ({"codes": "bsq"}, "quantize/codebook: None here, \\(16, 4\\) there")])
def test_other_codes_or_convolutions_are_named(model_dir, changes, named):
    config = small.train_config("tokenizer", "", init_from=str(model_dir),
                                tokenizer=dataclasses.replace(small.TOKENIZER, **changes))
    with pytest.raises(UserError, match=named):
        start._weights(config)
