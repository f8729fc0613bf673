"""Shared by all tests: everything runs on the CPU."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
