"""Which inputs a causal convolution meets: the places of the W-1 tokens before each token.

Places are counted along the window and the sequence behind it: 0 .. W-2 are the window's, W-1+t is
that of token t, -1 that of nobody, for which the convolution has a zero. Padding is looked through,
as if it were not there, and meets nobody itself. Neighbours of another document are nobody.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.typing import LastSegment, SegmentIds


class Places(NamedTuple):
    """sources: of what a token meets at each tap; the last tap is the token itself, -1 for padding.
    targets: the other way round, the token that meets a token at each tap.
    window_targets: the same for the window's inputs.
    last: of what the next token would meet.
    """

    sources: Int[Array, "B W T"]
    targets: Int[Array, "B W T"]
    window_targets: Int[Array, "B W W-1"]
    last: Int[Array, "B W-1"]


def places_of(
    batch: int,
    time: int,
    width: int,
    segment_ids: SegmentIds | None,
    previous_segment: LastSegment | None,
    *,
    window: bool,
) -> Places:
    """The places for a convolution of `width` taps; without a window its places are nobody's.

    previous_segment is the document that the window belongs to; None or a negative id: that of the
    first token.
    """
    reach = width - 1
    if segment_ids is None:
        return _of_one_document(batch, time, width, window=window)
    real = segment_ids >= 0
    order = jnp.argsort(~real, axis=1, stable=True)  # tokens first, in their order; then padding
    count = jnp.sum(real, axis=1, dtype=jnp.int32)[:, None, None]
    rank = jnp.cumsum(real, axis=1, dtype=jnp.int32)[:, None] - 1
    ids = jnp.take_along_axis(segment_ids, order, axis=1)
    first = ids[:, 0]
    if previous_segment is not None:
        first = jnp.where(previous_segment < 0, first, previous_segment)
    # Behind one another, padding last: the documents and the places of all that can be met.
    ids = jnp.concatenate([jnp.broadcast_to(first[:, None], (batch, reach)), ids], axis=1)
    before = jnp.arange(reach, dtype=jnp.int32)
    place = jnp.concatenate(
        [
            jnp.broadcast_to(before if window else -1, (batch, reach)),
            (reach + order).astype(jnp.int32),
        ],
        axis=1,
    )
    tap = jnp.arange(width, dtype=jnp.int32)[:, None]

    def at(array: Array, index: Array) -> Array:
        index = jnp.clip(index, 0, array.shape[1] - 1)
        shape = (batch, *index.shape[1:])
        flat = jnp.broadcast_to(index, shape).reshape(batch, -1)
        return jnp.take_along_axis(array, flat, axis=1).reshape(shape)

    own, met = segment_ids[:, None], rank + tap
    sources = jnp.where(real[:, None] & (at(ids, met) == own), at(place, met), -1)
    later = rank + reach - tap
    same = (later < count) & (at(ids, reach + later) == own)
    targets = jnp.where(real[:, None] & same, at(place, reach + later), -1)
    meets = (before - tap)[None]
    same = (meets >= 0) & (meets < count) & (at(ids, reach + meets) == first[:, None, None])
    window_targets = jnp.where(same, at(place, reach + meets), -1)
    ends = count[:, 0] + before
    documents = at(ids, ends)
    last = jnp.where(documents == documents[:, -1:], at(place, ends), -1)
    return Places(sources, targets, window_targets, last)


def _of_one_document(batch: int, time: int, width: int, *, window: bool) -> Places:
    reach = width - 1
    tap = jnp.arange(width, dtype=jnp.int32)[:, None]
    t, before = (jnp.arange(size, dtype=jnp.int32)[None] for size in (time, reach))

    def where_there(place: Array, *, least: int) -> Array:
        return jnp.where((place >= least) & (place < reach + time), place, -1)

    places = (
        where_there(t + tap, least=0 if window else reach),
        where_there(reach + t + reach - tap, least=reach),
        where_there(reach + before - tap, least=reach),
    )
    last = where_there(time + before, least=0 if window else reach)
    spread = [jnp.broadcast_to(place, (batch, *place.shape)) for place in places]
    return Places(*spread, jnp.broadcast_to(last, (batch, reach)))


def inputs_at(
    u: Float[Array, "B T I"],
    window: Float[Array, "B W-1 I"] | None,
    reach: int,
    places: Int[Array, "B S"],
) -> Float[Array, "B S I"]:
    """The inputs at these places, zeros at nobody's; reach is W-1."""
    x = jnp.take_along_axis(u, jnp.maximum(places - reach, 0)[..., None], axis=1)
    if window is not None and reach:
        earlier = jnp.take_along_axis(window, jnp.clip(places, 0, reach - 1)[..., None], axis=1)
        x = jnp.where((places < reach)[..., None], earlier, x)
    return jnp.where((places >= 0)[..., None], x, 0)
