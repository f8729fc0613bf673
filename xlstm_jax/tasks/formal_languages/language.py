"""What a formal language is: an alphabet, and samples of content and answer."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from xlstm_jax.typing import Int

PAD = 0
"""The first token of every alphabet."""

Tokens = Int[np.ndarray, " N"]
# (random generator, length, rule for ties) -> (content, answer), together at most of that length
Sample = Callable[[np.random.Generator, int, str], tuple[Tokens, Tokens]]


class Language(NamedTuple):
    """One formal language (2405.04517, figures 4 and 12, appendix B.1.1).

    Attributes:
        symbols: of the tokens, in the order of their ids; PAD is the first.
        chance: accuracy of a guess, as the paper prints it.
        sample: a sample that is as long as the language has one up to the length. It is a function
            of the generator's state and the length (of the rule for ties too, where `ties`).
        shortest: length of the shortest sample.
        ties: whether an answer can be tied, so that a rule has to decide.
    """

    symbols: tuple[str, ...]
    chance: float
    sample: Sample
    shortest: int
    ties: bool = False

    @property
    def vocab_size(self) -> int:
        """Number of tokens, PAD included."""
        return len(self.symbols)


def digits(first: int, count: int) -> tuple[str, ...]:
    """The symbols of consecutive numbers."""
    return tuple(str(number) for number in range(first, first + count))
