"""ListOps of the Long Range Arena (2011.04006, section 2.2.1): nested lists with operators, whose
value, a digit, is the class.

    [MAX 4 3 [MIN 2 3 ] 1 0 [MED 1 5 8 9 2 ] ]   =>   5

A node is an operator with probability 1/4, above the greatest depth, and a digit otherwise. An
operator has 2 to 10 arguments; MED is the median rounded down, SM the sum modulo 10. Only terms are
kept that are longer and shorter than the bounds. These are the rules and probabilities of the
original generator; the brackets that it draws around each pair say nothing, and are left out, as
its readers do. <eos> stands at the end (as for S4 and S5).
"""

import dataclasses
import functools
import random
from typing import Any

import numpy as np

from xlstm_jax.errors import UserError
from xlstm_jax.models.classifier import POOLINGS
from xlstm_jax.settings import setting
from xlstm_jax.tasks.classification import Classification, Plan

OPERATORS = ("[MIN", "[MAX", "[MED", "[SM")
SYMBOLS = ("PAD", "<eos>", *map(str, range(10)), *OPERATORS, "]")
IDS = {symbol: number for number, symbol in enumerate(SYMBOLS)}
DIGITS = 10
OPERATOR_SHARE = 0.25  # of nodes above the greatest depth
KEPT = 200_000  # terms that are not made again in the next epoch; 1 kB each


@dataclasses.dataclass(frozen=True)
class ListOpsConfig:
    """Settings of the nested lists."""

    lengths: tuple[int, ...] = setting(
        (500, 2000), "terms are longer than the first and shorter than the second", entries=2,
        at_least=1,
    )  # fmt: skip
    max_depth: int = setting(10, "at which every node is a digit", at_least=2)
    max_arguments: int = setting(10, "of an operator, which has at least 2", at_least=2)
    pooling: str = setting(
        "mean", 'of all tokens, or the "last" one: what the class is told from', choices=POOLINGS
    )
    train_samples: int = setting(96_000, "that training reads again and again", at_least=1)
    held_out_samples: int = setting(2_000, "of validation", at_least=1)
    test_samples: int = setting(2_000, "of the test, which nothing is chosen by", at_least=1)


class TooLong(Exception):
    """A term that will not be kept."""


def term(rng: random.Random, max_depth: int, max_arguments: int, room: int) -> tuple[list, int]:
    """(symbols, value) of a term.

    Raises:
        TooLong: it would have more symbols than there is room for.
    """
    symbols: list[str] = []

    def node(depth: int) -> int:
        if len(symbols) >= room:
            raise TooLong
        if depth >= max_depth or rng.random() > OPERATOR_SHARE:
            digit = rng.randrange(DIGITS)
            symbols.append(str(digit))
            return digit
        place = len(symbols)
        symbols.append("")  # the operator is drawn after its arguments
        values = [node(depth + 1) for _ in range(rng.randint(2, max_arguments))]
        operator = rng.choice(OPERATORS)
        symbols[place] = operator
        symbols.append("]")
        return _applied(operator, values)

    value = node(1)
    return symbols, value


def _applied(operator: str, values: list[int]) -> int:
    if operator == "[MIN":
        return min(values)
    if operator == "[MAX":
        return max(values)
    if operator == "[SM":
        return sum(values) % DIGITS
    return int(np.median(values))


@functools.lru_cache(maxsize=KEPT)
def sample(
    split: str, seed: int, number: int, lengths: tuple[int, int], depth: int, arguments: int
) -> tuple[np.ndarray, int]:
    """(tokens, value): terms are drawn until one has the right length."""
    rng = random.Random(f"{split} {seed} {number}")
    longer, shorter = lengths
    while True:
        try:
            symbols, value = term(rng, depth, arguments, shorter - 1)
        except TooLong:
            continue
        if longer < len(symbols) < shorter:
            tokens = [IDS[symbol] for symbol in symbols]
            return np.array([*tokens, IDS["<eos>"]], np.uint8), value


class ListOps(Classification):
    """Tells the value of nested lists."""

    settings: ListOpsConfig

    @property
    def plan(self) -> Plan:
        settings = self.settings
        return Plan(DIGITS, None, settings.pooling)

    def count(self, split: str) -> int:
        settings = self.settings
        held_out = {"validation": settings.held_out_samples, "test": settings.test_samples}
        return {"train": settings.train_samples, **held_out}[split]

    def sample(self, split: str, seed: int, number: int) -> tuple[np.ndarray, int]:
        settings = self.settings
        return sample(
            split, seed, number, settings.lengths, settings.max_depth, settings.max_arguments
        )

    def check(self) -> None:
        settings = self.settings
        longer, shorter = settings.lengths
        if shorter - longer < 2:
            raise UserError(
                f"config key task.listops.lengths is {longer, shorter}; no term is longer than the "
                "first and shorter than the second"
            )
        if self.data.context_length < shorter:
            raise UserError(
                f"config key data.context_length is {self.data.context_length}; terms of "
                f"task.listops.lengths {settings.lengths} have up to {shorter} tokens with <eos>"
            )
        if self.model_config.vocab_size < len(SYMBOLS):
            raise UserError(
                f"config key model.vocab_size is {self.model_config.vocab_size}; there are "
                f"{len(SYMBOLS)} tokens"
            )

    def description(self) -> list[str]:
        settings = self.settings
        return [
            f"nested lists of {settings.lengths[0] + 1} to {settings.lengths[1] - 1} symbols: "
            f"trained on {settings.train_samples:,}, evaluated on {settings.held_out_samples:,}"
        ]

    def record(self) -> dict[str, dict[str, Any]]:
        settings = self.settings
        what = (
            f"lengths {settings.lengths} depth {settings.max_depth} arguments "
            f"{settings.max_arguments} seed {self.data.seed}"
        )
        return {
            "train": {"fingerprint": f"{what}, {settings.train_samples}"},
            "validation": {"fingerprint": f"{what}, {settings.held_out_samples}"},
        }
