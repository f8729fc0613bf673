"""The next token of a text."""

import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from xlstm_jax.data.config import DataConfig
from xlstm_jax.data.loader import (
    Batch,
    TokenSource,
    eval_batches,
    open_named_split,
    open_split,
    open_validation_sets,
    position,
    record,
    train_batches,
)
from xlstm_jax.data.tokenizer import Tokenizer
from xlstm_jax.models import build_model
from xlstm_jax.parallel import num_devices
from xlstm_jax.tasks.config import EvalConfig
from xlstm_jax.tasks.cross_entropy import projected_cross_entropy_sum, token_parts
from xlstm_jax.tasks.perplexity import (
    Perplexity,
    check_scored,
    gzip_bits_per_byte,
    scored_bytes,
)
from xlstm_jax.tasks.task import HeldOut, Sums, Task, Totals

NAME = "language_modelling"
READS = frozenset(
    f"{section}.{field.name}"
    for section, config in (("data", DataConfig), ("eval", EvalConfig))
    for field in dataclasses.fields(config)
)


@dataclasses.dataclass(frozen=True)
class LanguageModellingConfig:
    """The task has no settings of its own; `data` says all."""


class LanguageModelling(Task):
    """Predicts the next token. A batch is (tokens, targets, segment ids).

    Whether documents reset states is decided here, once: `data.reset_at_document`.
    """

    loss_unit = "nats per token"
    writes_text = True

    @functools.cached_property
    def source(self) -> TokenSource:
        """The text to train on."""
        return open_split(self.data, "train", self.model_config.vocab_size)

    @functools.cached_property
    def held_out_sources(self) -> dict[str, TokenSource]:
        """The text to evaluate on, and further such texts by name."""
        vocab_size = self.model_config.vocab_size
        first = open_split(self.data, "validation", vocab_size)
        return {"validation": first, **open_validation_sets(self.data, vocab_size)}

    def named_source(self, name: str) -> TokenSource:
        """The text of a split: "train", "validation" or one of `data.validation_sets`."""
        return open_named_split(self.data, name, self.model_config.vocab_size)

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the text."""
        return self.source.tokenizer

    @property
    def window(self) -> int:
        """Tokens of the windows that are evaluated."""
        return self.evaluation.context_length or self.data.context_length

    def model(self, *, stacked: bool = False) -> nn.Module:
        return build_model(self.model_config, stacked=stacked)

    def shapes(self, rows: int, time: int | None = None) -> Batch:
        ids = jax.ShapeDtypeStruct((rows, time or self.data.context_length), jnp.int32)
        return Batch(ids, ids, ids)

    def init(self, model: nn.Module, key: jax.Array) -> Any:
        return model.init(key, jnp.zeros((1, 1), jnp.int32))

    def batch(self, seed: int, step: int, rows: Sequence[int]) -> Batch:
        whole = train_batches(
            self.source, dataclasses.replace(self.data, seed=seed, workers=0), step
        )
        return jax.tree.map(lambda x: x[list(rows)], next(whole))

    def batches(self, start: int, rows: Sequence[int]) -> Iterator[Batch]:
        parts = self.data.batch_size // len(rows)
        return train_batches(self.source, self.data, start, part=rows[0] // len(rows), parts=parts)

    def held_out(self) -> Mapping[str, HeldOut]:
        return {
            name if name == "validation" else f"validation/{name}": self.held_out_of(source)
            for name, source in self.held_out_sources.items()
        }

    def held_out_of(self, source: TokenSource) -> HeldOut:
        """A text as data to evaluate on, as `eval` says."""
        reset, most = self.data.reset_at_document, self.evaluation.max_tokens

        def batches(rows: int) -> Iterator[Batch]:
            return eval_batches(source, rows, self.window, most, reset_at_document=reset)

        text_bytes = scored_bytes(source, most, reset_at_document=reset)
        return HeldOut(batches, self.window, {"text_bytes": (text_bytes, 1.0)})

    def sums(
        self,
        model: nn.Module,
        variables: Any,
        batch: Batch,
        *,
        train: bool = False,
        rngs: Mapping[str, jax.Array] | None = None,
    ) -> Sums:
        (y, _), noted = model.apply(
            variables,
            batch.tokens,
            segments=batch.segment_ids if self.data.reset_at_document else None,
            train=train,
            rngs=rngs,
            method="hidden",
            mutable=["statistics"] if train else [],
        )
        kernel = model.apply(variables, method="head_kernel")
        parts, multiple = token_parts(batch.targets.size * kernel.shape[1], num_devices())
        nats = projected_cross_entropy_sum(
            y, kernel, batch.targets, batch.mask,
            cap=self.model_config.logit_soft_cap, parts=parts, multiple=multiple,
        )  # fmt: skip
        tokens = jnp.sum(batch.mask.astype(bool), dtype=jnp.int32).astype(jnp.float32)
        return {"loss": (nats, tokens)} | mean_by_name(noted)

    def summary(self, totals: Totals) -> dict[str, float]:
        return self.perplexity(totals).values()

    def perplexity(self, totals: Totals) -> Perplexity:
        """What the totals of an evaluation in windows of `window` tokens say."""
        (nats, tokens), (text_bytes, _) = totals["loss"], totals.get("text_bytes", (0, 1))
        return Perplexity(nats, round(tokens), round(text_bytes) or None, self.window)

    def line(self, summary: Mapping[str, float]) -> str:
        if (bits := summary.get("bits_per_byte")) is None:
            return f"loss {summary['loss']:.3f} nats, perplexity {summary['perplexity']:.2f}"
        return f"loss {summary['loss']:.3f} nats, {bits:.3f} bits per byte"

    def closing_line(self, summary: Mapping[str, float]) -> str:
        gzip = gzip_bits_per_byte(self.held_out_sources["validation"], self.evaluation.max_tokens)
        beside = "" if gzip is None else f" (gzip -9: {gzip:.2f})"
        return self.line(summary) + beside

    def check(self) -> None:
        train_batches(self.source, self.data)  # refuses a text that is shorter than one sample
        for source in self.held_out_sources.values():
            if self.data.reset_at_document:
                check_scored(source, self.evaluation.max_tokens)

    def description(self) -> list[str]:
        first, *more = self.held_out_sources.items()
        lines = [*self.source.description, *first[1].description]
        return lines + [f"{name}: {line}" for name, other in more for line in other.description]

    def position(self, step: int) -> dict[str, int]:
        return position(self.source, self.data, step)

    def record(self) -> dict[str, dict[str, Any]]:
        return json.loads(record(self.source, self.held_out_sources, self.data))


def mean_by_name(noted: Any) -> Sums:
    """What the mixers note of themselves (flax's collection "statistics"): of each name the mean
    over the blocks, with weight 1.
    """
    by_name: dict[str, list[jax.Array]] = {}
    for path, value in jax.tree_util.tree_flatten_with_path(noted)[0]:
        by_name.setdefault(path[-1].key, []).append(value.ravel())
    one = jnp.ones((), jnp.float32)
    return {name: (jnp.mean(jnp.concatenate(values)), one) for name, values in by_name.items()}
