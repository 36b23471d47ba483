"""Models that a command line names by their address on the Hugging Face hub."""

import argparse

from var_jax.io.hub_address import is_address

OPTIONS = ("model", "then", "base", "tuned")  # that commands take a model's directory by
# Keys of a config by which a run does; it fetches the model itself.
KEYS = ("config.tokenizer_dir", "config.init_from")


def takes_model(flag: str) -> bool:
    """Returns whether a flag, or what it abbreviates, takes a model's directory."""
    name = flag.removeprefix("--")
    is_option = name not in ("", flag) and any(option.startswith(name) for option in OPTIONS)
    return is_option or name in KEYS


def fetch(args: argparse.Namespace):
    """Replaces the addresses of models by the directories in the cache that they are fetched to.

    A command calls it after its own checks that need no model, as models may be large.
    `args.addresses` has the addresses by option.

    Raises:
      UserError: an address is of another form, or there is no such model.
      RunFailed: the hub cannot be reached and the model is not in the cache.
    """
    args.addresses = {}
    for option in OPTIONS:
        value = getattr(args, option, None)
        if isinstance(value, str) and is_address(value):
            from var_jax.io import hub_download

            args.addresses[option] = value
            setattr(args, option, str(hub_download.local_directory(value)))
