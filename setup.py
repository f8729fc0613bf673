"""What pyproject.toml can't say: configs/ is installed inside the package, as xlstm_jax.configs. A
top-level package `configs` would stand in the way of a user's own.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["xlstm_jax*", "pallas_kernels*"]), "xlstm_jax.configs"],
    package_dir={"xlstm_jax.configs": "configs"},
)
