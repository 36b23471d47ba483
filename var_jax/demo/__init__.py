"""The web page of `var-jax demo`."""
