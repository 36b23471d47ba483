"""A model in memory that a logit refiner can be added to."""

import dataclasses
from typing import Self

from var_jax.adapters.adapted_model import AdaptedModel
from var_jax.config.strict import require
from var_jax.data.model_fingerprint import fingerprints
from var_jax.devices import batched
from var_jax.errors import UserError
from var_jax.io import refiner_file
from var_jax.io.part_file import shapes_by_name
from var_jax.models import refiner


class RefinedModel(AdaptedModel):
    """A loaded model that samples within its scales once it has a refiner."""

    def with_refiner(self, directory) -> Self:
        """Returns the model with a logit refiner as a part; this model stays as it is.

        Saved, the new model has the refiner in its directory. The tokenizer's decoder may differ
        from that of the model that the refiner was trained on, as it decides no token.

        Args:
          directory: a workdir of a refiner's training, or another directory with its file.
        Raises:
          UserError: there is no refiner, it is of another model, or the model has one already or
            has adapters, which change the hidden states that it was trained on.
        """
        trained = refiner_file.load(directory)
        transformer = self.config.transformer
        if transformer is None:
            raise UserError("the model is a tokenizer alone; a refiner needs a transformer")
        require(self.config.refiner is None, "the refiner of the model", "there", "left out")
        own = fingerprints(self.config, self.params)
        if trained.fingerprint != own.model and trained.sampling_fingerprint != own.sampling:
            raise UserError(
                f"the refiner in {directory} is of the base {trained.fingerprint}, and this model "
                f"is {own.model}; give the model that it was trained on, without adapters and in "
                "the dtype of its files"
            )
        config = dataclasses.replace(self.config, refiner=trained.config)
        expected = shapes_by_name(refiner.param_shapes(trained.config, transformer))
        refiner_file.FILE.require_shapes(directory, trained.params, expected)
        params = {**self.params, "refiner": trained.params}
        if self._sharding is not None:
            params = batched.replicate(params, self._sharding.mesh)
        model = type(self)(config, params, self.class_names)
        model._sharding = self._sharding
        return model
