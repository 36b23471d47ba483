"""Refuses adapters that were trained on another base than the model at hand."""

from var_jax.adapters import parameters
from var_jax.adapters.adapter_file import FILE, NAME, Adapter
from var_jax.config.model import TransformerConfig
from var_jax.config.strict import require
from var_jax.errors import UserError


def require_fits(adapter: Adapter, model: TransformerConfig, fingerprint: str):
    """Raises UserError unless an adapter was trained on a model.

    Args:
      model: the model's transformer.
      fingerprint: the model's fingerprint.
    """
    if adapter.fingerprint != fingerprint:
        raise UserError(
            f"the adapter in {adapter.source} is of the base {adapter.fingerprint}, and this model "
            f"is {fingerprint}; give the model that it was trained on, in the dtype of its files"
        )
    FILE.require_shapes(adapter.source, adapter.params, parameters.shapes(adapter.config, model))
    classes = model.num_classes
    valid = all(start is None or 0 <= start < classes for start in adapter.starts)
    require(valid, f"a start in {adapter.source}/{NAME}", adapter.starts, f"below {classes}")
