"""ImageNet at 512x512, the published recipe of depth 36 with shared AdaLN; the tokenizer's weights
are the 256 px ones.

  var-jax train --config configs/imagenet512.py:d36 --config.tokenizer_dir=models/vae512 --workdir gs://bucket/d36

`--config.data.data_dir` is where TFDS prepared imagenet2012. Published FID-50k: 2.63 after 350
epochs at batch 768. No run of this config is on record.
"""

from var_jax.config import recipes
from var_jax.config.model import SCALES_512


def get_config(arg: str = "d36"):
    config = recipes.imagenet_config()
    config.tokenizer.scales = SCALES_512
    if arg == "tokenizer":
        recipes.imagenet_tokenizer(config)
    else:
        recipes.imagenet_transformer(config, recipes.depth_of(arg))
        config.transformer.shared_adaln = True
    return config
