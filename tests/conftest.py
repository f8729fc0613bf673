"""Shared by all tests: everything runs on the CPU, which counts as 8 devices; what names no mesh runs on the first."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

jax.config.update("jax_num_cpu_devices", 8)  # not by XLA_FLAGS, which programs that tests start would inherit
