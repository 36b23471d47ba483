r"""An adapter of a trained model: teach it your own thing from a folder of images.

  var-jax train --config configs/adapters.py --config.adapter.base=runs/quickstart \
      --config.data.source_dir=things --config.adapter.classes=mug --workdir runs/mug
  var-jax sample --model runs/quickstart --adapter runs/mug --labels mug --num 16 --out mugs.png

The images of a new class are in the folder things/mug. A folder that is named after a class of the
model holds images of that class. The model and its tokenizer stay as they are, and all of their
sizes are taken from adapter.base. The argument "class_rows" learns nothing but the new class's row.

Measured on the quickstart's model with 24 drawings of one thing and --config.steps=200, on two CPU
cores that others used too:

  cost      70 s of processor time, compilation included
  expected  held-out loss 2.14 on the one image that is held out

Measured on a model of nine kinds of clothes (depth 2) with 100 images of a tenth, bags, 200 steps
and --config.optimizer.base_lr=2.56e-1, as in docs/results/adapters.md:

  cost      41 s of processor time, compilation included; 132,552 bytes
  expected  a classifier sees a bag in 96 % of samples, and in 4 % before; 64 % of the samples of
            the other classes show theirs, and 91 % before: a smaller rate or weight damages less
"""

from ml_collections import config_dict

from var_jax.config.train import default_config
from var_jax.errors import UserError

KINDS = ("lora", "class_rows")


def get_config(arg: str = "lora") -> config_dict.ConfigDict:
    """Returns the run of an adapter: "lora", with rows of new classes if there are any, or
    "class_rows", these rows alone."""
    if arg not in KINDS:
        raise UserError(f"config argument {arg!r} is none of {', '.join(KINDS)}")
    config = default_config()
    config.stage = "adapter"

    # Data
    config.data.name = "image_folder"
    config.data.resize = "crop"

    # Adapter
    config.adapter.kind = arg
    if arg == "lora":
        config.adapter.rank = 8
        config.adapter.alpha = 8.0
        config.adapter.targets = "qkv,proj,fc1,fc2"
    config.adapter.start = "mean"  # or the class that is most like the new one

    # Optimizer, with a constant rate: the weight of an adapter is chosen afterwards
    if arg == "lora":
        config.optimizer.base_lr = 6.4e-2  # 2e-3 at batch 8
    else:
        config.optimizer.base_lr = 3.2e-1  # 1e-2 at batch 8: a row moves farther than a factor
    config.optimizer.schedule = "constant"
    config.optimizer.warmup_steps = 20
    config.optimizer.weight_decay = 0.0
    config.optimizer.final_weight_decay = 0.0
    config.optimizer.clip = 1.0

    # Schedule
    config.batch_size = 8  # a few images are enough for a batch
    config.steps = 400
    config.ema = 0.98  # averages over 50 steps

    # Evaluation, with samples of each class of the folder
    config.eval_every = 200
    config.checkpoint_every = 200
    config.log_every = 20
    return config
