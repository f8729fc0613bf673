"""Context-sensitive languages."""

import numpy as np

from xlstm_jax.tasks.formal_languages.language import Language, Tokens, digits

LETTERS = 10
ACT, FIRST_LETTER = 1, 2  # of odds first
MISSING = 10  # of missing duplicate, behind the nine letters 1 to 9


def bucket_sort(rng: np.random.Generator, length: int, ties: str) -> tuple[Tokens, Tokens]:
    """The string in order."""
    string = rng.integers(1, 1 + LETTERS, length // 2)
    return string, np.sort(string)


def missing_duplicate(rng: np.random.Generator, length: int, ties: str) -> tuple[Tokens, Tokens]:
    """Which letter of a string that stands there twice is replaced by MIS; any letter of both
    copies may be (the paper is silent; so in 2207.02098).
    """
    string = rng.integers(1, MISSING, (length - 1) // 2)
    content = np.concatenate([string, string])
    place = rng.integers(len(content))
    answer = content[[place]]
    content[place] = MISSING
    return content, answer


def odds_first(rng: np.random.Generator, length: int, ties: str) -> tuple[Tokens, Tokens]:
    """The first, third, ... letter, then the second, fourth, ..."""
    string = rng.integers(FIRST_LETTER, FIRST_LETTER + LETTERS, (length - 1) // 2)
    return np.append(string, ACT), np.concatenate([string[0::2], string[1::2]])


LANGUAGES = {
    "bucket_sort": Language(("PAD", *digits(0, LETTERS)), 1 / 10, bucket_sort, 2),
    "missing_duplicate": Language(
        ("PAD", *digits(1, MISSING - 1), "MIS"), 1 / 9, missing_duplicate, 3
    ),
    "odds_first": Language(("PAD", "ACT", *digits(0, LETTERS)), 1 / 10, odds_first, 3),
}
