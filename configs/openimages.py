"""OpenImages at 256x256: the tokenizer, on the data that the published one was trained on; and an
unconditional VAR.

  var-jax train --config configs/openimages.py:tokenizer --config.loss.perceptual_weights=vgg16-397923af.pth \\
      --config.loss.perceptual_heads=vgg.pth --config.adversarial.feature_weights=dino_deitsmall16_pretrain.pth \\
      --workdir gs://bucket/tokenizer

The files are those of configs/imagenet256.py, and so are what stands in for them and the recipe.
`--config.data.data_dir` is where TFDS prepared open_images_v4, whose images have many labels: all
count as one class. No run of this config is on record.
"""

from var_jax.config import recipes


def get_config(arg: str = "d16"):
    config = recipes.imagenet_config()
    config.data.name = "open_images_v4"
    if arg == "tokenizer":
        recipes.imagenet_tokenizer(config)
    else:
        recipes.imagenet_transformer(config, recipes.depth_of(arg))
        config.transformer.num_classes = 1
    return config
