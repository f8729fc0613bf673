"""Multi-query associative recall: sequences as zoology's generator has them, the label at the
query's own place, cells that can't be refused by name.
"""

import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xlstm_jax import config_files
from xlstm_jax.config import default_config_dict, from_config_dict, load, task_of
from xlstm_jax.errors import UserError
from xlstm_jax.tasks.mqar import UNCOUNTED, sample

CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "mqar.py"


def mqar(**overrides):
    values = {"task.name": "mqar", "model.vocab_size": 100, "data.context_length": 32}
    values |= {"data.batch_size": 8, "model.dim": 16, "model.mlstm.num_heads": 2}
    values |= {"model.num_blocks": 1}
    values |= {key.replace("__", "."): value for key, value in overrides.items()}
    return task_of(from_config_dict(default_config_dict(), values))


def read(tokens, pairs):
    """key -> value of the pairs, as a person would read them."""
    return {int(tokens[2 * i]): int(tokens[2 * i + 1]) for i in range(pairs)}


@pytest.mark.parametrize(("length", "pairs"), [(64, 4), (32, 8), (128, 8)])
def test_a_query_asks_for_the_value_of_its_key_at_its_own_place(length, pairs):
    for number in range(100):
        rng = np.random.default_rng(number)
        tokens, queries, answers = sample(rng, length, pairs, 8192)
        memory = read(tokens, pairs)
        assert len(memory) == pairs and 0 not in memory  # distinct keys
        assert all(0 < key < 4096 <= value < 8192 for key, value in memory.items())
        assert len(set(memory.values())) == pairs
        assert sorted(tokens[queries]) == sorted(memory)  # each key is asked for once
        assert [memory[int(key)] for key in tokens[queries]] == list(answers)
        assert (queries >= 2 * pairs).all() and (queries % 2 == 0).all()
        rest = np.delete(tokens, [*range(2 * pairs), *queries])
        assert (rest == 0).all()  # the value is not written behind its query


