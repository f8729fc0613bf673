"""ListOps: values found again by another way of reading, the original's probabilities; and what all
tasks of classification share.
"""

import collections
import random

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xlstm_jax.config import default_config_dict, from_config_dict, task_of
from xlstm_jax.errors import UserError
from xlstm_jax.models import ModelConfig
from xlstm_jax.models.classifier import Classifier
from xlstm_jax.tasks.classification import UNCOUNTED, Labelled
from xlstm_jax.tasks.listops import OPERATORS, SYMBOLS, TooLong, term


def median(values):
    """Of an even number the mean of the middle two, rounded down."""
    ordered, half = sorted(values), len(values) // 2
    return ordered[half] if len(values) % 2 else (ordered[half - 1] + ordered[half]) // 2


MEANINGS = {"[MIN": min, "[MAX": max, "[SM": lambda values: sum(values) % 10, "[MED": median}


def listops(**overrides):
    values = {"task.name": "listops", "data.context_length": 64, "data.batch_size": 8}
    values |= {"model.blocks": "mlp", "model.num_blocks": 1, "model.dim": 8}
    values |= {"task.listops.lengths": (8, 64), "task.listops.train_samples": 20}
    values |= {f"task.listops.{key}": value for key, value in overrides.items()}
    return task_of(from_config_dict(default_config_dict(), values))


def value(symbols):
    """With a stack, from left to right."""
    stack = [[]]
    for symbol in symbols:
        if symbol in MEANINGS:
            stack.append([symbol])
        elif symbol == "]":
            operator, *arguments = stack.pop()
            assert 2 <= len(arguments) <= 10
            stack[-1].append(MEANINGS[operator](arguments))
        else:
            stack[-1].append(int(symbol))
    ((found,),) = stack
    return found


def test_every_value_is_found_again():
    task = listops()
    for number in range(200):
        tokens, label = task.sample("train", 0, number)
        *symbols, end = (SYMBOLS[token] for token in tokens)
        assert end == "<eos>" and 8 < len(symbols) < 64
        assert value(symbols) == label


def test_terms_have_the_original_generators_probabilities():
    """A quarter of the nodes above the greatest depth are operators; each of them, and each number
    of arguments, equally often.
    """
    rng, nodes, operators, arguments = random.Random(0), 0, collections.Counter(), []
    for _ in range(4000):
        symbols, _ = term(rng, 2, 10, 1000)  # the root alone can be an operator
        nodes += 1
        if symbols[0] in OPERATORS:
            operators[symbols[0]] += 1
            arguments.append(len(symbols) - 2)
            assert all(symbol.isdecimal() for symbol in symbols[1:-1])
    total = operators.total()
    assert total / nodes == pytest.approx(0.25, abs=4 * np.sqrt(0.25 * 0.75 / nodes))
    assert all(
        abs(count / total - 0.25) < 4 * np.sqrt(0.1875 / total) for count in operators.values()
    )
    assert set(arguments) == set(range(2, 11)) and np.mean(arguments) == pytest.approx(6, abs=0.35)


def test_a_term_that_is_too_long_is_given_up():
    with pytest.raises(TooLong):
        for seed in range(100):
            term(random.Random(seed), 10, 10, 5)


def test_batches_splits_and_epochs():
    task = listops(held_out_samples=10)
    batch = task.batch(0, 0, range(8))
    for row in range(8):
        length = batch.lengths[row]
        assert SYMBOLS[batch.inputs[row, length - 1]] == "<eos>"
        assert (batch.inputs[row, length:] == 0).all()
    rows = np.concatenate([task.batch(0, step, range(8)).inputs for step in range(5)])
    np.testing.assert_array_equal(*(np.unique(part, axis=0) for part in (rows[:20], rows[20:])))
    assert (rows[:20] != rows[20:]).any()
    batches = list(task.held_out()["validation"].batches(8))
    assert np.concatenate([b.labels for b in batches])[10:].tolist() == 6 * [UNCOUNTED]
    test = next(task.test_sets()["test"].batches(8))
    assert (test.inputs != batches[0].inputs).any()


class Sure:
    """A model that always says 3."""

    def apply(self, variables, inputs, lengths, **_):
        return 20.0 * jax.nn.one_hot(jnp.full(len(lengths), 3), 10)


def test_accuracy_is_of_what_counts():
    batch = Labelled(np.zeros((4, 2), np.int32), np.ones(4, np.int32), np.array([3, 1, -1, 3]))
    sums = listops().sums(Sure(), {}, batch)
    assert [float(part) for part in sums["accuracy"]] == [2, 3]


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_padding_is_left_out_of_what_the_class_is_told_from(pooling):
    config = ModelConfig(blocks="mlp", num_blocks=1, dim=8, vocab_size=17)
    model = Classifier(config, 10, True, pooling)
    tokens = np.random.default_rng(0).integers(1, 17, (2, 6))

    @jax.jit
    def logits(tokens, lengths):
        variables = nn.unbox(model.init(jax.random.key(0), tokens, lengths))
        return model.apply(variables, tokens, lengths)

    found = logits(tokens, jnp.array([4, 6]))
    other = logits(np.where(np.arange(6) < 4, tokens, 5), jnp.array([4, 6]))
    np.testing.assert_array_equal(found[0], other[0])
    assert (found[1] != other[1]).any()
    last = logits(np.where(np.arange(6) == 5, 3, tokens[::-1]), jnp.array([6, 6]))
    same = logits(np.where(np.arange(6) == 5, 3, tokens), jnp.array([6, 6]))
    # the mixer sees each token alone: only "last" forgets the others
    assert (last == same).all() == (pooling == "last")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"lengths": (9, 10)}, "no term is longer than the first and shorter"),
        ({"lengths": (9, 65)}, "data.context_length is 64; terms .* have up to 65 tokens"),
        ({"pooling": "first"}, "pooling is 'first'; it must be one of 'mean', 'last'"),
    ],
)
def test_what_is_wrong_is_named(overrides, message):
    with pytest.raises(UserError, match=message):
        listops(**overrides).check()


def test_settings_of_a_language_model_are_refused():
    values = {"task.name": "listops", "model.tie_embeddings": True}
    with pytest.raises(UserError, match="tie_embeddings is True, but this task's model reads"):
        from_config_dict(default_config_dict(), values)
