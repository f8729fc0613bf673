"""Questions that ask for what was read."""

import numpy as np

from xlstm_jax.tasks.formal_languages.language import Language, Tokens, digits

ACT, FIRST_LETTER = 1, 2
LETTERS = 10
SET_LETTERS = 126


def repetition(rng: np.random.Generator, length: int, ties: str) -> tuple[Tokens, Tokens]:
    """The string again."""
    string = rng.integers(FIRST_LETTER, FIRST_LETTER + LETTERS, (length - 1) // 2)
    return np.append(string, ACT), string


def set_of_letters(rng: np.random.Generator, length: int, ties: str) -> tuple[Tokens, Tokens]:
    """The letters of the string, each once, in the order of their first occurrence.

    A letter that is new lengthens content and answer, one that was there the content alone: the
    string ends before the first letter for which both become longer than the length.
    """
    drawn = rng.integers(FIRST_LETTER, FIRST_LETTER + SET_LETTERS, length)
    new = np.zeros(length, bool)
    new[np.unique(drawn, return_index=True)[1]] = True
    sizes = 1 + np.cumsum(1 + new)  # of content, ACT and answer with so many letters
    string = drawn[: np.searchsorted(sizes, length, side="right")]
    return np.append(string, ACT), string[new[: len(string)]]


LANGUAGES = {
    "repetition": Language(("PAD", "ACT", *digits(0, LETTERS)), 1 / 10, repetition, 3),
    "set": Language(("PAD", "ACT", *digits(1, SET_LETTERS)), 1 / 126, set_of_letters, 3),
}
