"""Deterministic context-free languages: a machine with a stack answers them."""

import numpy as np

from xlstm_jax.tasks.formal_languages.language import PAD, Language, Tokens, digits

MODULUS = 5
LETTERS = 10
ACT = 1  # of strings and stacks: now the answer is asked for
FIRST_LETTER = 2

# of stacks
POP, FIRST_IN_STACK, FIRST_PUSHED, KINDS = 2, 3, 7, 4

BRACKET_SYMBOLS = ("PAD", "+", "-", "*", "=", "(", ")", *digits(0, MODULUS))
EQUATION_SYMBOLS = ("PAD", "+", "-", "*", "=", "(", ")", "x", "ACT", *digits(0, MODULUS))


def reverse_string(rng: np.random.Generator, length: int, ties: str) -> tuple[Tokens, Tokens]:
    """The string from its end to its beginning."""
    string = rng.integers(FIRST_LETTER, FIRST_LETTER + LETTERS, (length - 1) // 2)
    return np.append(string, ACT), string[::-1]


def stack_manipulation(rng: np.random.Generator, length: int, ties: str) -> tuple[Tokens, Tokens]:
    """The stack, from bottom to top, after a series of pushes and pops on a given one.

    The actions are drawn uniformly from POP and the four pushes, a POP on an empty stack does
    nothing (both as Deletang et al., 2207.02098, have them for two pushes). They end before the
    first one for which content and answer become longer than the length; a stack that is empty
    then would leave nothing to ask for, and another sample is drawn.
    """
    while True:
        height = int(rng.integers(1, (length - 1) // 2 + 1))  # there is room without any action
        stack = list(rng.integers(FIRST_IN_STACK, FIRST_IN_STACK + KINDS, height))
        content = list(stack)
        for pushed in rng.integers(0, KINDS + 1, length):  # 0 is a POP
            size = len(stack) + 1 if pushed else max(len(stack) - 1, 0)
            # with this action, ACT and the answer
            if len(content) + 2 + size > length:
                break
            content.append(FIRST_PUSHED + pushed - 1 if pushed else POP)
            if pushed:
                stack.append(FIRST_IN_STACK + pushed - 1)
            elif stack:
                stack.pop()
        if stack:
            return np.array([*content, ACT]), np.array(stack)


def modular_arithmetic_brackets(
    rng: np.random.Generator, length: int, ties: str
) -> tuple[Tokens, Tokens]:
    """The value modulo 5 of a term with brackets and +, -, *, and "=" behind."""
    text, value = _term(rng, length - 2, "+-*")
    return _tokens(BRACKET_SYMBOLS, [*text, "="]), _tokens(BRACKET_SYMBOLS, [str(value)])


def solve_equation(rng: np.random.Generator, length: int, ties: str) -> tuple[Tokens, Tokens]:
    """The number for x that makes an equation modulo 5 hold.

    Without products, as in 2207.02098: times 0, any x would do.
    """
    text, value = _term(rng, length - 4, "+-")
    numbers = [place for place, symbol in enumerate(text) if symbol.isdecimal()]
    place = numbers[rng.integers(len(numbers))]
    answer, text[place] = text[place], "x"
    content = [*text, "=", str(value), "ACT"]
    return _tokens(EQUATION_SYMBOLS, content), _tokens(EQUATION_SYMBOLS, [answer])


def _term(rng: np.random.Generator, length: int, operators: str) -> tuple[list[str], int]:
    """A term of so many symbols and its value: 2, -2, (2), (-2), or (LEFT+RIGHT), where LEFT takes
    any share of the length.
    """
    if length < 5:
        number = int(rng.integers(MODULUS))
        sign = -1 if length in (2, 4) else 1
        text = [str(number)] if sign == 1 else ["-", str(number)]
        return text if length < 3 else ["(", *text, ")"], sign * number % MODULUS
    left_length = int(rng.integers(1, length - 3))
    left, a = _term(rng, left_length, operators)
    right, b = _term(rng, length - 3 - left_length, operators)
    operator = operators[rng.integers(len(operators))]
    value = a + b if operator == "+" else a - b if operator == "-" else a * b
    return ["(", *left, operator, *right, ")"], value % MODULUS


def _tokens(symbols: tuple[str, ...], text: list[str]) -> Tokens:
    return np.array([symbols.index(symbol) for symbol in text])


STACK_SYMBOLS = (
    "PAD",
    "ACT",
    "POP",
    *(f"{kind}{n}" for kind in ("ST", "PS") for n in range(1, KINDS + 1)),
)
STRING_SYMBOLS = ("PAD", "ACT", *digits(0, LETTERS))
LANGUAGES = {
    "modular_arithmetic_brackets": Language(BRACKET_SYMBOLS, 1 / 5, modular_arithmetic_brackets, 3),
    "solve_equation": Language(EQUATION_SYMBOLS, 1 / 5, solve_equation, 5),
    "reverse_string": Language(STRING_SYMBOLS, 1 / 10, reverse_string, 3),
    "stack_manipulation": Language(STACK_SYMBOLS, 1 / 4, stack_manipulation, 3),
}
assert all(language.symbols[PAD] == "PAD" for language in LANGUAGES.values())
