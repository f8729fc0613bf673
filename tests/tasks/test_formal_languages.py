"""The 15 formal languages: each answer is found again by brute force from the symbols alone, by
code that shares nothing with the generators.
"""

import collections
import itertools
import math

import numpy as np
import pytest

from xlstm_jax.config import default_config_dict, from_config_dict, task_of
from xlstm_jax.errors import UserError
from xlstm_jax.tasks.formal import PAD, UNCOUNTED
from xlstm_jax.tasks.formal_languages import CLASSES, LANGUAGES
from xlstm_jax.tasks.formal_languages.shortcuts import scaled, shortcut_accuracies

SAMPLES = 300
# whose answers are not all equally frequent
UNEVEN = ("modular_arithmetic_brackets", "majority", "majority_count")
# figure 4's and figure 12's table: tokens with PAD, one over the chance of a guess
PRINTED = {
    "bucket_sort": (11, 10),
    "missing_duplicate": (11, 9),
    "odds_first": (12, 10),
    "modular_arithmetic_brackets": (12, 5),
    "solve_equation": (14, 5),
    "reverse_string": (12, 10),
    "stack_manipulation": (11, 4),
    "cycle_navigation": (9, 5),
    "even_pairs": (3, 2),
    "modular_arithmetic": (10, 5),
    "parity": (3, 2),
    "majority": (64, 63),
    "majority_count": (64, 63),
    "repetition": (12, 10),
    "set": (128, 126),
}


def samples(name, lengths=(3, 40), count=SAMPLES, ties="smallest"):
    """(symbols of the content, symbols of the answer, length that was asked for)."""
    language = LANGUAGES[name]
    for number in range(count):
        rng = np.random.default_rng([7, number])
        length = int(rng.integers(max(lengths[0], language.shortest), lengths[1] + 1))
        content, answer = language.sample(rng, length, ties)
        yield (
            [language.symbols[token] for token in content],
            [language.symbols[token] for token in answer],
            length,
        )


def without(content, last):
    assert content[-1] == last
    return content[:-1]


def value(symbols):
    """Python knows the precedence of operators."""
    return str(eval("".join(symbols)) % 5)


def walk(content):
    place = 0
    for move in content:
        place = (place + {"STAY": 0, "+1": 1, "-1": 4}[move]) % 5
    return [f"P{place}"]


def stack_after(content):
    stack = []
    for place, action in enumerate(without(content, "ACT")):
        if action.startswith("ST"):
            assert all(before.startswith("ST") for before in content[:place])
            stack.append(action)
        elif action == "POP":
            stack = stack[:-1]
        else:
            stack.append(action.replace("PS", "ST"))
    return stack


def solutions(content):
    left, right = "".join(without(content, "ACT")).split("=")
    assert left.count("x") == 1
    return [x for x in "01234" if (eval(left.replace("x", x)) - int(right)) % 5 == 0]


def missing(content):
    half = len(content) // 2
    copies = content[:half], content[half:]
    (found,) = [sorted(pair) for pair in zip(*copies, strict=True) if pair[0] != pair[1]]
    assert found[1] == "MIS"
    return [found[0]]


def most_frequent(content):
    return [min(set(content), key=lambda letter: (-content.count(letter), int(letter)))]


ANSWERS = {
    "bucket_sort": lambda c: sorted(c, key=int),
    "missing_duplicate": missing,
    "odds_first": lambda c: without(c, "ACT")[0::2] + without(c, "ACT")[1::2],
    "modular_arithmetic_brackets": lambda c: [value(without(c, "="))],
    "solve_equation": solutions,
    "reverse_string": lambda c: list(reversed(without(c, "ACT"))),
    "stack_manipulation": stack_after,
    "cycle_navigation": walk,
    "even_pairs": lambda c: [
        "ba"[sum(pair in (("a", "b"), ("b", "a")) for pair in itertools.pairwise(c)) % 2 == 0]
    ],
    "modular_arithmetic": lambda c: [value(without(c, "="))],
    "parity": lambda c: ["ab"[c.count("b") % 2]],
    "majority": most_frequent,
    "majority_count": lambda c: [str(min(63, max(c.count(letter) for letter in c)))],
    "repetition": lambda c: without(c, "ACT"),
    "set": lambda c: list(dict.fromkeys(without(c, "ACT"))),
}


