"""ImageNet at 256x256, the published recipe: depths 16, 20, 24 and 30, and the tokenizer.

  var-jax train --config configs/imagenet256.py:d16 --config.tokenizer_dir=models/vae --workdir gs://bucket/d16

  var-jax train --config configs/imagenet256.py:tokenizer --config.loss.perceptual_weights=vgg16-397923af.pth \\
      --config.loss.perceptual_heads=vgg.pth --config.adversarial.feature_weights=dino_deitsmall16_pretrain.pth \\
      --workdir gs://bucket/tokenizer

The tokenizer's files are torchvision's VGG-16, LPIPS's heads and DINO's ViT-S/16; without them,
`--config.loss.perceptual_network=efficientnet --config.adversarial.feature_network=efficientnet` takes
EfficientNet-Lite0 from the extra [perceptual] for both.

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
