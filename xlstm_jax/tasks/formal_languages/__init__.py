"""The table of formal languages, in the order of the paper's figures (2405.04517, figures 4, 12).

Each has an alphabet and a small pure function from a random generator and a length to a sample.
"""

from xlstm_jax.tasks.formal_languages import (
    context_free,
    context_sensitive,
    counting,
    memory,
    regular,
)
from xlstm_jax.tasks.formal_languages.language import PAD, Language

CLASSES = {
    "context-sensitive": context_sensitive.LANGUAGES,
    "deterministic context-free": context_free.LANGUAGES,
    "regular": regular.LANGUAGES,
    "counting": counting.LANGUAGES,
    "memory": memory.LANGUAGES,
}
LANGUAGES = {name: found for group in CLASSES.values() for name, found in group.items()}

__all__ = ["CLASSES", "LANGUAGES", "PAD", "Language"]
