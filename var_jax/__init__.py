"""Visual Autoregressive Modeling (VAR, arXiv 2404.02905) in JAX/Flax."""

from typing import Any

__all__ = ["Pipeline", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "Pipeline":  # imported when asked for: `var-jax --help` need not load JAX
        from var_jax.pipeline import Pipeline

        return Pipeline
    if name == "__version__":  # not at import: a checkout that is not installed has none
        from importlib.metadata import version

        return version("var-jax")
    raise AttributeError(f"module 'var_jax' has no attribute {name!r}")
