"""The forward pass of the mLSTM's TPU kernel, and what both passes share: kept states, views,
products.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from pallas_kernels.mlstm.pallas_tpu_gates import (
    Numbers,
    Settings,
    end_of_chunk,
    rows_of,
    weights_of_chunk,
)
from pallas_kernels.tpu_sizes import LANES, VMEM_LIMIT
from pallas_kernels.tpu_tiles import products
from pallas_kernels.typing import Keys, MLSTMState, Values


class Kept(NamedTuple):
    """What the backward pass needs: C (in the type of the inputs), n and m before every stretch but
    the first; None if there is one.

    C is rounded as where it enters a product. Every stretch starts from the forward pass' C, so
    that these errors do not add up.
    """

    C: Float[Array, "B H G K V"] | None = None
    n: Float[Array, "B H G 1 K"] | None = None
    m: Float[Array, "B H G 1 128"] | None = None


def by_head(x: Float[Array, "B T H K"]) -> Float[Array, "B T H*K"]:
    """The view whose blocks are one head wide; free where K is a multiple of 128."""
    return x.reshape(*x.shape[:2], -1)


def call_forward(
    settings: Settings,
    q: Keys,
    k: Keys,
    v: Values,
    numbers: Numbers,
    state: MLSTMState | None,
    *,
    keep: bool,
) -> tuple[Values, Float[Array, "B H K V"], Float[Array, "B H K"], Kept | None]:
    """(h, C and n after the last chunk, what the backward pass needs if it is to be kept)."""
    call = forward_call(
        settings,
        q.dtype,
        numbers.shape,
        q.shape[-1],
        v.shape[-1],
        keep=keep,
        given=state is not None,
    )
    h, C, n, *kept = call(by_head(q), by_head(k), by_head(v), numbers, *given_state(state))
    return h.reshape(v.shape), C, n[:, :, 0], Kept(*kept) if keep else None


def given_state(state: MLSTMState | None) -> tuple[Array | None, Array | None, Array | None]:
    """C `B H K V`, n `B H 1 K`, m `B H 1 128` (in all lanes of a row), or three times None."""
    if state is None:
        return None, None, None
    return (
        state.C,
        state.n[:, :, None],
        jnp.broadcast_to(state.m[:, :, None, None], (*state.m.shape, 1, LANES)),
    )


def forward_call(
    settings: Settings,
    dtype: Any,
    numbers: tuple[int, ...],
    key_dim: int,
    value_dim: int,
    *,
    keep: bool,
    given: bool,
) -> Any:
    """The Pallas call on (q, k, v as `B T H*K`, numbers of the given shape, C0, n0, m0 as
    `given_state` makes them).
    """
    batch, heads, chunks, rows, size = numbers
    spacing = settings.spacing
    stretches = -(-chunks // spacing)

    def tokens(width: int) -> pl.BlockSpec:
        return pl.BlockSpec((1, size, width), lambda b, h, n: (b, n, h))

    def per_head(*shape: int) -> pl.BlockSpec:
        return pl.BlockSpec((1, 1, *shape), lambda b, h, n: (b, h, 0, 0))

    def per_stretch(*shape: int) -> pl.BlockSpec:
        return pl.BlockSpec(
            (1, 1, 1, *shape), lambda b, h, n: (b, h, jnp.maximum(n // spacing - 1, 0), 0, 0)
        )

    outs = [
        ((batch, chunks * size, heads * value_dim), dtype, tokens(value_dim)),
        ((batch, heads, key_dim, value_dim), jnp.float32, per_head(key_dim, value_dim)),
        ((batch, heads, 1, key_dim), jnp.float32, per_head(1, key_dim)),
    ]
    if keep and stretches > 1:
        outs += [
            ((batch, heads, stretches - 1, *shape), kind, per_stretch(*shape))
            for shape, kind in (
                ((key_dim, value_dim), dtype),
                ((1, key_dim), jnp.float32),
                ((1, LANES), jnp.float32),
            )
        ]
    token_count = batch * heads * chunks * size
    return pl.pallas_call(
        _kernel(settings, chunks, value_dim, keep=keep),
        grid=(batch, heads, chunks),
        in_specs=[
            tokens(key_dim),
            tokens(key_dim),
            tokens(value_dim),
            pl.BlockSpec((1, 1, 1, rows, size), lambda b, h, n: (b, h, n, 0, 0)),
            pl.BlockSpec(memory_space=pl.ANY) if given else None,
            per_head(1, key_dim) if given else None,
            per_head(1, LANES) if given else None,
        ],
        out_specs=[block for _, _, block in outs],
        out_shape=[jax.ShapeDtypeStruct(shape, kind) for shape, kind, _ in outs],
        scratch_shapes=[
            pltpu.VMEM((1, LANES), jnp.float32),
            pltpu.VMEM((key_dim, size), dtype),
            pltpu.SemaphoreType.DMA,
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=VMEM_LIMIT
        ),
        cost_estimate=pl.CostEstimate(
            flops=token_count * (2 * size * (key_dim + value_dim) + 4 * key_dim * value_dim),
            transcendentals=token_count * size,
            bytes_accessed=forward_bytes(
                settings, dtype, numbers, key_dim, value_dim, keep=keep, given=given
            ),
        ),
        interpret=settings.interpret,
        name="mlstm_forward",
    )


def forward_bytes(
    settings: Settings,
    dtype: Any,
    numbers: tuple[int, ...],
    key_dim: int,
    value_dim: int,
    *,
    keep: bool,
    given: bool,
) -> int:
    """Bytes that the forward kernel moves between HBM and VMEM; states before the first and after
    the last chunk included.
    """
    batch, heads, chunks, rows, size = numbers
    state = 4 * key_dim * (value_dim + 1)
    per_token = 2 * (key_dim + value_dim) * jnp.dtype(dtype).itemsize + 4 * rows
    stretches = -(-chunks // settings.spacing) - 1 if keep else 0
    kept = stretches * (key_dim * (value_dim * jnp.dtype(dtype).itemsize + 4) + 4 * LANES)
    return batch * heads * (chunks * size * per_token + state + given * (state + 4 * LANES) + kept)


def _kernel(settings: Settings, chunks: int, value_dim: int, *, keep: bool) -> Any:
    """One chunk of one head. C and n are the blocks of the last state, which stay in VMEM from the
    first chunk to the last.
    """
    spacing, normalise = settings.spacing, settings.normalise
    tile, dot = tile_of(value_dim), products(settings.interpret)

    def kernel(
        q_ref, k_ref, v_ref, numbers_ref, C0_ref, n0_ref, m0_ref, h_ref, C_ref, n_ref, *rest
    ):
        *kept_refs, m_ref, k_turned_ref, arrived = rest
        b, h, chunk = (pl.program_id(axis) for axis in range(3))

        @pl.when(chunk == 0)
        def _() -> None:
            if C0_ref is None:
                clear(C_ref.at[0, 0])
                n_ref[...] = jnp.zeros_like(n_ref)
                m_ref[...] = jnp.zeros_like(m_ref)
            else:
                copy = pltpu.make_async_copy(C0_ref.at[b, h], C_ref.at[0, 0], arrived)
                copy.start()
                n_ref[...] = n0_ref[...]
                m_ref[...] = m0_ref[0, 0] if normalise else jnp.zeros_like(m_ref)
                copy.wait()

        if keep and chunks > spacing:
            kept_C_ref, kept_n_ref, kept_m_ref = kept_refs

            @pl.when((chunk > 0) & (chunk % spacing == 0))
            def _() -> None:
                kept_C_ref[0, 0, 0] = C_ref[0, 0].astype(kept_C_ref.dtype)
                kept_n_ref[0, 0, 0] = n_ref[0, 0]
                kept_m_ref[0, 0, 0] = m_ref[...]

        rows, m = rows_of(numbers_ref[0, 0, 0]), m_ref[:, :1]
        end = end_of_chunk(settings, rows, m)
        D, (w, kept, floor), *_ = weights_of_chunk(settings, rows, m, end)
        m_ref[...] = jnp.broadcast_to(end.m, m_ref.shape)
        q, k = q_ref[0], k_ref[0]
        S = dot(q, k, (1, 1)) * D
        per_d = 1.0
        if normalise:
            n = n_ref[0, 0]
            per_d = 1 / (jnp.maximum(jnp.abs(denominator(S, w, q, n)), floor) + settings.eps)

        kept_k = kept * k.astype(jnp.float32)
        k_turned_ref[...] = kept_k.T.astype(k.dtype)
        if normalise:
            n_ref[0, 0] = end.w * n + jnp.sum(kept_k, axis=0, keepdims=True)
        S, w = (S * per_d).astype(q.dtype), w * per_d

        def step(j: Array, _: None) -> None:
            at = pl.ds(pl.multiple_of(j * tile, tile), tile)
            v, C = v_ref[0, :, at], C_ref[0, 0, :, at]
            h_ref[0, :, at] = (dot(S, v) + w * dot(q_ref[0], C.astype(q.dtype))).astype(h_ref.dtype)
            C_ref[0, 0, :, at] = end.w * C + dot(k_turned_ref[...], v)

        lax.fori_loop(0, value_dim // tile, step, None)

    return kernel


def tile_of(width: int, longest: int = 512) -> int:
    """The widest part of K or V, a multiple of 128 up to `longest`, that divides it: products are
    taken part by part.
    """
    return next(tile for tile in range(longest, 0, -128) if width % tile == 0)


def clear(ref: Any) -> None:
    """Zeros in a matrix of a multiple of 128 rows, part by part: compiled at once it is a long
    program.
    """

    def step(i: Array, _: None) -> None:
        rows = pl.ds(pl.multiple_of(i * 128, 128), 128)
        ref[rows, :] = jnp.zeros((128, ref.shape[1]), ref.dtype)

    lax.fori_loop(0, ref.shape[0] // 128, step, None)


def denominator(
    S: Float[Array, "L L"], w: Float[Array, "L 1"], q: Float[Array, "L K"], n: Float[Array, "1 K"]
) -> Float[Array, "L 1"]:
    """n·q of each token, with what the chunk itself adds to n: rows of the weighted pairs S, and
    the n before the chunk.
    """
    return jnp.sum(S, axis=1, keepdims=True) + w * jnp.sum(
        q.astype(jnp.float32) * n, axis=1, keepdims=True
    )
