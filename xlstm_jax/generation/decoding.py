"""The loop that writes: on the device, one recurrent step per token, constant memory."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from xlstm_jax.generation.sampling import Sampling, choose
from xlstm_jax.generation.session import (
    NOTHING,
    Session,
    check_room,
    empty_session,
    extended,
    read_piece,
    room_of,
)
from xlstm_jax.typing import Array, Bool, Int


@functools.partial(jax.jit, static_argnames=("model", "space", "sampling", "stop_tokens"))
def decode(
    model: nn.Module,
    params: Any,
    session: Session,
    keys: Array,
    ended: Bool[Array, " B"],
    num_tokens: Int[Array, " #B"] | Int[Array, ""],
    *,
    space: int,
    sampling: Sampling,
    stop_tokens: tuple[int, ...] | None = None,
) -> tuple[Session, Int[Array, "B space"], Bool[Array, " B"]]:
    """Up to `num_tokens` more tokens for every row that has not ended; stops early when all have.

    The t-th token of a row is drawn with its key folded with t: a text drawn in parts, or in
    another batch, is the same.

    Args:
        ended: rows that write nothing; without effect where `stop_tokens` is None.
        num_tokens: one number, or with `stop_tokens` one per row; the compiled program serves any.
        space: length of the result, at least `num_tokens`.
        stop_tokens: a row ends after one of them. None: no row ends, which spares a step its
            padding.

    Returns:
        The session after the tokens (all of them were read, a stop token too), the tokens with
        `NOTHING` behind each row's end, and whether each row has ended.
    """
    may_end = stop_tokens is not None
    stops = jnp.asarray(stop_tokens or (NOTHING,))
    limits = jnp.broadcast_to(jnp.asarray(num_tokens, jnp.int32), ended.shape)

    def unfinished(carry: Any) -> Bool[Array, ""]:
        number, _, ended, _ = carry
        return (number < jnp.max(limits)) & ~jnp.all(ended)

    def step(carry: Any) -> Any:
        number, session, ended, tokens = carry
        step_keys = jax.vmap(jax.random.fold_in)(keys, session.position)
        token = choose(session.logits, session.seen, step_keys, sampling)
        # A row that writes nothing more goes on as padding, which changes no state.
        idle = ended | (number >= limits) if may_end else ended
        segment_ids = jnp.where(idle, -1, 0)[:, None] if may_end else None
        logits, state = model.apply(
            {"params": params}, token[:, None], session.state, segments=segment_ids
        )
        rows = jnp.arange(len(token))
        session = session._replace(
            state=state,
            logits=jnp.where(idle[:, None], session.logits, logits[:, -1].astype(jnp.float32)),
            position=session.position + ~idle,
            seen=session.seen.at[rows, token].max(~idle),
        )
        tokens = tokens.at[:, number].set(jnp.where(idle, NOTHING, token))
        ended |= ~idle & jnp.any(token[:, None] == stops, axis=1)
        return number + 1, session, ended, tokens

    ended = ended if may_end else jnp.zeros_like(ended)
    tokens = jnp.full((len(ended), space), NOTHING, jnp.int32)
    _, session, ended, tokens = jax.lax.while_loop(unfinished, step, (0, session, ended, tokens))
    count = jnp.sum(tokens != NOTHING, axis=1, dtype=jnp.int32)
    tail = extended(session.tail, tokens, count, jnp.zeros_like(count))
    return session._replace(tail=tail), tokens, ended


def row_keys(seeds: Any) -> Array:
    """One key per row, from its own seed."""
    return jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))


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
    """Continues prompts of one length in a single program: the short form for code that holds
    arrays (`Generator` is for texts).

    Args:
        prompt: at least one token.
        temperature: as in `Sampling`; at 0 the key is not used.
        num_choices: as in `Sampling`.

    Raises:
        UserError: the model has not learned so many positions.
    """
    params, length = variables["params"], prompt.shape[1] + num_tokens
    check_room(model.config, [0], [room_of(model.config, length)], [length])
    session = read_piece(model, params, empty_session(model, len(prompt), length), prompt, None)
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(len(prompt)))
    sampling = Sampling(temperature=temperature, num_choices=num_choices)
    ended = jnp.zeros(len(prompt), bool)
    _, tokens, _ = decode(
        model, params, session, keys, ended, num_tokens, space=num_tokens, sampling=sampling
    )
    return tokens
