"""The mLSTM on TPUs (Mosaic): one kernel forward, one back, with C in VMEM from the first chunk to
the last.

The grid walks the chunks of one head after the other. The forward kernel leaves the state for the
backward one only before every S-th chunk (`default_blocks`); the backward kernel takes these
stretches from the last to the first, computes the states before each of the S chunks again, which
stay in VMEM, and then goes back through the chunks with dC in VMEM. pallas_tpu_gates.py has the
weights.
"""

from typing import Any

import jax.numpy as jnp

from pallas_kernels.derivatives import gradients_alone, with_first_backward_only
from pallas_kernels.filling import filled
from pallas_kernels.interpret import interpret_mode
from pallas_kernels.mlstm.call import Call, Options
from pallas_kernels.mlstm.pallas_tpu_backward import call_backward
from pallas_kernels.mlstm.pallas_tpu_forward import call_forward
from pallas_kernels.mlstm.pallas_tpu_gates import Settings, last_stabiliser, pack
from pallas_kernels.tpu_sizes import LANES
from pallas_kernels.tuning import tuned
from pallas_kernels.typing import MLSTMState, Values

MOST = 1280 * 1280  # of K·V, as in 2.7B: the backward kernel then takes 48 of 56 MiB
WIDEST = 2560  # of K and of V: the tokens of a chunk lie in VMEM too