def test_there_are_the_papers_languages_with_its_alphabets_and_chances():
    assert LANGUAGES.keys() == PRINTED.keys() == ANSWERS.keys()
    for name, (size, guesses) in PRINTED.items():
        language = LANGUAGES[name]
        assert (language.vocab_size, language.chance) == (size, pytest.approx(1 / guesses)), name
        assert len(set(language.symbols)) == size and language.symbols[PAD] == "PAD"
    assert [len(group) for group in CLASSES.values()] == [3, 4, 4, 2, 2]


@pytest.mark.parametrize("lengths", [(3, 40), (40, 256)])
@pytest.mark.parametrize("name", LANGUAGES)
def test_every_answer_is_found_again_by_brute_force(name, lengths):
    for content, answer, length in samples(name, lengths, SAMPLES if lengths[0] == 3 else 40):
        assert "PAD" not in content + answer
        assert answer == ANSWERS[name](content), content
        # as long as asked for, or one token less where the language has no such sample
        assert length - 1 <= len(content) + len(answer) <= length


@pytest.mark.parametrize("name", LANGUAGES)
def test_the_shortest_sample_is_as_short_as_it_says_and_no_shorter_one_is(name):
    language = LANGUAGES[name]
    content, answer = language.sample(np.random.default_rng(0), language.shortest, "smallest")
    assert len(content) + len(answer) == language.shortest
    assert len(content) >= 1 and len(answer) >= 1


def letters(name, lengths=(3, 40), count=2000, ties="smallest"):
    """Of all answers, in a row."""
    return [letter for _, answer, _ in samples(name, lengths, count, ties) for letter in answer]


def histogram(found):
    return {letter: count / len(found) for letter, count in collections.Counter(found).items()}


@pytest.mark.parametrize(
    ("name", "ties"),
    [
        *((name, "smallest") for name in LANGUAGES if name not in UNEVEN),
        ("majority", "none"),  # else small numbers win the ties
    ],
)
def test_answers_are_spread_evenly(name, ties):
    """Every letter within 5 standard deviations of its count."""
    chance = LANGUAGES[name].chance
    answers = letters(name, ties=ties)
    found = histogram(answers)
    assert len(found) == round(1 / chance)
    allowed = 5 * math.sqrt(chance * (1 - chance) / len(answers))
    assert all(abs(share - chance) < allowed for share in found.values())


def test_products_make_0_the_commonest_value():
    """Reference values: 26 to 31 % of terms with brackets."""
    found = histogram(letters("modular_arithmetic_brackets", (40, 256), 600))
    assert 0.22 < found["0"] < 0.36 and max(found, key=found.get) == "0"


def test_the_rule_for_ties_of_majority_is_a_key():
    tied = 0
    for rule in ("smallest", "first", "none"):
        for content, (answer,), _ in samples("majority", ties=rule):
            counts = {letter: content.count(letter) for letter in content}
            most = [letter for letter in counts if counts[letter] == max(counts.values())]
            if rule == "smallest":
                tied += len(most) > 1
                assert answer == min(most, key=int)
            elif rule == "first":
                assert answer == most[0]  # dictionaries keep the order
            else:
                assert most == [answer]
    assert 0.5 < tied / SAMPLES < 0.75  # reference value: 63 %


@pytest.mark.parametrize(
    ("name", "commonest", "by_place", "allowed"),
    [
        # scaled accuracies of the reference notes, at lengths 40 to 256
        ("bucket_sort", 0.0, 0.637, 0.015),
        ("majority_count", 0.15, 0.425, 0.03),
        ("parity", 0.0, 0.0, 0.03),
    ],
)
def test_what_a_predictor_reaches_that_only_counts(name, commonest, by_place, allowed):
    chance = LANGUAGES[name].chance
    found = list(shortcut_accuracies(name, (40, 256), "smallest").values())
    assert found[0] == chance
    assert scaled(found[1], chance) == pytest.approx(commonest, abs=allowed)
    assert scaled(found[2], chance) == pytest.approx(by_place, abs=allowed)


