"""The backward pass of the mLSTM's TPU kernel: every stretch of S chunks is walked twice, forward
for the states and back for the gradients.

With y = numerator, d = max(|qn|, floor) + eps, s = 1/sqrt(K), ' for what is after the chunk:
  dS_ts = s D_ts (dh_t·v_s / d_t + dqn_t)
  dqn_t = -sign(qn_t) (dh_t·h_t) / d_t       where |qn_t| > floor_t
  dq_t  = sum_s dS_ts k_s + s w_t (C dh_t / d_t + n dqn_t)
  dk_s  = sum_t dS_ts q_t + kept_s (dC' v_s + dn')
  dv_s  = sum_t s D_ts (q_t·k_s) dh_t / d_t + kept_s k_s dC'
  dC    = w_last dC' + sum_t (s w_t / d_t) q_t dh_t
  dn    = w_last dn' + sum_t s w_t dqn_t q_t
  <C', dC'> = w_last <C, dC'> + sum_s kept_s k_s·(dC' v_s)
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from pallas_kernels.mlstm.pallas_tpu_forward import (
    Kept,
    by_head,
    clear,
    denominator,
    given_state,
    tile_of,
)
from pallas_kernels.mlstm.pallas_tpu_gates import (
    Numbers,
    Settings,
    end_of_chunk,
    gate_gradients,
    kept_of_chunk,
    rows_of,
    weights_of_chunk,
)
from pallas_kernels.tpu_sizes import LANES, VMEM_LIMIT
from pallas_kernels.tpu_tiles import products
from pallas_kernels.typing import Gates, Keys, MLSTMState, Values


def call_backward(
    settings: Settings,
    q: Keys,
    k: Keys,
    v: Values,
    h: Values,
    dh: Values,
    numbers: Numbers,
    state: MLSTMState | None,
    kept: Kept,
    after: MLSTMState,
) -> tuple[tuple[Keys, Keys, Values], tuple[Array, Array] | None, tuple[Gates, Gates]]:
    """((dq, dk, dv), (dC0, dn0), cotangents of the log gates); after has the cotangents of the last
    state.

    Without a state that was given there is none to have cotangents: None.
    """
    dn = after.n if settings.normalise else jnp.zeros_like(after.n)
    call = backward_call(
        settings, q.dtype, numbers.shape, q.shape[-1], v.shape[-1], given=state is not None
    )
    h = by_head(h) if settings.normalise else None
    last_state = (after.C, dn[:, :, None])
    *gradients, dC, dn, d_gates = call(
        by_head(q),
        by_head(k),
        by_head(v),
        h,
        by_head(dh),
        numbers,
        *given_state(state),
        *kept,
        *last_state,
    )
    gradients = tuple(x.reshape(y.shape) for x, y in zip(gradients, (q, k, v), strict=True))
    d_log_i, d_log_f = (
        jnp.moveaxis(d_gates[:, :, :, row].reshape(*numbers.shape[:2], -1), 1, 2)
        for row in range(2)
    )
    return gradients, None if state is None else (dC, dn[:, :, 0]), (d_log_i, d_log_f)


def backward_call(
    settings: Settings,
    dtype: Any,
    numbers: tuple[int, ...],
    key_dim: int,
    value_dim: int,
    *,
    given: bool,
) -> Any:
    """The Pallas call on (q, k, v, h or None, dh as `B T H*K`, numbers, C0, n0, m0, kept C, n and
    m, cotangents of the last C and n).

    If no state is given, C0, n0 and m0 are None, and so are the cotangents of C0 and n0.
    """
    batch, heads, chunks, rows, size = numbers
    spacing = settings.spacing
    stretches = -(-chunks // spacing)

    # What the states need: in the stretch's first S steps from chunk to chunk forward, then back.
    def early(g: Array, j: Array) -> Array:
        return jnp.minimum(
            (stretches - 1 - g) * spacing + jnp.where(j < spacing, j, 2 * spacing - 1 - j),
            chunks - 1,
        )

    # What only the gradients need: waits at the stretch's last chunk for S steps, then goes back.
    def late(g: Array, j: Array) -> Array:
        return jnp.minimum(
            (stretches - 1 - g) * spacing + jnp.minimum(spacing - 1, 2 * spacing - 1 - j),
            chunks - 1,
        )

    def tokens(width: int, chunk: Any) -> pl.BlockSpec:
        return pl.BlockSpec((1, size, width), lambda b, h, g, j: (b, chunk(g, j), h))

    def per_head(*shape: int) -> pl.BlockSpec:
        return pl.BlockSpec((1, 1, *shape), lambda b, h, g, j: (b, h, 0, 0))

    def per_chunk(chunk: Any, *shape: int) -> pl.BlockSpec:
        return pl.BlockSpec((1, 1, 1, *shape), lambda b, h, g, j: (b, h, chunk(g, j), 0, 0))

    in_hbm = pl.BlockSpec(memory_space=pl.ANY)

    def before_stretch(width: int) -> pl.BlockSpec:
        return pl.BlockSpec(
            (1, 1, 1, 1, width), lambda b, h, g, j: (b, h, jnp.maximum(stretches - 2 - g, 0), 0, 0)
        )

    outs = [
        *(
            ((batch, chunks * size, heads * width), dtype, tokens(width, late))
            for width in (key_dim, key_dim, value_dim)
        ),
        ((batch, heads, key_dim, value_dim), jnp.float32, per_head(key_dim, value_dim))
        if given
        else None,
        ((batch, heads, 1, key_dim), jnp.float32, per_head(1, key_dim)) if given else None,
        ((batch, heads, chunks, 2, size), jnp.float32, per_chunk(late, 2, size)),
    ]
    per_token = 4 * size * (key_dim + value_dim) + 2 * size * key_dim + 10 * key_dim * value_dim
    return pl.pallas_call(
        _kernel(settings, chunks, key_dim, value_dim),
        grid=(batch, heads, stretches, 2 * spacing),
        in_specs=[
            tokens(key_dim, late),
            tokens(key_dim, early),
            tokens(value_dim, early),
            tokens(value_dim, late) if settings.normalise else None,
            tokens(value_dim, late),
            per_chunk(early, rows, size),
            in_hbm if given else None,
            per_head(1, key_dim) if given else None,
            per_head(1, LANES) if given else None,
            in_hbm if stretches > 1 else None,
            before_stretch(key_dim) if stretches > 1 else None,
            before_stretch(LANES) if stretches > 1 else None,
            in_hbm,
            per_head(1, key_dim),
        ],
        out_specs=[out and out[2] for out in outs],
        out_shape=[out and jax.ShapeDtypeStruct(*out[:2]) for out in outs],
        scratch_shapes=[
            None if given else pltpu.VMEM((1, 1, key_dim, value_dim), jnp.float32),
            None if given else pltpu.VMEM((1, 1, 1, key_dim), jnp.float32),
            pltpu.VMEM((key_dim, value_dim), jnp.float32),
            pltpu.VMEM((1, key_dim), jnp.float32),
            pltpu.VMEM((spacing, key_dim, value_dim), dtype),
            pltpu.VMEM((spacing, 1, key_dim), jnp.float32),
            pltpu.VMEM((1, LANES), jnp.float32),
            pltpu.VMEM((spacing, 1, LANES), jnp.float32),
            pltpu.VMEM((size, key_dim), dtype),
            pltpu.SemaphoreType.DMA,
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary"),
            vmem_limit_bytes=VMEM_LIMIT,
        ),
        cost_estimate=pl.CostEstimate(
            flops=batch * heads * chunks * size * per_token,
            transcendentals=batch * heads * chunks * size * size,
            bytes_accessed=backward_bytes(
                settings, dtype, numbers, key_dim, value_dim, given=given
            ),
        ),
        interpret=settings.interpret,
        name="mlstm_backward",
    )


def backward_bytes(
    settings: Settings,
    dtype: Any,
    numbers: tuple[int, ...],
    key_dim: int,
    value_dim: int,
    *,
    given: bool,
) -> int:
    """Bytes that the backward kernel moves between HBM and VMEM; k, v and the gates' numbers are
    read once more for the states.
    """
    batch, heads, chunks, rows, size = numbers
    stretches = -(-chunks // settings.spacing)
    once = 4 * key_dim + (4 if settings.normalise else 3) * value_dim
    again = (chunks - stretches) / chunks  # a stretch's last chunk is still in VMEM on the way back
    per_token = (once + again * (key_dim + value_dim)) * jnp.dtype(dtype).itemsize + 4 * (
        rows * (1 + again) + 2
    )
    kept = (stretches - 1) * (key_dim * (value_dim * jnp.dtype(dtype).itemsize + 4) + 4 * LANES)
    states = (3 if given else 1) * 4 * key_dim * (value_dim + 1) + given * 4 * LANES
    return batch * heads * (round(chunks * size * per_token) + states + kept)


def _kernel(settings: Settings, chunks: int, key_dim: int, value_dim: int) -> Any:
    """One chunk of one head: on the way forward its state is stored, on the way back its gradients
    are computed. dC and dn lie in the blocks of the results or, where no state was given and they
    are no results, in VMEM.
    """
    size, spacing, normalise = settings.size, settings.spacing, settings.normalise
    tall, wide = tile_of(key_dim), tile_of(value_dim)
    stretches, dot = -(-chunks // spacing), products(settings.interpret)

    def kernel(
        q_ref, k_ref, v_ref, h_ref, dh_ref, numbers_ref,
        C0_ref, n0_ref, m0_ref, kept_C_ref, kept_n_ref, kept_m_ref, dC_last_ref, dn_last_ref,
        dq_ref, dk_ref, dv_ref, dC_ref, dn_ref, d_gates_ref, dC_here, dn_here,
        C_ref, n_ref, all_C_ref, all_n_ref, m_ref, all_m_ref, weighted_ref, arrived,
    ):  # fmt: skip
        dC_ref, dn_ref = (
            dC_here if dC_ref is None else dC_ref,
            dn_here if dn_ref is None else dn_ref,
        )
        b, head, g, j = (pl.program_id(axis) for axis in range(4))
        stretch = stretches - 1 - g
        place = jnp.where(j < spacing, j, 2 * spacing - 1 - j)
        exists = stretch * spacing + place < chunks

        def fetch(source: Any, target: Any) -> None:
            copy = pltpu.make_async_copy(source, target, arrived)
            copy.start()
            copy.wait()

        @pl.when((g == 0) & (j == 0))
        def _() -> None:
            fetch(dC_last_ref.at[b, head], dC_ref.at[0, 0])
            dn_ref[...] = dn_last_ref[...]

        @pl.when((j == 0) & (stretch == 0))
        def _() -> None:
            if C0_ref is None:
                clear(C_ref)
                n_ref[...] = jnp.zeros_like(n_ref)
                m_ref[...] = jnp.zeros_like(m_ref)
            else:
                fetch(C0_ref.at[b, head], C_ref)
                n_ref[...] = n0_ref[0, 0]
                m_ref[...] = m0_ref[0, 0] if normalise else jnp.zeros_like(m_ref)

        if stretches > 1:

            @pl.when((j == 0) & (stretch > 0))
            def _() -> None:
                fetch(kept_C_ref.at[b, head, stretch - 1], all_C_ref.at[0])
                n_ref[...] = kept_n_ref[0, 0, 0]
                m_ref[...] = kept_m_ref[0, 0, 0]

                def load(i: Array, _: None) -> None:
                    rows = pl.ds(pl.multiple_of(i * tall, tall), tall)
                    C_ref[rows, :] = all_C_ref[0, rows, :].astype(jnp.float32)

                lax.fori_loop(0, key_dim // tall, load, None)

        @pl.when((j < spacing) & exists)
        def _() -> None:
            all_n_ref[place] = n_ref[...]
            all_m_ref[place] = m_ref[...]

            def store(i: Array, _: None) -> None:
                rows = pl.ds(pl.multiple_of(i * tall, tall), tall)
                all_C_ref[place, rows, :] = C_ref[rows, :].astype(all_C_ref.dtype)

            lax.fori_loop(0, key_dim // tall, store, None)

        @pl.when(
            (j < spacing - 1) & exists
        )  # nothing reads the state after the stretch's last chunk
        def _() -> None:
            rows = rows_of(numbers_ref[0, 0, 0])
            end = end_of_chunk(settings, rows, m_ref[:, :1])
            m_ref[...] = jnp.broadcast_to(end.m, m_ref.shape)
            kept_k = kept_of_chunk(rows, end) * k_ref[0].astype(jnp.float32)
            weighted_ref[...] = kept_k.astype(weighted_ref.dtype)
            if normalise:
                n_ref[...] = end.w * n_ref[...] + jnp.sum(kept_k, axis=0, keepdims=True)

            def step(i: Array, _: None) -> None:
                at = pl.ds(pl.multiple_of(i * tall, tall), tall)
                C_ref[at, :] = end.w * C_ref[at, :] + dot(weighted_ref[:, at], v_ref[0], (0, 0))

            lax.fori_loop(0, key_dim // tall, step, None)

        @pl.when((j >= spacing) & exists)
        def _() -> None:
            rows, m, low = rows_of(numbers_ref[0, 0, 0]), all_m_ref[place][:, :1], q_ref.dtype
            end = end_of_chunk(settings, rows, m)
            D, (w, kept, floor), pairs, nothing_left = weights_of_chunk(settings, rows, m, end)
            S = dot(q_ref[0], k_ref[0], (1, 1)) * D
            dqn, per_d = jnp.zeros((size, 1), jnp.float32), jnp.ones((size, 1), jnp.float32)
            if normalise:
                qn = denominator(S, w, q_ref[0], all_n_ref[place])
                per_d = 1 / (jnp.maximum(jnp.abs(qn), floor) + settings.eps)
                overlap = jnp.sum(
                    h_ref[0].astype(jnp.float32) * dh_ref[0].astype(jnp.float32),
                    axis=1,
                    keepdims=True,
                )
                dqn = jnp.where(jnp.abs(qn) > floor, -jnp.sign(qn) * per_d * overlap, 0)
            S = (S * per_d).T.astype(low)
            dS = (dot(dh_ref[0], v_ref[0], (1, 1)) * per_d + dqn) * D
            dS, dS_turned = dS.astype(low), dS.T.astype(low)
            weighted_ref[...] = ((w * per_d) * q_ref[0].astype(jnp.float32)).astype(low)

            def values(i: Array, _: None) -> None:
                at = pl.ds(pl.multiple_of(i * wide, wide), wide)
                dv = dot(S, dh_ref[0, :, at]) + kept * dot(
                    k_ref[0], dC_ref[0, 0, :, at].astype(low)
                )
                dv_ref[0, :, at] = dv.astype(low)

            lax.fori_loop(0, value_dim // wide, values, None)

            def keys(i: Array, sums: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
                q_dq, k_dk, overlap = sums
                at = pl.ds(pl.multiple_of(i * tall, tall), tall)
                q, k, C, dC = (
                    q_ref[0, :, at],
                    k_ref[0, :, at],
                    all_C_ref[place, at, :],
                    dC_ref[0, 0, at, :],
                )
                n, dn = all_n_ref[place, :, at], dn_ref[0, 0, :, at]
                kept_dC = kept * (dot(v_ref[0], dC.astype(low), (1, 1)) + dn)
                dq = dot(dS, k) + w * (per_d * dot(dh_ref[0], C, (1, 1)) + dqn * n)
                dk = dot(dS_turned, q) + kept_dC
                dq_ref[0, :, at], dk_ref[0, :, at] = dq.astype(low), dk.astype(low)
                q, k = q.astype(jnp.float32), k.astype(jnp.float32)
                inner = total(C.astype(jnp.float32) * dC) + total(n * dn)
                overlap = overlap + total(k * kept_dC) + end.w * inner
                dC_ref[0, 0, at, :] = end.w * dC + dot(weighted_ref[:, at], dh_ref[0], (0, 0))
                if normalise:
                    dn_ref[0, 0, :, at] = end.w * dn + jnp.sum((w * dqn) * q, axis=0, keepdims=True)
                q_dq, k_dk = (
                    q_dq + jnp.sum(q * dq, axis=1, keepdims=True),
                    k_dk + jnp.sum(k * dk, axis=1, keepdims=True),
                )
                return q_dq, k_dk, overlap

            zero = jnp.zeros((size, 1), jnp.float32)
            q_dq, k_dk, overlap = lax.fori_loop(
                0, key_dim // tall, keys, (zero, zero, jnp.zeros((1, 1), jnp.float32))
            )
            d_gates_ref[0, 0, 0] = gate_gradients(rows, pairs, nothing_left, q_dq, k_dk, overlap)

    return kernel


def total(x: Array) -> Array:
    """The sum of all entries, `1 1`."""
    return jnp.sum(jnp.sum(x, axis=0, keepdims=True), axis=1, keepdims=True)