def mlstm_pallas_tpu(call: Call, options: Options) -> tuple[Values, MLSTMState]:
    """The backend "pallas_tpu": bfloat16 (products of bfloat16, sums in float32) and float32
    (precision HIGHEST).

    K and V are filled up with zeros to a multiple of 128 where they are none, T to a multiple of
    the chunk. C is a bfloat16 operand of q C and rounded for it, its sum over time is not: over
    65,536 tokens at K = V = 64 h is 2.4e-3 to 2.9e-3 off (root mean square over that of h, against
    float64), early and late alike, whether C fades in 20 tokens or not at all (`python -m
    benchmarks.long_sequences --backend=pallas_tpu`; in float32 2e-6). Raises NotImplementedError
    for other or mixed types, K·V beyond 1280·1280, K or V beyond 2560, and chunks that are no
    multiple of 16 tokens.
    """
    q, k, v, log_i, log_f, state, starts = call
    normalise, chunk_size, eps = options
    mode = interpret_mode("tpu")
    if len({q.dtype, k.dtype, v.dtype}) > 1 or q.dtype not in (jnp.bfloat16, jnp.float32):
        raise NotImplementedError(
            f"q, k, v must be all bfloat16 or all float32; they are {q.dtype}, {k.dtype}, {v.dtype}"
        )
    time, key_dim, value_dim = q.shape[1], q.shape[-1], v.shape[-1]
    wide_key, wide_value = (-(-x // LANES) * LANES for x in (key_dim, value_dim))
    if wide_key * wide_value > MOST or max(wide_key, wide_value) > WIDEST:
        raise NotImplementedError(
            f"a head must fit VMEM: K x V up to {MOST}, each up to {WIDEST}, and not {key_dim} x "
            f"{value_dim}"
        )
    if chunk_size is not None and (chunk_size % 16 or chunk_size > 512):
        raise NotImplementedError(
            f"chunk_size must be a multiple of 16 up to 512; it is {chunk_size}"
        )
    size, spacing = blocks(time, wide_key, wide_value, q.dtype, chunk_size)

    q, k, v = (
        filled(filled(x, 1, size), -1, width)
        for x, width in ((q, wide_key), (k, wide_key), (v, wide_value))
    )
    log_i, log_f = filled(log_i, 1, size, -jnp.inf), filled(log_f, 1, size, 0)
    starts = None if starts is None else filled(starts, 1, size, False)
    if state is not None:
        C = filled(filled(state.C, -1, wide_value), -2, wide_key)
        state = MLSTMState(C, filled(state.n, -1, wide_key), state.m)
    settings = Settings(size, spacing, normalise, eps, key_dim**-0.5, mode)
    h, state = _mlstm(settings, Call(q, k, v, log_i, log_f, state, starts))
    return h[:, :time, :, :value_dim], MLSTMState(
        state.C[:, :, :key_dim, :value_dim], state.n[:, :, :key_dim], state.m
    )


def blocks(
    time: int, key_dim: int, value_dim: int, dtype: jnp.dtype, chunk_size: int | None
) -> tuple[int, int]:
    """(tokens of a chunk, chunks between two states that are kept): as given, as measured, or by
    `default_blocks`.
    """
    known = tuned("mlstm/pallas_tpu", K=key_dim, V=value_dim, dtype=jnp.dtype(dtype).name) or {}
    return default_blocks(time, key_dim, value_dim, dtype, chunk_size or known.get("chunk_size"))


def default_blocks(
    time: int, key_dim: int, value_dim: int, dtype: jnp.dtype, chunk_size: int | None = None
) -> tuple[int, int]:
    """(L tokens of a chunk, S chunks between two states that are kept for the backward pass).

    L: per token a chunk costs 2·L·(K+V) FLOPs for its pairs and 4·K·V for the state on the matrix
    unit, and about 3·K·V/L operations of the vector unit (1/32 of its rate on v5e) for decaying and
    rounding C: 256 for 512 x 512 and beyond, 128 below. S: in bfloat16 a kept state is 2·K·V bytes,
    against 4·(K+V) bytes per token of q, k, v, h. 2048 tokens apart it is 2·1024·1024/2048 = 1 KB
    of 8 KB for the widest head, less for others, and nothing for T <= 2048. The S states of a
    stretch are in VMEM in the type of the inputs, up to 16 MiB: exactly 8 chunks of 256 tokens at
    1024 x 1024.
    """
    itemsize = jnp.dtype(dtype).itemsize
    wide = key_dim * value_dim >= 512 * 512 and itemsize == 2
    size = chunk_size or min(256 if wide else 128, -(-time // 16) * 16)
    chunks = -(-time // size)
    spacing = max(1, min(2048 // size, 2**24 // (key_dim * value_dim * itemsize), chunks))
    stretches = -(-chunks // spacing)
    return size, -(-chunks // stretches)


def _value(settings: Settings, call: Call) -> tuple[Values, MLSTMState]:
    """All sizes filled up."""
    return _run(settings, call, keep=False)[0]


def _forward(settings: Settings, call: Call) -> Any:
    return _run(settings, call, keep=True)


def _run(settings: Settings, call: Call, *, keep: bool) -> Any:
    q, k, v, log_i, log_f, state, starts = call
    m = jnp.zeros(log_i[:, 0].shape, jnp.float32) if state is None else state.m
    numbers = pack(log_i, log_f, starts, settings.size)
    h, C, n, kept = call_forward(settings, q, k, v, numbers, state, keep=keep)
    return (h, MLSTMState(C, n, last_stabiliser(settings, numbers, m))), (
        q,
        k,
        v,
        h,
        numbers,
        state,
        kept,
        starts,
    )


def _backward(settings: Settings, residuals: Any, cotangents: Any) -> Any:
    q, k, v, h, numbers, state, kept, starts = residuals
    dh, after = cotangents
    (dq, dk, dv), d_state, (d_log_i, d_log_f) = call_backward(
        settings, q, k, v, h, dh, numbers, state, kept, after
    )
    if starts is not None:
        d_log_f = jnp.where(starts[..., None], 0, d_log_f)
    if state is not None:
        dm = jnp.sum(state.C * d_state[0], axis=(-2, -1)) + jnp.sum(state.n * d_state[1], axis=-1)
        d_state = MLSTMState(*d_state, dm if settings.normalise else jnp.zeros_like(dm))
    return (Call(dq, dk, dv, d_log_i, d_log_f, d_state, None),)


_mlstm = with_first_backward_only(
    _value, _forward, _backward, gradients_alone("mlstm", "pallas_tpu"), name="cell"
)
