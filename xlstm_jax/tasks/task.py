"""What a task is: samples, a model with its own input and head, a loss and other means.

The trainer and the evaluator know nothing else of what is learned. They ask for batches, compute
`sums` of them, add these over micro-batches, devices and batches, and divide once.
"""

import abc
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import grain
import jax
import numpy as np
from jaxtyping import Array, Float

from xlstm_jax.data.config import DataConfig
from xlstm_jax.data.tokenizer import Tokenizer
from xlstm_jax.models import ModelConfig
from xlstm_jax.tasks.config import EvalConfig

# A batch is a tuple of arrays whose first axis is the row and whose second, where there is one, the
# time: NumPy arrays from the host, or arrays on devices.
Batch = Any
# name -> (sum, weight): means that are not divided yet. "loss" is among them; the gradient is that
# of its sum over its weight. Weights do not depend on the parameters.
Sums = dict[str, tuple[Float[Array, ""], Float[Array, ""]]]
Totals = Mapping[str, tuple[float, float]]  # the same, added up on the host

READ_AHEAD = 8  # batches


class HeldOut(NamedTuple):
    """Data that a model is evaluated on.

    Attributes:
        batches: number of rows -> all batches, in order; the last is filled up with what has no
            weight.
        time: length of the rows.
        constants: what is known of the whole data and joins the totals, as the bytes of a text.
    """

    batches: Callable[[int], Iterator[Batch]]
    time: int
    constants: Totals = {}


class Task(abc.ABC):
    """What is learned. Made from a configuration without touching data; `check` opens them.

    Attributes:
        settings: the task's own section.
        model_config, data, evaluation: the sections `model`, `data` and `eval`.
        loss_unit: of the loss, for its figure; None where it has no name.
        writes_text: its model goes on with text of `data.tokenizer`: it can generate, and be
            evaluated on any text.
    """

    loss_unit: str | None = None
    writes_text: bool = False

    def __init__(
        self, settings: Any, model: ModelConfig, data: DataConfig, evaluation: EvalConfig
    ) -> None:
        self.settings, self.model_config = settings, model
        self.data, self.evaluation = data, evaluation

    @abc.abstractmethod
    def model(self, *, stacked: bool = False) -> nn.Module:
        """The module that is trained; `stacked` as in `Backbone`.

        It has the method `flops(context_length)`: forward FLOPs per token, from which the share of
        the chip's peak follows.

        Raises:
            UserError: a setting of `model` is set that the module would not read.
        """

    @abc.abstractmethod
    def shapes(self, rows: int, time: int | None = None) -> Batch:
        """A batch as `jax.ShapeDtypeStruct`s; the time is that of training unless it is given."""

    @abc.abstractmethod
    def init(self, model: nn.Module, key: jax.Array) -> Any:
        """Fresh variables of the model, in flax's boxes."""

    @abc.abstractmethod
    def batch(self, seed: int, step: int, rows: Sequence[int]) -> Batch:
        """These rows of the training batch of a step, counted from 0; a pure function, so that a
        run can go on anywhere and hosts can read different rows.
        """

    @abc.abstractmethod
    def held_out(self) -> Mapping[str, HeldOut]:
        """The sets that are evaluated on by name, "validation" first."""

    def test_sets(self) -> Mapping[str, HeldOut]:
        """The sets that results are reported on, which nothing is chosen by: neither a checkpoint
        nor a learning rate. {} where there are none.
        """
        return {}

    def guesses(self) -> Mapping[str, Mapping[str, float]]:
        """What predictors reach on the test sets that have not learned the task, by the name of the
        predictor: numbers of the summary, for reports.
        """
        return {}

    @abc.abstractmethod
    def sums(
        self,
        model: nn.Module,
        variables: Any,
        batch: Batch,
        *,
        train: bool = False,
        rngs: Mapping[str, jax.Array] | None = None,
    ) -> Sums:
        """What a batch adds to each mean."""

    def summary(self, totals: Totals) -> dict[str, float]:
        """The numbers that people read, from the totals of an evaluation."""
        return {name: total / weight for name, (total, weight) in totals.items() if weight}

    def line(self, summary: Mapping[str, float]) -> str:
        """The summary in one line, the loss first: what comes from the device is sorted by name."""
        names = sorted(summary, key=lambda name: name != "loss")
        return ", ".join(f"{name.replace('_', ' ')} {summary[name]:.4f}" for name in names)

    def batches(self, start: int, rows: Sequence[int]) -> Iterator[Batch]:
        """These rows of the batches from step `start` on, made ahead by one thread of this process:
        a task that also reads `data.workers` has its own form of this.
        """
        steps = grain.MapDataset.range(start, np.iinfo(np.int32).max)
        batches = steps.map(lambda step: self.batch(self.data.seed, step, rows))
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=READ_AHEAD)
        return iter(batches.to_iter_dataset(options))

    def closing_line(self, summary: Mapping[str, float]) -> str:
        """The summary at the end of training, beside what it may be compared with."""
        return self.line(summary)

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer of a task whose model writes text; None where it does not."""
        return None

    def check(self) -> None:  # noqa: B027  (a task may have nothing to check)
        """Opens what is needed and raises `UserError` for what is missing or can't be used."""

    def description(self) -> list[str]:
        """Lines for the terminal on what is learned."""
        return []

    def position(self, step: int) -> dict[str, int]:
        """The place in the data after a step, as numbers for a checkpoint; other data give other
        numbers.
        """
        return {"step": step}

    def record(self) -> dict[str, dict[str, Any]]:
        """What the data are, by set, for data.json; of each a "fingerprint" that other data
        change.
        """
        return {}
