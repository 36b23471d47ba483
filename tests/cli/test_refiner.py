"""`--refiner`: images of a refined model, its cost, and the lines that refuse it."""

import numpy as np
import pytest

from helpers import masked, refiners
from helpers.commands import run
from var_jax import Pipeline


@pytest.mark.long
def test_generate_samples_the_refined_model(model_dir, tmp_path, capsys, caplog):
    """The images are those that Python gives with the refiner, and other ones than without; a line
    has the passes that it adds, one for each of the 17 tokens."""
    directory = refiners.write(tmp_path / "run", refiners.random_params())
    out = tmp_path / "samples.npz"
    flags = ("--num", 4, "--labels", "0-3", "--cfg", "0", "--seed", "1", "--out", out)
    with caplog.at_level("INFO"):
        run(capsys, "generate", "--model", model_dir, "--refiner", directory, *flags)
    assert "adds 17 passes to the model's 3" in caplog.text
    with np.load(out) as arrays:
        generated = {image.tobytes() for image in arrays["arr_0"]}
    own = Pipeline.from_pretrained(model_dir)
    settings = {"seed": 1, "cfg": 0, "as_uint8": True}
    expected, other = (
        {image.tobytes() for image in model.sample(range(4), **settings)}
        for model in (own.with_refiner(directory), own)
    )
    assert generated == expected != other


@pytest.mark.long
def test_sample_refuses_refiners_in_one_line(model_dir, tmp_path, refused):
    """A directory without a refiner, a refiner of another model, and one in place of a model."""
    out = ("--labels", "3", "--out", "{out}")
    directory = refiners.write(tmp_path / "run", refiners.fresh_params())
    masked.pipeline().save(tmp_path / "masked")
    no_refiner = refused("sample", "--model", model_dir, "--refiner", model_dir, *out)
    assert f"no refiner in {model_dir}" in no_refiner
    other = refused("sample", "--model", tmp_path / "masked", "--refiner", directory, *out)
    assert "is of the base" in other
    assert f"--refiner {directory}" in refused("sample", "--model", directory, *out)