def formal(language, **more):
    values = {"task.name": "formal", "task.formal.language": language, "model.vocab_size": 128}
    values |= {"data.context_length": 40, "data.batch_size": 16}
    more = {f"task.formal.{key}": value for key, value in more.items()}
    return task_of(from_config_dict(default_config_dict(), values | more))


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_mask_covers_the_answer_and_nothing_else(language):
    """Beside the generator's own sample: what is asked is its answer, what is seen its content."""
    task = formal(language)
    batch = task.batch(3, 1, range(16))
    for row in range(16):
        rng = np.random.default_rng([0, 3, 16 + row])
        length = int(rng.integers(max(3, task.language.shortest), 41))
        content, answer = task.language.sample(rng, length, "smallest")
        end = len(content) + len(answer)
        np.testing.assert_array_equal(batch.tokens[row, : len(content)], content[:40])
        assert (batch.tokens[row, len(content) :] == PAD).all()
        asked = batch.targets[row] != UNCOUNTED
        np.testing.assert_array_equal(np.flatnonzero(asked), np.arange(len(content) - 1, end - 1))
        np.testing.assert_array_equal(batch.targets[row, asked], answer)


def test_sets_have_other_samples_of_the_same_kind():
    task = formal("repetition", held_out_samples=16, test_samples=16)
    held_out, test = task.held_out(), task.test_sets()
    assert (list(held_out), list(test)) == (["validation", "validation/short"], ["test"])
    long, final = (next(s.batches(16)) for s in (held_out["validation"], test["test"]))
    short = next(held_out["validation/short"].batches(16))
    assert long.tokens.shape == final.tokens.shape == (16, 256) and short.tokens.shape == (16, 40)
    assert (long.tokens != final.tokens).any()
    assert (short.tokens != task.batch(0, 0, range(16)).tokens).any()


class SeesLength:
    """A model of repetition that is right where the sample is short."""

    def __init__(self, longest):
        self.longest = longest

    def apply(self, variables, tokens, **_):
        content = (tokens != PAD).sum(1, keepdims=True)
        string = content - 1
        places = np.arange(tokens.shape[1])[None] - (content - 1)
        right = np.take_along_axis(np.asarray(tokens), np.clip(places, 0, None), axis=1)
        answers = np.where(content + string <= self.longest, right, 1)
        return 20.0 * (answers[..., None] == np.arange(12)), None


def test_accuracy_is_told_by_length():
    task = formal("repetition", held_out_lengths=(41, 81), length_groups=2, test_samples=64)
    batch = next(task.test_sets()["test"].batches(64))
    sums = task.sums(SeesLength(60), {}, batch)
    found = task.summary({name: (float(a), float(b)) for name, (a, b) in sums.items()})
    assert found["right_at_41_to_60"] == 1 and found["right_at_61_to_81"] == 0
    weights = [float(sums[name][1]) for name in ("right_at_41_to_60", "right_at_61_to_81")]
    assert sum(weights) == float(sums["accuracy"][1])
    assert "right_at" not in task.line(found)
    assert not any("right_at" in name for name in task.sums(SeesLength(60), {}, batch, train=True))


def test_a_report_can_print_what_guesses_reach():
    found = formal("bucket_sort").guesses()
    assert found["chance"] == {"accuracy": 0.1, "scaled_accuracy": 0.0}
    assert max(found.values(), key=lambda guess: guess["accuracy"])["scaled_accuracy"] > 0.6


@pytest.mark.parametrize(
    ("language", "settings", "message"),
    [
        ("parity", {"ties": "first"}, "ties is 'first', but the answers of the language 'parity'"),
        ("majority", {"ties": "largest"}, "ties is 'largest'; it must be one of 'smallest'"),
        ("solve_equation", {"lengths": (2, 4)}, "shortest sample of the language .* has 5 tokens"),
    ],
)
def test_what_a_language_does_not_have_is_refused(language, settings, message):
    with pytest.raises(UserError, match=message):
        formal(language, **settings).check()
