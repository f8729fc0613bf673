"""What predictors reach that have not understood a language: no result means much below them.

Two of them see only what a model can count without reading: the same token always, and the best
token for each length of the sample and place of the answer. In bucket sort the second one is right
in two thirds of all places.
"""

import collections
import functools

import numpy as np

from xlstm_jax.tasks.formal_languages import LANGUAGES, Language

SAMPLES = 20_000  # of which half are counted and half are predicted
SEED = 3  # other samples than those of any split


@functools.cache
def shortcut_accuracies(name: str, lengths: tuple[int, int], ties: str) -> dict[str, float]:
    """The accuracy of each predictor on samples of these lengths, by its name; about a second.

    Chance is the paper's: a guess among the tokens that can be answers.
    """
    language = LANGUAGES[name]
    counted = _answers(language, lengths, ties, range(0, SAMPLES, 2))
    asked = _answers(language, lengths, ties, range(1, SAMPLES, 2))
    tokens = collections.Counter(token for _, answer in counted for token in answer)
    constant = tokens.most_common(1)[0][0]
    by_place: dict[tuple[int, int], collections.Counter] = collections.defaultdict(
        collections.Counter
    )
    for length, answer in counted:
        for place, token in enumerate(answer):
            by_place[length, place][token] += 1
    best = {key: counts.most_common(1)[0][0] for key, counts in by_place.items()}
    right, always, number = 0, 0, 0
    for length, answer in asked:
        right += sum(best.get((length, p), constant) == token for p, token in enumerate(answer))
        always += answer.count(constant)
        number += len(answer)
    return {
        "chance": language.chance,
        "the commonest answer": always / number,
        "the commonest answer for length and place": right / number,
    }


def scaled(accuracy: float, chance: float) -> float:
    """0 for a guess, 1 where all is right (2405.04517, appendix B.1.1)."""
    return (accuracy - chance) / (1 - chance)


def _answers(
    language: Language, lengths: tuple[int, int], ties: str, numbers: range
) -> list[tuple[int, list[int]]]:
    """(length, answer) of samples."""
    found = []
    for number in numbers:
        rng = np.random.default_rng([SEED, number])
        length = int(rng.integers(max(lengths[0], language.shortest), lengths[1] + 1))
        content, answer = language.sample(rng, length, ties)
        found.append((len(content) + len(answer), answer.tolist()))
    return found
