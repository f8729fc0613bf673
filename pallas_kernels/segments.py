"""Documents inside a sequence: where a state is dropped, where a token is padding, which document
is the last.

The rule, shared by the cells and the causal convolution: a state is dropped before a token whose
segment id differs from the id of the token before it; a negative id is padding, leaves every state
untouched and is looked through when ids are compared.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int

from pallas_kernels.typing import LastSegment, SegmentIds, TokenFlags

# What a kernel is told of a token: that the state is dropped before it, or that it is padding.
START, PADDING = 1, 2


def segment_borders(
    segment_ids: SegmentIds, previous_segment: LastSegment | None = None
) -> tuple[TokenFlags, TokenFlags]:
    """Flags the tokens before which the state is dropped, and the padding tokens.

    previous_segment is the id the incoming state ended with; None or a negative id lets the first
    token continue that state. Returns (starts `[B T]`, padding `[B T]`).
    """
    padding = segment_ids < 0
    seen = _ids_so_far(segment_ids, previous_segment)
    before = seen[:, :-1]
    return ~padding & (before >= 0) & (before != segment_ids), padding


def token_flags(starts: TokenFlags, padding: TokenFlags) -> Int[Array, "B T"]:
    """START, PADDING or 0 of each token."""
    flags = jnp.where(padding, PADDING, jnp.where(starts, START, 0))
    return flags.astype(jnp.int32)


def last_segment(
    segment_ids: SegmentIds, previous_segment: LastSegment | None = None
) -> LastSegment:
    """The id the sequence ends with: the previous one where all is padding, -1 if there is none."""
    return jnp.maximum(_ids_so_far(segment_ids, previous_segment)[:, -1], -1)


def positions_in_document(
    starts: TokenFlags, padding: TokenFlags, before: Int[Array, " B"]
) -> Int[Array, "B T"]:
    """Number of tokens of its own document before each token, padding not counted.

    starts and padding are those of `segment_borders`, `before` is the number of tokens that the
    document going on had before this call. A padding token's number means nothing.
    """
    count = jnp.cumsum(~padding, axis=1, dtype=jnp.int32)
    begin = jnp.where(starts, count - 1, -before[:, None])
    return count - 1 - lax.cummax(begin, axis=1)


def _ids_so_far(segment_ids: SegmentIds, previous_segment: LastSegment | None) -> SegmentIds:
    """`[B T+1]`: entry t is the id of the last token before token t that is not padding; negative
    where there is none.
    """
    batch, time = segment_ids.shape
    if previous_segment is None:
        previous_segment = jnp.full((batch,), -1, segment_ids.dtype)
    ids = jnp.concatenate(
        [previous_segment[:, None].astype(segment_ids.dtype), segment_ids], axis=1
    )
    positions = jnp.where(ids >= 0, jnp.arange(time + 1), 0)
    return jnp.take_along_axis(ids, lax.cummax(positions, axis=1), axis=1)
