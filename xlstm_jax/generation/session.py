"""Where a batch of texts stands: everything that going on needs, of a size that does not depend on
the length; of a model with attention, of the size that its longest text needs.

A session is an immutable pytree. Reading more makes a new one; the old one stays usable, so that
going back costs nothing.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from xlstm_jax.errors import UserError
from xlstm_jax.models import BackboneState, ModelConfig
from xlstm_jax.models.backbone import growing_mixers
from xlstm_jax.parallel import compute_dtype, platform
from xlstm_jax.typing import Array, Bool, Float, Int

PIECE = 2048  # tokens of a prompt that are read at once: longer ones take no more memory
# So many pieces of few rows are read at once by an accelerator, as each reads all weights: 8,192
# tokens through two of the 7B model's blocks on an H100 take 10.6 instead of 12.1 ms (modelled).
PIECES = 4
TAIL = 128  # last tokens that a session keeps, at least, for the text that follows them


class Tail(NamedTuple):
    """The last tokens: what decides how the text that follows them is written (`text.TextStream`).

    Attributes:
        tokens: the last tokens read or written, `TAIL` of them or more where a stop string is so
            long (`widened`), -1 in the place of those before the first.
        unshown: so many of them, at the end, were written but not given out as text in full: they
            are an unfinished character, or may be the beginning of a stop string.
        given: so many characters of the unshown tokens' text were given out.
    """

    tokens: Int[Array, "B W"]
    unshown: Int[Array, " B"]
    given: Int[Array, " B"]


class Session(NamedTuple):
    """The states after the tokens read so far, and what they say about the next one.

    Attributes:
        logits: float32, of the next token; zeros before the first.
        position: number of tokens read.
        seen: ids read, for the repetition penalty.
        tail: the last tokens, for the text that follows them.
        room: number of tokens that can be read in all; UNLIMITED where nothing bounds it.
    """

    state: BackboneState
    logits: Float[Array, "B E"]
    position: Int[Array, " B"]
    seen: Bool[Array, "B E"]
    tail: Tail
    room: Int[Array, " B"]


UNLIMITED = 2**31 - 1  # of int32
NOTHING = -1  # in the place of a token: there is none


def room_of(config: ModelConfig, cache_length: int | None) -> int:
    """How many tokens of a text a model can hold: as many as it has learned positions, and as many
    as `cache_length` where a memory grows with the text.
    """
    limits = [UNLIMITED if config.max_positions is None else config.max_positions]
    if cache_length is not None and growing_mixers(config):
        limits.append(cache_length)
    return min(limits)


def empty_session(model: nn.Module, batch_size: int, cache_length: int | None = None) -> Session:
    """Before the first token; `cache_length` is the room of a memory that grows with the text, by
    default as many tokens as the model has learned positions.

    What is remembered of activations is in the type that the model computes in, which loses nothing
    and is half the size in bfloat16: a step reads all of it.
    """
    vocabulary, room = model.config.vocab_size, room_of(model.config, cache_length)
    dtype = compute_dtype(model.config.dtype)
    return Session(
        model.init_state(batch_size, dtype, None if room == UNLIMITED else room),
        jnp.zeros((batch_size, vocabulary), jnp.float32),
        jnp.zeros(batch_size, jnp.int32),
        jnp.zeros((batch_size, vocabulary), bool),
        Tail(
            jnp.full((batch_size, TAIL), NOTHING, jnp.int32),
            jnp.zeros(batch_size, jnp.int32),
            jnp.zeros(batch_size, jnp.int32),
        ),
        jnp.full(batch_size, room, jnp.int32),
    )


def check_room(
    config: ModelConfig,
    position: Int[np.ndarray | Array, " B"],
    room: Int[np.ndarray | Array, " B"],
    more: Sequence[int],
) -> None:
    """Refuses what would outgrow a session, before it is read or written.

    Args:
        position: of the session.
        room: of the session.
        more: number of further tokens of each row.

    Raises:
        UserError: the model can't hold so many.
    """
    position, room, more = (np.asarray(column, np.int64) for column in (position, room, more))
    row = np.argmax(position + more - room)
    read, further, room = (int(column[row]) for column in (position, more, room))
    if read + further <= room:
        return
    what = f"the text has {read:,} tokens and {further:,} more are to follow, but"
    if room == config.max_positions:
        raise UserError(
            f"{what} this model has learned {room:,} positions (model.max_positions) and can read "
            "no more; give less text, or ask for fewer tokens (--max-new-tokens)"
        )
    raise UserError(
        f"{what} its attention has room for {room:,}; begin it with a larger --cache-length "
        "(cache_length), give less text, or ask for fewer tokens"
    )


def read(
    model: nn.Module,
    params: Any,
    prompts: Sequence[Sequence[int]],
    session: Session | None = None,
    *,
    at_least: int = 1,
    cache_length: int | None = None,
    place: Callable[[Any], Any] = lambda rows: rows,
) -> Session:
    """The session after each row read its own tokens: in parallel along the time, `PIECE` tokens at
    once, of few prompts on an accelerator up to `PIECES` times as many.

    Rows may have different lengths, 0 too in a session that exists. Shorter ones are padded on the
    left; padding changes no state, so that a row gets what it would get alone. Padding goes to the
    next of a few lengths, and to `at_least`: fewer programs. `place` puts an array with a row per
    text onto the devices; default: the parameters' device.

    Raises:
        UserError: a prompt is empty, or the model can't hold so many tokens.
    """
    if session is None:
        if not all(len(prompt) for prompt in prompts):
            raise UserError(
                "a prompt is empty; it needs at least one token, an end-of-text token for example"
            )
        session = empty_session(model, len(prompts), cache_length)
    lengths = [len(prompt) for prompt in prompts]
    check_room(model.config, session.position, session.room, lengths)
    length = padded(max(at_least, *map(len, prompts)))
    tokens = np.zeros((len(prompts), length), np.int32)
    for row, prompt in enumerate(prompts):
        if len(prompt):
            tokens[row, length - len(prompt) :] = prompt
    padding = np.arange(length) < length - np.array([[len(prompt)] for prompt in prompts])
    at_once = 1 if platform() == "cpu" else PIECES // len(prompts)
    for start, end in itertools.pairwise(cuts(length, at_once)):
        ids = -padding[:, start:end].astype(np.int32) if padding[:, start:end].any() else None
        session = read_piece(
            model, params, session, place(tokens[:, start:end]), None if ids is None else place(ids)
        )
    return session


def cuts(length: int, at_once: int) -> list[int]:
    """Where a padded length is cut into what is read at once, both ends among them: what is no
    whole piece, then pieces one by one until the rest is `at_once` of them at a time.
    """
    large = PIECE * max(1, at_once)
    sizes = [length % PIECE, *[PIECE] * (length % large // PIECE), *[large] * (length // large)]
    return list(itertools.accumulate(filter(None, sizes), initial=0))


def padded(length: int) -> int:
    """The next length that is compiled for: whole pieces and, for the first one, 1, 2, 3, 4, 6, 8,
    12, 16, ...
    """
    whole, rest = divmod(length, PIECE)
    sizes = (size for power in range(PIECE.bit_length()) for size in (1 << power, 3 << power >> 1))
    return whole * PIECE + (min(size for size in sizes if size >= rest) if rest else 0)


@functools.partial(jax.jit, static_argnames="model")
def read_piece(
    model: nn.Module,
    params: Any,
    session: Session,
    tokens: Int[Array, "B T"],
    segment_ids: Int[Array, "B T"] | None,
) -> Session:
    """The session after further tokens of each row; one with a negative id is padding."""
    hidden, state = model.apply(
        {"params": params}, tokens, session.state, segments=segment_ids, method="hidden"
    )
    logits = model.apply({"params": params}, hidden[:, -1:], method="head")[:, -1].astype(
        jnp.float32
    )
    is_token = jnp.ones(tokens.shape, bool) if segment_ids is None else segment_ids >= 0
    read_any = is_token[:, -1:]
    rows = jnp.arange(len(tokens))[:, None]
    count = jnp.sum(is_token, axis=1, dtype=jnp.int32)
    return Session(
        state,
        jnp.where(read_any, logits, session.logits),
        session.position + count,
        session.seen.at[rows, tokens].max(is_token),
        extended(session.tail, tokens, count, tokens.shape[1] - count),
        session.room,
    )


def extended(
    tail: Tail, tokens: Int[Array, "B T"], count: Int[Array, " B"], start: Int[Array, " B"]
) -> Tail:
    """The tail after each row's `count` more tokens, which stand in `tokens` from `start` on.

    A row without new tokens stays as it is; in the others nothing is held back any more.
    """
    # Written one after the other, a row's old tail and its `count` new tokens are width + count
    # tokens; the new tail is the last `width` of them. Its token j is therefore number j + count:
    # one of the old tail where that is below `width`, else a new one.
    width = tail.tokens.shape[1]
    place = jnp.arange(width, dtype=jnp.int32) + count[:, None]
    new = jnp.clip(place - width + start[:, None], 0, tokens.shape[1] - 1)
    ids = jnp.where(
        place < width,
        jnp.take_along_axis(tail.tokens, jnp.clip(place, 0, width - 1), axis=1),
        jnp.take_along_axis(tokens.astype(jnp.int32), new, axis=1),
    )
    return Tail(ids, jnp.where(count > 0, 0, tail.unshown), jnp.where(count > 0, 0, tail.given))


def widened(tail: Tail, least: int) -> Tail:
    """The tail with room for at least so many tokens: twice as many as before until they fit, so
    that few programs are compiled.
    """
    width = tail.tokens.shape[1]
    while width < least:
        width *= 2
    more = width - tail.tokens.shape[1]
    if not more:
        return tail
    return tail._replace(tokens=jnp.pad(tail.tokens, ((0, 0), (more, 0)), constant_values=NOTHING))


def take(session: Session, rows: Sequence[int]) -> Session:
    """A session of the given rows, in that order; a row may be taken several times, to go on from
    it in several ways.
    """
    index = jnp.asarray(rows)
    return jax.tree.map(lambda leaf: jnp.take(leaf, index, axis=0), session)
