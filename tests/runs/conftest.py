"""The tiny run of the training tests."""

from tests.training.conftest import (
    arguments,
    compilation_cache,
    corpus,
    no_op_step,
    quiet,
    tiny,
)

__all__ = ["arguments", "compilation_cache", "corpus", "no_op_step", "quiet", "tiny"]
