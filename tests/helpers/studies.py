"""What tests of the studies share: the digits that a study edits or continues."""

import numpy as np

from helpers import small
from var_jax.evaluate import classifier
from var_jax.evaluate.image_sets import open_images
from var_jax.studies import held_out

REFERENCE = "digits:test[:40]"


def studied_images(data_dir, num: int, seed: int = 0) -> np.ndarray:
    """Returns the images that a study of `num` images of the small model takes from REFERENCE."""
    images = open_images(
        REFERENCE, shape=small.TOKENIZER.image_shape, resize="stretch", data_dir=str(data_dir)
    )
    chosen = held_out.split(images, num, seed).chosen
    return classifier.load_all(chosen, small.CLASSES)[0]
