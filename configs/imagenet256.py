"""ImageNet at 256x256, the published recipe: depths 16, 20, 24 and 30, and the tokenizer.

  var-jax train --config configs/imagenet256.py:d16 --config.tokenizer_dir=models/vae --workdir gs://bucket/d16

`--config.data.data_dir` is where TFDS prepared imagenet2012. Published FID-50k (cfg 1.5, top-k 900, top-p 0.96):
3.30 for d16 after 200 epochs at batch 768, 1.92 for d30 after 350 at batch 1024. No run of this config is on record.
"""

from var_jax.train import recipes


def get_config(arg: str = "d16"):
    config = recipes.imagenet_config()
    if arg == "tokenizer":
        recipes.imagenet_tokenizer(config)
    else:
        recipes.imagenet_transformer(config, recipes.depth_of(arg))
    return config
