"""Formal languages (2405.04517, section 4.1 and figure 4): a sequence, then its answer.

A sample is `content, answer, PAD...`. The model sees PAD where the answer stands, and only the
answer counts. Inputs and targets are shifted by one, so that the answer is predicted at the last
token of the content: the model can't know that the content ends there, and has to carry the answer
along. Lengths count content and answer.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from xlstm_jax.errors import UserError
from xlstm_jax.models import LanguageModel
from xlstm_jax.settings import setting
from xlstm_jax.tasks.task import HeldOut, Sums, Task, Totals
from xlstm_jax.typing import Array, Int

PAD = 0
UNCOUNTED = -1  # target where nothing is asked
SPLITS = {"train": 0, "validation": 1}

Content = Int[np.ndarray, " N"]


class Language(NamedTuple):
    """One formal language.

    Attributes:
        vocab_size: PAD included.
        chance: accuracy of a guess, as the paper prints it.
        sample: (random generator, length) -> (content, answer), together of that length.
    """

    vocab_size: int
    chance: float
    sample: Callable[[np.random.Generator, int], tuple[Content, Content]]


def parity(rng: np.random.Generator, length: int) -> tuple[Content, Content]:
    """a, b are 1, 2: a if the number of b's is even, else b."""
    content = rng.integers(1, 3, length - 1)
    return content, np.array([1 + np.sum(content == 2) % 2])


LANGUAGES = {"parity": Language(vocab_size=3, chance=1 / 2, sample=parity)}


@dataclasses.dataclass(frozen=True)
class FormalConfig:
    """Settings of the formal languages."""

    language: str = setting("parity", "which one", choices=tuple(LANGUAGES))
    lengths: tuple[int, ...] = setting(
        (3, 40), "shortest and longest sample of training", entries=2, at_least=2
    )
    held_out_lengths: tuple[int, ...] = setting(
        (40, 256), "shortest and longest sample that is evaluated on", entries=2, at_least=2
    )
    held_out_samples: int = setting(2048, "number of these", at_least=1)


class FormalBatch(NamedTuple):
    """Sequences with hidden answers, and the answers; UNCOUNTED where nothing is asked."""

    tokens: Int[Array | np.ndarray, "B T"]
    targets: Int[Array | np.ndarray, "B T"]


class Formal(Task):
    """Answers questions about sequences."""

    settings: FormalConfig
    loss_unit = "nats per answer"

    @property
    def language(self) -> Language:
        """The language that is learned."""
        return LANGUAGES[self.settings.language]

    def model(self, *, stacked: bool = False) -> nn.Module:
        return LanguageModel(self.model_config, stacked)

    def shapes(self, rows: int, time: int | None = None) -> FormalBatch:
        ids = jax.ShapeDtypeStruct((rows, time or self.data.context_length), jnp.int32)
        return FormalBatch(ids, ids)

    def init(self, model: nn.Module, key: jax.Array) -> Any:
        return model.init(key, jnp.zeros((1, 1), jnp.int32))

    def batch(self, seed: int, step: int, rows: Sequence[int]) -> FormalBatch:
        numbers = [step * self.data.batch_size + row for row in rows]
        return self._samples("train", seed, numbers, self.settings.lengths)

    def held_out(self) -> Mapping[str, HeldOut]:
        count, lengths = self.settings.held_out_samples, self.settings.held_out_lengths

        def batches(rows: int) -> Iterator[FormalBatch]:
            for first in range(0, count, rows):
                numbers = range(first, first + rows)
                batch = self._samples("validation", self.data.seed, numbers, lengths)
                beyond = np.array(numbers) >= count
                batch.targets[beyond] = UNCOUNTED
                yield batch

        return {"validation": HeldOut(batches, self._time(lengths))}

    def sums(
        self,
        model: nn.Module,
        variables: Any,
        batch: FormalBatch,
        *,
        train: bool = False,
        rngs: Mapping[str, jax.Array] | None = None,
    ) -> Sums:
        logits, _ = model.apply(variables, batch.tokens, train=train, rngs=rngs)
        asked = batch.targets >= 0
        targets = jnp.where(asked, batch.targets, 0)
        losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)[..., 0]
        right = jnp.argmax(logits[..., : self.language.vocab_size], -1) == targets
        number = jnp.sum(asked, dtype=jnp.float32)
        samples = jnp.any(asked, axis=1)
        all_right = jnp.all(right | ~asked, axis=1) & samples
        return {
            "loss": (jnp.sum(jnp.where(asked, losses, 0)), number),
            "accuracy": (jnp.sum(right & asked, dtype=jnp.float32), number),
            "sequence_accuracy": (
                jnp.sum(all_right, dtype=jnp.float32),
                jnp.sum(samples, dtype=jnp.float32),
            ),
        }

    def summary(self, totals: Totals) -> dict[str, float]:
        found, chance = super().summary(totals), self.language.chance
        return found | {"scaled_accuracy": (found["accuracy"] - chance) / (1 - chance)}

    def check(self) -> None:
        settings, config = self.settings, self.model_config
        for name in ("lengths", "held_out_lengths"):
            shortest, longest = getattr(settings, name)
            if shortest > longest:
                raise UserError(
                    f"config key task.formal.{name} is {shortest, longest}; the second length must "
                    "not be the smaller"
                )
        if self.data.context_length < settings.lengths[1]:
            raise UserError(
                f"config key data.context_length is {self.data.context_length}, less than the "
                f"longest sample of task.formal.lengths {settings.lengths}; use at least "
                f"{settings.lengths[1]}"
            )
        if config.vocab_size < self.language.vocab_size:
            raise UserError(
                f"config key model.vocab_size is {config.vocab_size}; the language "
                f"{settings.language!r} has {self.language.vocab_size} tokens"
            )

    def description(self) -> list[str]:
        settings, language = self.settings, self.language
        return [
            f"{settings.language}: trained on lengths {settings.lengths[0]} to "
            f"{settings.lengths[1]}, evaluated on {settings.held_out_samples:,} samples of "
            f"{settings.held_out_lengths[0]} to {settings.held_out_lengths[1]}; chance "
            f"{language.chance:.3f}"
        ]

    def position(self, step: int) -> dict[str, int]:
        return {"next_sample": step * self.data.batch_size, "seed": self.data.seed}

    def record(self) -> dict[str, dict[str, Any]]:
        settings = self.settings
        lengths = {"train": settings.lengths, "validation": settings.held_out_lengths}
        return {
            name: {"fingerprint": f"{settings.language} {shortest}-{longest} seed {self.data.seed}"}
            for name, (shortest, longest) in lengths.items()
        }

    def _time(self, lengths: tuple[int, ...]) -> int:
        return max(self.data.context_length, lengths[1])

    def _samples(
        self, split: str, seed: int, numbers: Sequence[int], lengths: tuple[int, ...]
    ) -> FormalBatch:
        """The samples of these numbers; each is a function of split, seed and its number alone."""
        time = self.data.context_length if split == "train" else self._time(lengths)
        shape = (len(numbers), time + 1)
        tokens, answers = np.full(shape, PAD, np.int32), np.full(shape, UNCOUNTED, np.int32)
        for row, number in enumerate(numbers):
            rng = np.random.default_rng([SPLITS[split], seed, number])
            length = int(rng.integers(lengths[0], lengths[1] + 1))
            content, answer = self.language.sample(rng, length)
            tokens[row, : len(content)] = content
            answers[row, len(content) : len(content) + len(answer)] = answer
        return FormalBatch(tokens[:, :-1], answers[:, 1:])
