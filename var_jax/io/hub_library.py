"""The library huggingface_hub, which is imported where it is used, and the hub's address."""

import os
from types import ModuleType

from var_jax.errors import UserError


def library() -> ModuleType:
    """Returns the module huggingface_hub.

    Files come over plain HTTP unless HF_HUB_DISABLE_XET is set otherwise (0, before it starts):
    the library's other transfer, hf_xet, has tries of its own, which no limit here reaches.

    Raises:
      UserError: it is not installed.
    """
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
        import huggingface_hub.file_download  # its first message would set the library's log level
        import huggingface_hub.utils
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "huggingface_hub":
            raise
        raise UserError(
            "the Hugging Face hub needs the package huggingface_hub; install it by "
            "pip install 'var-jax[hub]'"
        ) from error
    if "HF_HUB_DISABLE_XET" not in os.environ:
        # Another package may have imported the library before, so that a variable would be too late
        huggingface_hub.constants.HF_HUB_DISABLE_XET = True
    return huggingface_hub


def endpoint() -> str:
    """Returns the hub's address: HF_ENDPOINT, which the library itself reads at its import."""
    return (os.environ.get("HF_ENDPOINT") or str(library().constants.ENDPOINT)).rstrip("/")
