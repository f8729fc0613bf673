"""Sampling with the recurrent step: constant work and memory per token, however long the text."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@functools.partial(jax.jit, static_argnames=("model", "num_tokens", "temperature", "num_choices"))
def generate(
    model: nn.Module,
    variables: Any,
    prompt: Int[Array, "B P"],
    num_tokens: int,
    key: jax.Array,
    *,
    temperature: float = 1.0,
    num_choices: int | None = None,
) -> Int[Array, "B num_tokens"]:
    """Continues each prompt: the prompt in one parallel pass, then a compiled loop of single steps that carries the state.

    Args:
        prompt: at least one token.
        temperature: 0 takes the most likely token, and the key is not used.
        num_choices: only ids below it are drawn; it keeps a padded vocabulary's unused ids out.
    """

    def choose(logits: Float[Array, "B E"], step_key: jax.Array) -> Int[Array, " B"]:
        logits = logits.astype(jnp.float32)[:, :num_choices]
        if temperature == 0:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        return jax.random.categorical(step_key, logits / temperature).astype(jnp.int32)

    def step(carry, step_key):
        logits, state = carry
        token = choose(logits, step_key)
        logits, state = model.apply(variables, token[:, None], state=state)
        return (logits[:, -1], state), token

    # The prompt's last hidden row alone needs logits.
    hidden, state = model.apply(variables, prompt, method="hidden")
    logits = model.apply(variables, hidden[:, -1:], method="head")[:, -1]
    _, tokens = jax.lax.scan(step, (logits, state), jax.random.split(key, num_tokens))
    return tokens.T
