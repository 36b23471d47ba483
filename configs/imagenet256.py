"""ImageNet at 256x256, the published recipe: depths 16, 20, 24 and 30, and the tokenizer.

  var-jax train --config configs/imagenet256.py:d16 --config.tokenizer_dir=models/vae --workdir gs://bucket/d16

  var-jax train --config configs/imagenet256.py:tokenizer --config.loss.perceptual_weights=vgg16-397923af.pth \\
      --config.loss.perceptual_heads=vgg.pth --config.adversarial.feature_weights=dino_deitsmall16_pretrain.pth \\
      --workdir gs://bucket/tokenizer

The tokenizer's files are torchvision's VGG-16, LPIPS's heads and DINO's ViT-S/16; without them,
`--config.loss.perceptual_network=efficientnet --config.adversarial.feature_network=efficientnet`
takes EfficientNet-Lite0 from the extra [perceptual] for both.

The tokenizer's recipe is that of vaex (github.com/FoundationVision/vaex) by its code and the
defaults of its arguments: losses and their weights, optimizers and schedules, initialization,
dropout, running average, the discriminator's augmentation, consistency regularization, fading blur,
frames and readout. It differs from it in this, each for the reason given:

- Codes are multi-scale and residual, as VAR's tokenizer has them; vaex quantizes one map.
- Images are ImageNet's; vaex's default is OpenImages and CC12M (`configs/openimages.py` has the
  first).
- The discriminator's heads normalize over eight images in a row (StyleGAN-T); vaex's default is
  batch norm over all devices with running statistics, which are state that every device has to
  agree on, and which the generator's pass would see another network by than the discriminator's.
- Their convolutions along the tokens are padded with zeros; vaex pads circularly. Neither end of a
  row-by-row sequence is a neighbor of the other.
- Crops and resizes to 224 pixels are drawn for every image; vaex draws one for the batch of a
  device, which depends on how many devices there are.
- DINO's GELU is the exact one, which its weights were trained with; vaex computes the tanh form.
  The bias of its keys, which vaex zeroes, moves no softmax.
- Generator and discriminator see a reconstruction through the same draw of augmentations, where
  vaex draws twice: DiffAugment asks for the same kinds on both sides, and one draw is one random
  key.
- At its first adversarial step the discriminator learns at once and the generator's weight is one
  step up its warm-up; vaex's weight is 0 there, and neither learns from the other.
- Activations are bfloat16 (`tokenizer.dtype`); vaex's default is float32, by `fp16` and `bf16` off.

`--config.data.data_dir` is where TFDS prepared imagenet2012. Published FID-50k (cfg 1.5, top-k 900,
top-p 0.96): 3.30 for d16 after 200 epochs at batch 768, 1.92 for d30 after 350 at batch 1024. No
run of this config is on record. The options of the published training code that are off by default
are keys here too: `pg` is `transformer.progressive` (with `optimizer.schedule=bent` and
`optimizer.bend` of the same share), `hflip` is `data.flip`. Its validation drops class labels as
training does, which the held-out metrics whose names end in `_with_class_dropout` are to be
compared with.
"""

from var_jax.config import recipes


def get_config(arg: str = "d16"):
    config = recipes.imagenet_config()
    if arg == "tokenizer":
        recipes.imagenet_tokenizer(config)
    else:
        recipes.imagenet_transformer(config, recipes.depth_of(arg))
    return config