def test_queries_come_early_as_the_power_law_says():
    """Of one query alone the slot has exactly the law's probabilities."""
    slots, draws = 15, 4000
    counts = np.zeros(slots)
    for number in range(draws):
        _, queries, _ = sample(np.random.default_rng(number), 2 + 2 * slots, 1, 64)
        counts[(queries[0] - 2) // 2] += 1
    law = np.arange(1, slots + 1) ** -0.99
    law /= law.sum()
    assert (abs(counts / draws - law) < 4 * np.sqrt(law * (1 - law) / draws)).all()
    even = [sample(np.random.default_rng(n), 32, 1, 64, power=1.0)[1][0] for n in range(600)]
    assert abs(np.mean(even) - 16) < 4 * 9 / np.sqrt(600)


def test_a_random_filler_is_the_tasks_own_and_leaves_pairs_and_queries_alone():
    rngs = [np.random.default_rng(5) for _ in range(3)]
    plain = sample(rngs[0], 64, 4, 8192)
    one, other = (sample(rng, 64, 4, 8192, filler="random") for rng in rngs[1:])
    np.testing.assert_array_equal(one[0], other[0])
    kept = [*range(8), *plain[1]]
    np.testing.assert_array_equal(one[0][kept], plain[0][kept])
    rest = np.delete(one[0], kept)
    assert len(set(rest)) > 40 and rest.max() > 4096 > rest.min()


def test_training_reads_its_samples_again_in_the_same_order():
    task = mqar(task__mqar__train_samples=20)
    batches = [task.batch(0, step, range(8)) for step in range(6)]
    tokens = np.concatenate([batch.tokens for batch in batches])
    np.testing.assert_array_equal(tokens[20:40], tokens[:20])
    assert len(np.unique(tokens, axis=0)) == 20
    np.testing.assert_array_equal(task.batch(0, 0, range(2, 4)).tokens, tokens[2:4])


def test_validation_and_test_have_samples_of_their_own_each_once():
    task = mqar(task__mqar__held_out_samples=10, task__mqar__test_lengths=(64,))
    validation, tests = task.held_out()["validation"], task.test_sets()
    assert list(tests) == ["test", "test/64"] and tests["test/64"].time == 64
    batches = list(validation.batches(8))
    counted = [(batch.targets != UNCOUNTED).sum(1) for batch in batches]
    assert np.concatenate(counted).tolist() == 10 * [4] + 6 * [0]
    first = next(tests["test"].batches(8))
    train = task.batch(0, 0, range(8))
    assert not any(
        (a.tokens == b.tokens).all()
        for a, b in ((first, train), (first, batches[0]), (train, batches[0]))
    )
    long = next(tests["test/64"].batches(8))
    assert long.tokens.shape == (8, 64)


class Remembers(nn.Module):
    """Reads pairs and answers queries; of some sequences it forgets the first pair."""

    pairs: int

    def hidden(self, tokens, train=False):
        keys, values = tokens[:, 0 : 2 * self.pairs : 2], tokens[:, 1 : 2 * self.pairs : 2]
        keys = jnp.asarray(keys).at[::2, 0].set(0)
        is_key = tokens[..., None] == keys[:, None]
        found = jnp.sum(jnp.where(is_key, values[:, None], 0), axis=-1)
        return 30.0 * jax.nn.one_hot(found, 100), None

    def head_kernel(self):
        return None

    def logits(self, y, kernel):
        return y


def test_accuracy_is_per_query_and_per_sequence():
    task = mqar()
    sums = task.sums(Remembers(4), {}, task.batch(0, 0, range(8)))
    found = task.summary({name: (float(a), float(b)) for name, (a, b) in sums.items()})
    assert found["accuracy"] == pytest.approx(1 - 4 / 32)  # 4 of 8 sequences lack 1 of 4
    assert found["sequence_accuracy"] == 0.5
    assert float(sums["loss"][1]) == 32


class Bigram(nn.Module):
    """Has a language model's parts."""

    def setup(self):
        self.embedding = nn.Embed(100, 8)
        self.head = self.param("head", nn.initializers.normal(0.3), (8, 100))

    def __call__(self, tokens):
        return self.logits(self.hidden(tokens)[0], self.head_kernel())

    def hidden(self, tokens, train=False):
        return self.embedding(tokens), None

    def head_kernel(self):
        return self.head

    @nn.nowrap
    def logits(self, y, kernel):
        return y @ kernel


def test_the_loss_at_the_queries_is_that_of_all_logits():
    task, model = mqar(), Bigram()
    batch = task.batch(0, 0, range(4))
    variables = model.init(jax.random.key(0), batch.tokens)
    total, number = task.sums(model, variables, batch)["loss"]
    logits = np.asarray(model.apply(variables, batch.tokens), np.float64)
    rows, places = np.nonzero(batch.targets >= 0)
    logits = logits[rows, places]
    losses = np.log(np.exp(logits).sum(1)) - logits[range(16), batch.targets[rows, places]]
    assert float(number) == 16
    assert float(total) == pytest.approx(losses.sum(), rel=1e-5)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"data__context_length": 14}, "data.context_length has 14 .* need 16 tokens"),
        ({"data__context_length": 33}, "has 33 .*is odd"),
        ({"task__mqar__test_lengths": (64, 102)}, "test_lengths has 102 .* is smaller than the l"),
        ({"task__mqar__filler": "one"}, "filler is 'one'; it must be one of 'zero', 'random'"),
    ],
)
def test_what_can_not_be_is_refused_by_name(overrides, message):
    with pytest.raises(UserError, match=message):
        mqar(**overrides).check()


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ("756x256-llama", "'756x256-llama' can't be: 256 pairs and .* need 1024 tokens"),
        ("64x5-llama", "'64x5' is no TASK; there are 64x4, "),
        ("64x4-lama", "'lama' is no MODEL; there are xlstm_1_1, "),
        ("64x4-llama-large", "'large' is no PRESET; there are small, paper"),
    ],
)
def test_a_variant_that_does_not_exist_is_refused(variant, message):
    with pytest.raises(UserError, match=message):
        load(f"{CONFIG}:{variant}")


def test_every_cell_of_the_paper_can_be_trained_and_tested_at_its_lengths():
    """Also the third experiment: learned at 2048 tokens, asked at 4096, 6144 and 8192."""
    for name, (length, _) in experiment_cells().items():
        task = task_of(load(f"{CONFIG}:{name}-llama-paper"))
        task.check()
        expected = {"test": length}
        if length == 2048:
            expected |= {f"test/{longer}": longer for longer in (4096, 6144, 8192)}
        assert {name: found.time for name, found in task.test_sets().items()} == expected
    batch = next(task.test_sets()["test/8192"].batches(1))
    assert batch.tokens.shape == (1, 8192) and (batch.targets >= 0).sum() == 256


def experiment_cells():
    """The cells of the paper's experiments, and their lengths and pairs."""
    cells = config_files.experiment(str(CONFIG), "paper").cells
    return {cell: tuple(map(int, cell.split("x"))) for cell in cells}


def test_the_papers_steps_are_64_epochs():
    """Reference values, by context length."""
    for variant, steps in {"64x4": 12_544, "256x16": 25_024, "2048x48": 266_688}.items():
        config = load(f"{CONFIG}:{variant}-llama-paper")
        assert config.train.steps == steps
        assert config.optimizer.warmup_steps == steps // 10
