"""What runs of any task need."""

from tests.training.conftest import compilation_cache, quiet

__all__ = ["compilation_cache", "quiet"]
