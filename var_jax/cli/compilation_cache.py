"""The folder in which commands keep their compiled programs."""

import os


def keep_programs():
    """Keeps compiled programs between commands, unless the user's JAX settings differ."""
    cache = os.path.join(
        os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache")), "var_jax", "xla"
    )
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", cache)
