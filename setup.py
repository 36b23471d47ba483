"""The packages of the distribution; everything else about it is in setup.cfg.

The configs of the checkout's `configs/` are installed as the folder `var_jax/configs`.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["var_jax", "var_jax.*"]), "var_jax.configs"],
    package_dir={"var_jax.configs": "configs"},
)
