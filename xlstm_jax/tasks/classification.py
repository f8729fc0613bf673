"""What tasks share that ask for the class of a whole sequence: batches, loss, accuracy, splits."""

import abc
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from xlstm_jax.models.classifier import Classifier
from xlstm_jax.tasks.epochs import sample_of
from xlstm_jax.tasks.task import HeldOut, Sums, Task
from xlstm_jax.typing import Array, Float, Int

UNCOUNTED = -1  # label of a row that fills up a batch


class Plan(NamedTuple):
    """What is classified.

    Attributes:
        classes: how many there are.
        features: size of the input's vectors; None where the input has tokens.
        pooling: of the model, see `Classifier`.
        pairs: whether the classes are of pairs of sequences of tokens.
    """

    classes: int
    features: int | None
    pooling: str
    pairs: bool = False


class Labelled(NamedTuple):
    """Sequences, or pairs of sequences, with their class; UNCOUNTED where a row does not count."""

    inputs: (
        Int[Array | np.ndarray, "B T"]
        | Float[Array | np.ndarray, "B T X"]
        | Int[Array | np.ndarray, "B T 2"]
    )
    lengths: Int[Array | np.ndarray, " B"] | Int[Array | np.ndarray, "B 2"]
    labels: Int[Array | np.ndarray, " B"]


class Classification(Task):
    """Tells the class of sequences that `sample` gives by number."""

    loss_unit = "nats per sequence"

    @property
    @abc.abstractmethod
    def plan(self) -> Plan:
        """What is classified; no data are touched."""

    @abc.abstractmethod
    def count(self, split: str) -> int:
        """Number of samples of "train", "validation" or "test"."""

    @abc.abstractmethod
    def sample(self, split: str, seed: int, number: int) -> tuple[Any, int]:
        """(sequence `[T]` of tokens or `[T X]`, at most as long as the context, or a pair of them;
        its class): a function of its arguments alone. Numbers may be beyond the split's end, where
        a batch is filled up with what does not count.
        """

    def model(self, *, stacked: bool = False) -> nn.Module:
        plan = self.plan
        return Classifier(
            self.model_config,
            plan.classes,
            plan.features is None,
            plan.pooling,
            plan.pairs,
            stacked,
        )

    def shapes(self, rows: int, time: int | None = None) -> Labelled:
        shape, plan = (rows, time or self.data.context_length), self.plan
        number = jax.ShapeDtypeStruct((rows,), jnp.int32)
        if plan.pairs:
            lengths = jax.ShapeDtypeStruct((rows, 2), jnp.int32)
            return Labelled(jax.ShapeDtypeStruct((*shape, 2), jnp.int32), lengths, number)
        if plan.features is None:
            return Labelled(jax.ShapeDtypeStruct(shape, jnp.int32), number, number)
        return Labelled(jax.ShapeDtypeStruct((*shape, plan.features), jnp.float32), number, number)

    def init(self, model: nn.Module, key: jax.Array) -> Any:
        inputs, lengths, _ = self.shapes(1, 1)
        one = jnp.ones(lengths.shape, lengths.dtype)
        return model.init(key, jnp.zeros(inputs.shape, inputs.dtype), one)

    def batch(self, seed: int, step: int, rows: Sequence[int]) -> Labelled:
        count, first = self.count("train"), step * self.data.batch_size
        return self._samples("train", seed, [sample_of(seed, first + row, count) for row in rows])

    def held_out(self) -> Mapping[str, HeldOut]:
        return {"validation": self._set("validation")}

    def test_sets(self) -> Mapping[str, HeldOut]:
        return {"test": self._set("test")}

    def guesses(self) -> Mapping[str, Mapping[str, float]]:
        return {"chance": {"accuracy": 1 / self.plan.classes}}

    def sums(
        self,
        model: nn.Module,
        variables: Any,
        batch: Labelled,
        *,
        train: bool = False,
        rngs: Mapping[str, jax.Array] | None = None,
    ) -> Sums:
        logits = model.apply(variables, batch.inputs, batch.lengths, train=train, rngs=rngs)
        counts = batch.labels >= 0
        labels = jnp.where(counts, batch.labels, 0)
        losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)[:, 0]
        right = jnp.argmax(logits, axis=1) == labels
        number = jnp.sum(counts, dtype=jnp.float32)
        return {
            "loss": (jnp.sum(jnp.where(counts, losses, 0)), number),
            "accuracy": (jnp.sum(right & counts, dtype=jnp.float32), number),
        }

    def position(self, step: int) -> dict[str, int]:
        return {"next_sample": step * self.data.batch_size, "seed": self.data.seed}

    def _set(self, split: str) -> HeldOut:
        count = self.count(split)

        def batches(rows: int) -> Iterator[Labelled]:
            for first in range(0, count, rows):
                numbers = range(first, first + rows)
                batch = self._samples(split, self.data.seed, numbers)
                batch.labels[np.array(numbers) >= count] = UNCOUNTED
                yield batch

        return HeldOut(batches, self.data.context_length)

    def _samples(self, split: str, seed: int, numbers: Sequence[int]) -> Labelled:
        inputs, *rest = self.shapes(len(numbers))
        batch = Labelled(
            np.zeros(inputs.shape, inputs.dtype), *(np.zeros(s.shape, s.dtype) for s in rest)
        )
        for row, number in enumerate(numbers):
            found, batch.labels[row] = self.sample(split, seed, number)
            if self.plan.pairs:
                for which, sequence in enumerate(found):
                    batch.inputs[row, : len(sequence), which] = sequence
                    batch.lengths[row, which] = len(sequence)
            else:
                batch.inputs[row, : len(found)], batch.lengths[row] = found, len(found)
        return batch
