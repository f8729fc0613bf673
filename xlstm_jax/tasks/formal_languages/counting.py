"""Questions about how often letters occur. The alphabet has 63 letters, the numbers 1 to 63."""

import numpy as np

from xlstm_jax.tasks.formal_languages.language import Language, Tokens, digits

LETTERS = 63
TIES = ("smallest", "first", "none")


def majority(rng: np.random.Generator, length: int, ties: str) -> tuple[Tokens, Tokens]:
    """The letter that occurs most often.

    In 63 % of samples of 3 to 40 tokens and 42 % of those of 40 to 256 two letters do. The paper
    gives no rule, and its example is a tie that two rules answer alike.

    Args:
        ties: "smallest" number, the letter that occurs "first", or "none": no such samples.
    """
    while True:
        content = rng.integers(1, 1 + LETTERS, length - 1)
        counts = np.bincount(content, minlength=1 + LETTERS)
        most = counts.max()
        if ties == "first":
            return content, content[[np.argmax(counts[content] == most)]]
        if ties == "smallest" or np.count_nonzero(counts == most) == 1:
            return content, np.array([np.argmax(counts)])


def majority_count(rng: np.random.Generator, length: int, ties: str) -> tuple[Tokens, Tokens]:
    """How often the letter occurs that occurs most often; more than 63 times count as 63."""
    content = rng.integers(1, 1 + LETTERS, length - 1)
    return content, np.array([min(np.bincount(content).max(), LETTERS)])


SYMBOLS = ("PAD", *digits(1, LETTERS))
LANGUAGES = {
    "majority": Language(SYMBOLS, 1 / LETTERS, majority, 2, ties=True),
    "majority_count": Language(SYMBOLS, 1 / LETTERS, majority_count, 2),
}
