"""Regular languages: a machine with finitely many states answers them."""

import numpy as np

from xlstm_jax.tasks.formal_languages.language import Language, Tokens, digits

MODULUS = 5


def parity(rng: np.random.Generator, length: int, ties: str) -> tuple[Tokens, Tokens]:
    """a if the number of b's is even, else b."""
    content = rng.integers(1, 3, length - 1)
    return content, np.array([1 + np.count_nonzero(content == 2) % 2])


def even_pairs(rng: np.random.Generator, length: int, ties: str) -> tuple[Tokens, Tokens]:
    """a if ab and ba together occur an even number of times, else b. Each of them changes the
    letter, so that the number is even where the last letter is the first.
    """
    content = rng.integers(1, 3, length - 1)
    return content, np.array([1 if content[0] == content[-1] else 2])


def cycle_navigation(rng: np.random.Generator, length: int, ties: str) -> tuple[Tokens, Tokens]:
    """Where on a circle of 5 places the moves STAY, +1, -1 end that begin at P0."""
    content = rng.integers(1, 4, length - 1)
    moved = np.count_nonzero(content == 2) - np.count_nonzero(content == 3)
    return content, np.array([4 + moved % MODULUS])


def modular_arithmetic(rng: np.random.Generator, length: int, ties: str) -> tuple[Tokens, Tokens]:
    """The value modulo 5 of numbers with +, -, * between them, * first, and "=" behind; of an even
    length a token is left out, as in the authors' code.
    """
    terms = (length - 1) // 2
    numbers, operators = rng.integers(0, MODULUS, terms), rng.integers(1, 4, terms - 1)
    content = np.empty(2 * terms, np.int64)
    content[0::2], content[1:-1:2], content[-1] = 5 + numbers, operators, 4
    total, product = 0, int(numbers[0])
    for operator, number in zip(operators, numbers[1:], strict=True):
        if operator == 3:
            product = product * int(number) % MODULUS
        else:
            total, product = total + product, int(number) if operator == 1 else -int(number)
    return content, np.array([5 + (total + product) % MODULUS])


LANGUAGES = {
    "parity": Language(("PAD", "a", "b"), 1 / 2, parity, 2),
    "even_pairs": Language(("PAD", "a", "b"), 1 / 2, even_pairs, 2),
    "cycle_navigation": Language(
        ("PAD", "STAY", "+1", "-1", "P0", "P1", "P2", "P3", "P4"), 1 / 5, cycle_navigation, 2
    ),
    "modular_arithmetic": Language(
        ("PAD", "+", "-", "*", "=", *digits(0, MODULUS)), 1 / 5, modular_arithmetic, 3
    ),
}
