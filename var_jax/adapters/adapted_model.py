"""A model in memory that adapters can be merged into, and taken out of again."""

from collections.abc import Sequence
from typing import Self

import jax

from var_jax.adapters import adapter_file
from var_jax.adapters.chain import Chain
from var_jax.devices import batched
from var_jax.io.loaded_model import LoadedModel


class AdaptedModel(LoadedModel):
    """A loaded model with any number of adapters merged into its weights."""

    _chain: Chain | None = None  # the model without its adapters, and these

    def with_adapter(self, directory, weight: float = 1.0) -> Self:
        """Returns the model with an adapter merged into its weights; this model stays as it is.

        Several adapters may be added one after the other. Each time, the sum of their changes is
        computed from the model without any and rounded once, so that their order does not matter.
        An adapter that is added again adds its weight to the one before. New classes follow the
        model's own, in the order in which their adapters were added.

        Args:
          directory: a workdir of an adapter's training, or another directory with its file.
          weight: factor on the adapter's change, any finite number: 0 changes nothing (a new class
            then has the row that it started from), and negative ones go away from what was learned.
        Raises:
          UserError: there is no adapter, it is of another model, or a class has the name of one
            that the model has already.
        """
        return self._adapted(self._adapters().adding(adapter_file.load(directory), weight))

    def without_adapter(self, directory) -> Self:
        """Returns the model as if an adapter had never been added, to the last bit.

        Raises:
          UserError: the model does not have this adapter.
        """
        return self._adapted(self._adapters().without(adapter_file.load(directory)))

    def spread(self, devices: Sequence[jax.Device] | None = None) -> Self:
        spread = super().spread(devices)
        spread._chain = self._chain
        return spread

    def _adapters(self) -> Chain:
        return self._chain or Chain.of(self.config, self.params, self.class_names)

    def _adapted(self, chain: Chain) -> Self:
        config, params, class_names = chain.merged()
        if self._sharding is not None:
            params = batched.replicate(params, self._sharding.mesh)
        model = type(self)(config, params, class_names)
        model._sharding, model._chain = self._sharding, chain
        return model
