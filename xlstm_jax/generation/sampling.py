"""How the next token is drawn from logits."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from xlstm_jax.errors import UserError
from xlstm_jax.typing import Array, Bool, Float, Int


@dataclasses.dataclass(frozen=True)
class Sampling:
    """The rules, applied in this order, which is that of `transformers`. The defaults draw from the
    model's own distribution.

    Attributes:
        repetition_penalty: logits of ids that were read before are divided by it where positive,
            multiplied where negative.
        temperature: divides the logits; 0 takes the most likely token, and all that follows here is
            without effect.
        top_k: only the k most likely ids (and any as likely as the last of them).
        top_p: only the most likely ids that together reach this probability.
        min_p: only ids at least this fraction as likely as the most likely one.
        num_choices: only ids below it, before anything else; it keeps a padded vocabulary's unused
            ids out.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    num_choices: int | None = None

    def __post_init__(self):
        def require(name: str, good: bool, what: str) -> None:
            if not good:
                raise UserError(f"sampling: {name} is {getattr(self, name)!r}; it must be {what}")

        require(
            "temperature", 0 <= self.temperature < math.inf, "0 (the most likely token) or above"
        )
        require("repetition_penalty", 0 < self.repetition_penalty < math.inf, "above 0 (1: none)")
        require("top_k", self.top_k is None or self.top_k >= 1, "at least 1")
        require("top_p", self.top_p is None or 0 < self.top_p <= 1, "above 0 and at most 1")
        require("min_p", self.min_p is None or 0 <= self.min_p <= 1, "between 0 and 1")
        require("num_choices", self.num_choices is None or self.num_choices >= 1, "at least 1")


GREEDY = Sampling(temperature=0.0)
"""The most likely token."""
UNCHANGED = Sampling()
"""The model's own distribution."""


def choose(
    logits: Float[Array, "B E"], seen: Bool[Array, "B E"], keys: Array, sampling: Sampling
) -> Int[Array, " B"]:
    """One id per row. Each row has its own key, so that what it draws does not depend on its
    neighbours.
    """
    logits = allowed_logits(logits, seen, sampling)
    if sampling.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


def allowed_logits(
    logits: Float[Array, "B E"], seen: Bool[Array, "B E"], sampling: Sampling
) -> Float[Array, "B E"]:
    """float32 logits of the distribution that `sampling` draws from; -inf for what is ruled out."""
    logits = logits.astype(jnp.float32)
    if sampling.num_choices is not None:
        logits, seen = logits[:, : sampling.num_choices], seen[:, : sampling.num_choices]
    if sampling.repetition_penalty != 1:
        penalty = sampling.repetition_penalty
        logits = jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)
    if sampling.temperature == 0:
        return logits
    logits = logits / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        least = jax.lax.top_k(logits, sampling.top_k)[0][:, -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if sampling.top_p is not None and sampling.top_p < 1:
        descending = jnp.sort(logits, axis=-1, descending=True)
        probabilities = jax.nn.softmax(descending, axis=-1)
        # 0 for the first, which therefore always stays
        before = jnp.cumsum(probabilities, axis=-1) - probabilities
        least = jnp.min(
            jnp.where(before < sampling.top_p, descending, jnp.inf), axis=-1, keepdims=True
        )
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if sampling.min_p is not None and sampling.min_p > 0:
        least = jnp.max(logits, axis=-1, keepdims=True) + math.log(sampling.min_p)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return logits
