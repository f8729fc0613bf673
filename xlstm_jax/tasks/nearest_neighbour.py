"""Nearest neighbour search (2405.04517, section 4.1 and figure 2, left): a model has to revise what
it has stored.

The first of a sequence's vectors is the one that is searched for. Each that follows has a value,
and the model tells, token by token, the value of the vector that is most similar to the first one
so far. Vectors have two components and length 1, their angles are uniform, values are uniform in
0 to 1; the first vector's value is 0 and means nothing. A token is (vector, value), padding is 0.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from xlstm_jax.errors import UserError
from xlstm_jax.models import SequenceModel
from xlstm_jax.settings import setting
from xlstm_jax.tasks.epochs import sample_of
from xlstm_jax.tasks.task import HeldOut, Sums, Task
from xlstm_jax.typing import Array, Float, Int

SPLITS = {"train": 0, "validation": 1, "test": 2}
UNCOUNTED = -1
BY_REVISIONS = "error_after_"  # mean squared errors where the answer has changed so often
MOST_REVISIONS = 6  # counted one by one; more are counted together
GUESSED = 2_000  # test sequences by which guesses are judged


@dataclasses.dataclass(frozen=True)
class NearestNeighbourConfig:
    """Settings of the search."""

    lengths: tuple[int, ...] = setting(
        (2, 64), "shortest and longest sequence, the first vector included", entries=2, at_least=2
    )
    asked: str = setting(
        "every", 'token after the first, or the "last" alone', choices=("every", "last")
    )
    train_samples: int = setting(8_192, "that training reads again and again", at_least=1)
    held_out_samples: int = setting(8_192, "of validation", at_least=1)
    test_samples: int = setting(8_192, "of the test, which nothing is chosen by", at_least=1)


class Search(NamedTuple):
    """Sequences and their answers, with how often these have changed; UNCOUNTED where nothing is
    asked.
    """

    inputs: Float[Array | np.ndarray, "B T 3"]
    answers: Float[Array | np.ndarray, "B T"]
    revisions: Int[Array | np.ndarray, "B T"]


def sample(
    rng: np.random.Generator, length: int
) -> tuple[Float[np.ndarray, "T 3"], Float[np.ndarray, " T-1"], Int[np.ndarray, " T-1"]]:
    """(tokens, answers after each but the first, revisions up to there) of one sequence."""
    angles = rng.uniform(0, 2 * np.pi, length)
    values = rng.uniform(0, 1, length)
    values[0] = 0
    similarity = np.cos(angles[1:] - angles[0])
    new = similarity >= np.maximum.accumulate(similarity)
    best = np.maximum.accumulate(np.where(new, np.arange(1, length), 0))
    tokens = np.stack([np.cos(angles), np.sin(angles), values], axis=1)
    return tokens, values[best], np.cumsum(new) - 1


class NearestNeighbour(Task):
    """Tells the value of the nearest vector so far."""

    settings: NearestNeighbourConfig
    loss_unit = "mean squared error"

    def model(self, *, stacked: bool = False) -> nn.Module:
        return SequenceModel(self.model_config, outputs=1, stacked=stacked)

    def shapes(self, rows: int, time: int | None = None) -> Search:
        shape = (rows, time or self.data.context_length)
        return Search(
            jax.ShapeDtypeStruct((*shape, 3), jnp.float32),
            jax.ShapeDtypeStruct(shape, jnp.float32),
            jax.ShapeDtypeStruct(shape, jnp.int32),
        )

    def init(self, model: nn.Module, key: jax.Array) -> Any:
        return model.init(key, jnp.zeros((1, 1, 3)))

    def batch(self, seed: int, step: int, rows: Sequence[int]) -> Search:
        """The training samples in an order of its own in each epoch."""
        count, first = self.settings.train_samples, step * self.data.batch_size
        numbers = [sample_of(seed, first + row, count) for row in rows]
        return self._samples("train", seed, numbers)

    def held_out(self) -> Mapping[str, HeldOut]:
        return {"validation": self._set("validation", self.settings.held_out_samples)}

    def test_sets(self) -> Mapping[str, HeldOut]:
        return {"test": self._set("test", self.settings.test_samples)}

    def guesses(self) -> Mapping[str, Mapping[str, float]]:
        batch = self._samples("test", self.data.seed, range(GUESSED))
        asked, values = batch.revisions >= 0, batch.inputs[..., 2]
        number = np.maximum(np.arange(values.shape[1]), 1)
        predictions = {
            "0.5": np.full(values.shape, 0.5),
            "the first neighbour's value": np.broadcast_to(values[:, 1:2], values.shape),
            "the mean of the values so far": np.cumsum(values, axis=1) / number,
        }
        return {
            name: {"loss": float(np.mean((prediction - batch.answers)[asked] ** 2))}
            for name, prediction in predictions.items()
        }

    def sums(
        self,
        model: nn.Module,
        variables: Any,
        batch: Search,
        *,
        train: bool = False,
        rngs: Mapping[str, jax.Array] | None = None,
    ) -> Sums:
        y, _ = model.apply(variables, batch.inputs, train=train, rngs=rngs)
        asked = batch.revisions >= 0
        errors = jnp.where(asked, jnp.square(y[..., 0] - batch.answers), 0)

        def over(which: Array) -> tuple[Array, Array]:
            return jnp.sum(errors * which), jnp.sum(which, dtype=jnp.float32)

        places = jnp.arange(asked.shape[1])
        last = asked & (places == jnp.max(jnp.where(asked, places, -1), axis=1, keepdims=True))
        found = {"loss": over(asked), "error_at_the_end": over(last)}
        if train:
            return found
        for count in range(MOST_REVISIONS):
            found[f"{BY_REVISIONS}{count}"] = over(batch.revisions == count)
        return found | {
            f"{BY_REVISIONS}{MOST_REVISIONS}_or_more": over(batch.revisions >= MOST_REVISIONS)
        }

    def line(self, summary: Mapping[str, float]) -> str:
        shown = {name: x for name, x in summary.items() if not name.startswith(BY_REVISIONS)}
        return super().line(shown)

    def check(self) -> None:
        shortest, longest = self.settings.lengths
        if shortest > longest:
            raise UserError(
                f"config key task.nearest_neighbour.lengths is {shortest, longest}; the second "
                "length must not be the smaller"
            )
        if self.data.context_length < longest:
            raise UserError(
                f"config key data.context_length is {self.data.context_length}, less than the "
                f"longest sequence of task.nearest_neighbour.lengths {self.settings.lengths}; use "
                f"at least {longest}"
            )

    def description(self) -> list[str]:
        settings = self.settings
        return [
            f"nearest neighbours in sequences of {settings.lengths[0]} to {settings.lengths[1]} "
            f"vectors: trained on {settings.train_samples:,}, evaluated on "
            f"{settings.held_out_samples:,}"
        ]

    def position(self, step: int) -> dict[str, int]:
        return {"next_sample": step * self.data.batch_size, "seed": self.data.seed}

    def record(self) -> dict[str, dict[str, Any]]:
        settings = self.settings
        what = f"lengths {settings.lengths[0]}-{settings.lengths[1]} seed {self.data.seed}"
        counts = {"train": settings.train_samples, "validation": settings.held_out_samples}
        return {name: {"fingerprint": f"{what}, {count}"} for name, count in counts.items()}

    def _set(self, split: str, count: int) -> HeldOut:
        def batches(rows: int) -> Iterator[Search]:
            for first in range(0, count, rows):
                numbers = range(first, first + rows)
                batch = self._samples(split, self.data.seed, numbers)
                batch.revisions[np.array(numbers) >= count] = UNCOUNTED
                yield batch

        return HeldOut(batches, self.data.context_length)

    def _samples(self, split: str, seed: int, numbers: Sequence[int]) -> Search:
        """The samples of these numbers; each is a function of split, seed and its number alone."""
        shape = (len(numbers), self.data.context_length)
        batch = Search(
            np.zeros((*shape, 3), np.float32),
            np.zeros(shape, np.float32),
            np.full(shape, UNCOUNTED, np.int32),
        )
        shortest, longest = self.settings.lengths
        for row, number in enumerate(numbers):
            rng = np.random.default_rng([SPLITS[split], seed, number])
            length = int(rng.integers(shortest, longest + 1))
            tokens, answers, revisions = sample(rng, length)
            batch.inputs[row, :length] = tokens
            batch.answers[row, 1:length] = answers
            first = 1 if self.settings.asked == "every" else length - 1
            batch.revisions[row, first:length] = revisions[first - 1 :]
        return batch
