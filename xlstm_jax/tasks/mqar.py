"""Multi-query associative recall (2405.04517, section 4.1, figures 5 and 13 to 16; after zoology,
2312.04927): keys with their values, and later the keys again, each of which asks for its value.

    k1 v1 k2 v2 ... kK vK  0 0 k2 0 k1 0 0 0 ...

Keys are K of the tokens 1 .. V/2 - 1, values K of V/2 .. V - 1. Behind the pairs there are
(T - 2K)/2 slots of two tokens; each key stands at the beginning of a slot of its own, slot i drawn
with a probability in proportion to i^(power - 1): early ones are far likelier. The answer is the
value of the key at the key's own place: nothing is shifted, and the value is not written behind it.
All other tokens are the filler.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from xlstm_jax.errors import UserError
from xlstm_jax.models import LanguageModel
from xlstm_jax.progress import counted
from xlstm_jax.settings import setting
from xlstm_jax.tasks.task import HeldOut, Sums, Task
from xlstm_jax.typing import Array, Int

FILLER = 0
UNCOUNTED = -1  # target where nothing is asked
SPLITS = {"train": 0, "validation": 1, "test": 2}


@dataclasses.dataclass(frozen=True)
class MQARConfig:
    """Settings of the recall."""

    pairs: int = setting(4, "K, keys with their values", at_least=1)
    power: float = setting(0.01, "of the places of the queries; 1: all are equally likely", above=0)
    filler: str = setting(
        "zero",
        'between the queries: token 0, or "random" tokens, keys and values among them',
        choices=("zero", "random"),
    )
    train_samples: int = setting(100_000, "that training reads again and again", at_least=1)
    held_out_samples: int = setting(3_000, "of validation", at_least=1)
    test_samples: int = setting(3_000, "of each test, which nothing is chosen by", at_least=1)
    test_lengths: tuple[int, ...] | None = setting(
        None, "more context lengths for tests of what was learned at one", at_least=1
    )


class Recall(NamedTuple):
    """Sequences and the values that are asked for; UNCOUNTED where nothing is."""

    tokens: Int[Array | np.ndarray, "B T"]
    targets: Int[Array | np.ndarray, "B T"]


def sample(
    rng: np.random.Generator,
    length: int,
    pairs: int,
    vocab_size: int,
    power: float = 0.01,
    filler: str = "zero",
) -> tuple[Int[np.ndarray, " T"], Int[np.ndarray, " K"], Int[np.ndarray, " K"]]:
    """(tokens, places of the queries in the order of the pairs, answers) of one sequence."""
    half = vocab_size // 2
    keys = 1 + rng.choice(half - 1, pairs, replace=False)
    values = half + rng.choice(vocab_size - half, pairs, replace=False)
    slots = (length - 2 * pairs) // 2
    weights = np.arange(1, slots + 1) ** (power - 1)
    chosen = rng.choice(slots, pairs, replace=False, p=weights / weights.sum())
    queries = 2 * pairs + 2 * chosen
    if filler == "random":
        tokens = rng.integers(0, vocab_size, length)
    else:
        tokens = np.full(length, FILLER)
    tokens[0 : 2 * pairs : 2], tokens[1 : 2 * pairs : 2], tokens[queries] = keys, values, keys
    return tokens, queries, values


def infeasible(length: int, pairs: int, vocab_size: int) -> str | None:
    """Why there are no such sequences, as the end of a sentence; None where there are."""
    if length % 2:
        return f"the length {length} is odd, but keys and values come in pairs"
    if 4 * pairs > length:
        return (
            f"{pairs} pairs and a slot of two tokens for each of their queries need "
            f"{4 * pairs} tokens"
        )
    if vocab_size < length:  # as zoology; the paper has 8192 of both in its third experiment
        return f"a vocabulary of {vocab_size} is smaller than the length"
    return None


class MQAR(Task):
    """Recalls values by their keys."""

    settings: MQARConfig
    loss_unit = "nats per query"

    def model(self, *, stacked: bool = False) -> nn.Module:
        return LanguageModel(self.model_config, stacked)

    def shapes(self, rows: int, time: int | None = None) -> Recall:
        ids = jax.ShapeDtypeStruct((rows, time or self.data.context_length), jnp.int32)
        return Recall(ids, ids)

    def init(self, model: nn.Module, key: jax.Array) -> Any:
        return model.init(key, jnp.zeros((1, 1), jnp.int32))

    def batch(self, seed: int, step: int, rows: Sequence[int]) -> Recall:
        """The training samples in the same order in each epoch, as in zoology."""
        numbers = [
            (step * self.data.batch_size + row) % self.settings.train_samples for row in rows
        ]
        return self._samples("train", seed, numbers, self.data.context_length)

    def held_out(self) -> Mapping[str, HeldOut]:
        length, count = self.data.context_length, self.settings.held_out_samples
        return {"validation": self._set("validation", count, length)}

    def test_sets(self) -> Mapping[str, HeldOut]:
        count = self.settings.test_samples
        sets = {"test": self._set("test", count, self.data.context_length)}
        for length in self.settings.test_lengths or ():
            sets[f"test/{length}"] = self._set("test", count, length)
        return sets

    def guesses(self) -> Mapping[str, Mapping[str, float]]:
        vocab_size = self.model_config.vocab_size
        return {
            "any value of the vocabulary": {"accuracy": 1 / (vocab_size - vocab_size // 2)},
            "any value of the sequence": {"accuracy": 1 / self.settings.pairs},
        }

    def sums(
        self,
        model: nn.Module,
        variables: Any,
        batch: Recall,
        *,
        train: bool = False,
        rngs: Mapping[str, jax.Array] | None = None,
    ) -> Sums:
        """Logits are computed at the queries alone: of 64 tokens with 4 pairs that is a 16th of the
        vocabulary projection, which is most of a small model's work.
        """
        asked, queries = jax.lax.top_k((batch.targets >= 0).astype(jnp.int32), self.settings.pairs)
        answers = jnp.take_along_axis(batch.targets, queries, axis=1)

        def logits_at_queries(module: nn.Module) -> Array:
            y, _ = module.hidden(batch.tokens, train=train)
            y = jnp.take_along_axis(y, queries[..., None], axis=1)
            return module.logits(y, module.head_kernel())

        logits = model.apply(variables, rngs=rngs, method=logits_at_queries)
        log_likelihoods = jnp.take_along_axis(
            jax.nn.log_softmax(logits), jnp.maximum(answers, 0)[..., None], axis=-1
        )[..., 0]
        right = jnp.argmax(logits, -1) == answers
        number = jnp.sum(asked, dtype=jnp.float32)
        return {
            "loss": (-jnp.sum(log_likelihoods * asked), number),
            "accuracy": (jnp.sum(right * asked, dtype=jnp.float32), number),
            "sequence_accuracy": (
                jnp.sum(jnp.all(right, axis=1), dtype=jnp.float32),
                jnp.sum(asked[:, 0], dtype=jnp.float32),
            ),
        }

    def check(self) -> None:
        settings, vocab_size = self.settings, self.model_config.vocab_size
        lengths = {"data.context_length": (self.data.context_length,)}
        lengths |= {"task.mqar.test_lengths": settings.test_lengths or ()}
        for key, given in lengths.items():
            for length in given:
                if why := infeasible(length, settings.pairs, vocab_size):
                    raise UserError(
                        f"config key {key} has {length} with task.mqar.pairs {settings.pairs} and "
                        f"model.vocab_size {vocab_size}: {why}"
                    )
        if vocab_size // 2 - 1 < settings.pairs:
            raise UserError(
                f"config key task.mqar.pairs is {settings.pairs}; model.vocab_size {vocab_size} "
                f"has {vocab_size // 2 - 1} keys"
            )

    def description(self) -> list[str]:
        settings = self.settings
        return [
            f"recall of {counted(settings.pairs, 'pair')} in {self.data.context_length} tokens: "
            f"trained on {settings.train_samples:,} sequences, "
            f"evaluated on {settings.held_out_samples:,}"
        ]

    def position(self, step: int) -> dict[str, int]:
        return {"next_sample": step * self.data.batch_size, "seed": self.data.seed}

    def record(self) -> dict[str, dict[str, Any]]:
        settings = self.settings
        what = (
            f"{settings.pairs} pairs in {self.data.context_length} of "
            f"{self.model_config.vocab_size} tokens, power {settings.power}, "
            f"filler {settings.filler}, seed {self.data.seed}"
        )
        return {
            "train": {"fingerprint": f"{what}, {settings.train_samples} samples"},
            "validation": {"fingerprint": f"{what}, {settings.held_out_samples} samples"},
        }

    def _set(self, split: str, count: int, length: int) -> HeldOut:
        def batches(rows: int) -> Iterator[Recall]:
            for first in range(0, count, rows):
                numbers = range(first, first + rows)
                batch = self._samples(split, self.data.seed, numbers, length)
                batch.targets[np.array(numbers) >= count] = UNCOUNTED
                yield batch

        return HeldOut(batches, length)

    def _samples(self, split: str, seed: int, numbers: Sequence[int], length: int) -> Recall:
        """The samples of these numbers; each is a function of split, seed and its number alone."""
        settings, vocab_size = self.settings, self.model_config.vocab_size
        shape = (len(numbers), length)
        tokens, targets = np.empty(shape, np.int32), np.full(shape, UNCOUNTED, np.int32)
        for row, number in enumerate(numbers):
            rng = np.random.default_rng([SPLITS[split], seed, number])
            tokens[row], queries, answers = sample(
                rng, length, settings.pairs, vocab_size, settings.power, settings.filler
            )
            targets[row, queries] = answers
        return Recall(tokens, targets)
