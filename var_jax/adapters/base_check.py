"""Refuses adapters that were trained on another base than the model at hand."""

from var_jax.adapters import parameters
from var_jax.adapters.adapter_file import NAME, Adapter
from var_jax.config.model import TransformerConfig
from var_jax.config.strict import differences, require
from var_jax.errors import UserError
from var_jax.io import array_file


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
    expected = parameters.shapes(adapter.config, model)
    shapes = {name: list(leaf.shape) for name, leaf in array_file.named_leaves(adapter.params)}
    if different := differences(expected, shapes):
        raise UserError(
            f"{adapter.source}/{NAME} does not fit its header: {'; '.join(different[:4])}"
        )
    classes = model.num_classes
    valid = all(start is None or 0 <= start < classes for start in adapter.starts)
    require(valid, f"a start in {adapter.source}/{NAME}", adapter.starts, f"below {classes}")
