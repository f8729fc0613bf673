"""Formal languages (2405.04517, section 4.1, figures 4 and 12): a sequence, then its answer.

A sample is `content, answer, PAD...`. The model sees PAD where the answer stands, and only the
answer counts. Inputs and targets are shifted by one, so that the answer's first token is predicted
at the last token of the content. Without a token that announces it (ACT or "=") the model can't
know that the content ends there, and has to carry the answer along. Lengths count content and
answer. The languages are in `formal_languages`.
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
from xlstm_jax.settings import refuse_ignored, setting
from xlstm_jax.tasks.formal_languages import LANGUAGES, PAD, Language
from xlstm_jax.tasks.formal_languages.counting import TIES
from xlstm_jax.tasks.formal_languages.shortcuts import scaled, shortcut_accuracies
from xlstm_jax.tasks.task import HeldOut, Sums, Task, Totals
from xlstm_jax.typing import Array, Bool, Float, Int

UNCOUNTED = -1  # target where nothing is asked
SPLITS = {"train": 0, "validation": 1, "test": 2, "validation/short": 4}
BY_LENGTH = "right_at_"  # accuracies of samples of some lengths


@dataclasses.dataclass(frozen=True)
class FormalConfig:
    """Settings of the formal languages."""

    language: str = setting("parity", "which one", choices=tuple(LANGUAGES))
    ties: str = setting(
        "smallest",
        'majority of letters that occur equally often: the "smallest", the one that occurs '
        '"first", or "none": there are no such samples',
        choices=TIES,
    )
    lengths: tuple[int, ...] = setting(
        (3, 40), "shortest and longest sample of training", entries=2, at_least=2
    )
    held_out_lengths: tuple[int, ...] = setting(
        (40, 256), "shortest and longest sample of validation and test", entries=2, at_least=2
    )
    held_out_samples: int = setting(2048, "of validation, and as many short ones", at_least=1)
    test_samples: int = setting(2048, "of the test, which nothing is chosen by", at_least=1)
    length_groups: int = setting(
        6, "parts of held_out_lengths that have an accuracy of their own", at_least=1
    )


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
        settings = self.settings
        return {
            "validation": self._set(
                "validation", settings.held_out_samples, settings.held_out_lengths
            ),
            "validation/short": self._set(
                "validation/short", settings.held_out_samples, settings.lengths
            ),
        }

    def test_sets(self) -> Mapping[str, HeldOut]:
        settings = self.settings
        return {"test": self._set("test", settings.test_samples, settings.held_out_lengths)}

    def guesses(self) -> Mapping[str, Mapping[str, float]]:
        settings, chance = self.settings, self.language.chance
        found = shortcut_accuracies(settings.language, settings.held_out_lengths, settings.ties)
        return {
            name: {"accuracy": accuracy, "scaled_accuracy": scaled(accuracy, chance)}
            for name, accuracy in found.items()
        }

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
        found = {
            "loss": (jnp.sum(jnp.where(asked, losses, 0)), number),
            "accuracy": (jnp.sum(right & asked, dtype=jnp.float32), number),
            "sequence_accuracy": (
                jnp.sum(all_right, dtype=jnp.float32),
                jnp.sum(samples, dtype=jnp.float32),
            ),
        }
        return found if train else found | self._by_length(asked, right)

    def _by_length(self, asked: Bool[Array, "B T"], right: Bool[Array, "B T"]) -> Sums:
        """The accuracies of the answers in samples of similar lengths."""
        places = jnp.arange(asked.shape[1])
        # inputs and targets are shifted by one
        lengths = jnp.max(jnp.where(asked, places + 2, 0), axis=1, keepdims=True)
        shortest, longest = self.settings.held_out_lengths
        parts = min(self.settings.length_groups, longest + 1 - shortest)
        edges = np.linspace(shortest, longest + 1, parts + 1).astype(int)

        def between(first: int, end: int) -> tuple[Float[Array, ""], Float[Array, ""]]:
            counted = asked & (lengths >= first) & (lengths < end)
            return (
                jnp.sum(right & counted, dtype=jnp.float32),
                jnp.sum(counted, dtype=jnp.float32),
            )

        return {
            f"{BY_LENGTH}{first}_to_{end - 1}": between(first, end)
            for first, end in zip(edges[:-1], edges[1:], strict=True)
        }

    def summary(self, totals: Totals) -> dict[str, float]:
        found = super().summary(totals)
        return found | {"scaled_accuracy": scaled(found["accuracy"], self.language.chance)}

    def line(self, summary: Mapping[str, float]) -> str:
        shown = {name: x for name, x in summary.items() if not name.startswith(BY_LENGTH)}
        return super().line(shown)

    def check(self) -> None:
        settings, config = self.settings, self.model_config
        for name in ("lengths", "held_out_lengths"):
            shortest, longest = getattr(settings, name)
            if shortest > longest:
                raise UserError(
                    f"config key task.formal.{name} is {shortest, longest}; the second length must "
                    "not be the smaller"
                )
            if longest < self.language.shortest:
                raise UserError(
                    f"config key task.formal.{name} is {shortest, longest}; the shortest sample of "
                    f"the language {settings.language!r} has {self.language.shortest} tokens"
                )
        if not self.language.ties:
            why = f"the answers of the language {settings.language!r} are never tied"
            refuse_ignored(settings, "task.formal", ("ties",), why)
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
        rng = np.random.default_rng(0)
        content, answer = language.sample(rng, max(12, language.shortest), settings.ties)
        shown = [" ".join(language.symbols[i] for i in tokens) for tokens in (content, answer)]
        return [
            f"{settings.language}: trained on lengths {settings.lengths[0]} to "
            f"{settings.lengths[1]}, evaluated on "
            f"{counted(settings.held_out_samples, 'sample')} of "
            f"{settings.held_out_lengths[0]} to {settings.held_out_lengths[1]}; chance "
            f"{language.chance:.3f}",
            f"a sample: {shown[0]} => {shown[1]}",
        ]

    def position(self, step: int) -> dict[str, int]:
        return {"next_sample": step * self.data.batch_size, "seed": self.data.seed}

    def record(self) -> dict[str, dict[str, Any]]:
        settings = self.settings
        lengths = {"train": settings.lengths, "validation": settings.held_out_lengths}
        rule = f" ties {settings.ties}" if self.language.ties else ""
        return {
            name: {
                "fingerprint": f"{settings.language}{rule} {shortest}-{longest} seed "
                f"{self.data.seed}"
            }
            for name, (shortest, longest) in lengths.items()
        }

    def _set(self, split: str, count: int, lengths: tuple[int, ...]) -> HeldOut:
        """So many samples of a split."""

        def batches(rows: int) -> Iterator[FormalBatch]:
            for first in range(0, count, rows):
                numbers = range(first, first + rows)
                batch = self._samples(split, self.data.seed, numbers, lengths)
                batch.targets[np.array(numbers) >= count] = UNCOUNTED
                yield batch

        return HeldOut(batches, self._time(lengths))

    def _time(self, lengths: tuple[int, ...]) -> int:
        return max(self.data.context_length, lengths[1])

    def _samples(
        self, split: str, seed: int, numbers: Sequence[int], lengths: tuple[int, ...]
    ) -> FormalBatch:
        """The samples of these numbers; each is a function of split, seed and its number alone."""
        language, time = self.language, self._time(lengths)
        shape = (len(numbers), time + 1)
        tokens, answers = np.full(shape, PAD, np.int32), np.full(shape, UNCOUNTED, np.int32)
        for row, number in enumerate(numbers):
            rng = np.random.default_rng([SPLITS[split], seed, number])
            length = int(rng.integers(max(lengths[0], language.shortest), lengths[1] + 1))
            content, answer = language.sample(rng, length, self.settings.ties)
            tokens[row, : len(content)] = content
            answers[row, len(content) : len(content) + len(answer)] = answer
        return FormalBatch(tokens[:, :-1], answers[:, 1:])
