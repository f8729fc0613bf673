"""How long generation takes: against the number of tokens, and against the batch until memory ends
(the paper's figure 9).
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from xlstm_jax.generation import session as sessions
from xlstm_jax.generation.decoding import decode, row_keys
from xlstm_jax.generation.sampling import GREEDY
from xlstm_jax.generation.weights import for_steps

PROMPT = 16  # tokens, as in the paper
LENGTHS = (64, 128, 256, 512, 1024, 2048)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
TOKENS_PER_BATCH = 64


class Timing(NamedTuple):
    """Seconds (median, without compilation) for `tokens` tokens in each of `batch` rows, prompt
    included; None: out of memory.
    """

    batch: int
    tokens: int
    seconds: float | None

    @property
    def tokens_per_second(self) -> float | None:
        """Over all rows."""
        return None if self.seconds is None else self.batch * self.tokens / self.seconds


def time_lengths(
    model: nn.Module, params: Any, lengths: Sequence[int] = LENGTHS, repetitions: int = 3
) -> Iterator[Timing]:
    """Batch 1, a prompt of 16 tokens, one program for all lengths; each as soon as it is there."""
    run = _runner(model, params, 1, max(lengths))
    run(1)
    for length in sorted(set(lengths)):
        yield Timing(1, length, _median(lambda length=length: run(length), repetitions))


def time_batches(
    model: nn.Module,
    params: Any,
    batches: Sequence[int] = BATCHES,
    tokens: int = TOKENS_PER_BATCH,
    repetitions: int = 3,
) -> Iterator[Timing]:
    """The same tokens for more and more rows, each batch as soon as it is measured; the first one
    that memory does not hold is marked and ends it.
    """
    for batch in sorted(set(batches)):
        try:
            run = _runner(model, params, batch, tokens)
            run(1)
            timing = Timing(batch, tokens, _median(lambda run=run: run(tokens), repetitions))
        except (jax.errors.JaxRuntimeError, MemoryError) as error:
            if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(
                error
            ):
                raise
            yield Timing(batch, tokens, None)
            return
        yield timing


def _runner(model: nn.Module, params: Any, batch: int, space: int) -> Callable[[int], None]:
    """Reads the prompt and writes that many tokens, and waits for them."""
    prompts = (
        np.random.default_rng(0).integers(0, model.config.vocab_size, (batch, PROMPT)).tolist()
    )
    keys, ended = row_keys(range(batch)), jnp.zeros(batch, bool)
    step_model, step_params = for_steps(model, params)

    def run(count: int) -> None:
        session = sessions.read(model, params, prompts)
        jax.block_until_ready(
            decode(
                step_model, step_params, session, keys, ended, count, space=space, sampling=GREEDY
            )
        )

    return run


def _median(run: Callable[[], None], repetitions: int) -> float:
    seconds = []
    for _ in range(repetitions):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
