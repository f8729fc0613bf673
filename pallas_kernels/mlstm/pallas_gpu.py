"""The mLSTM on NVIDIA Hopper GPUs (sm_90a), through Pallas' Mosaic GPU lowering: TMA, WGMMA,
forward and backward.

Three kernels (pallas_gpu_kernels.py) do all products of the size of the state or of the chunk, and
of narrow heads two (below). pallas_gpu_chunks.py puts them together; docs/kernels.md has the
arithmetic that chose them. With the numbers of gates.py, y = numerator, d = max(|qn|, floor) + eps,
s = 1/sqrt(K), per chunk:

  walk      C'   = w_last C + sum_t kept_t k_t v_t
            dC   = w_last dC' + sum_t (s w_t / d_t) q_t dh_t
  pairs     P_ts = s D_ts (q_t·k_s)
            dS_ts = s D_ts (dh_t·v_s / d_t + dqn_t)
  combine   h_t  = (sum_s P_ts v_s + s w_t q_t C) / d_t
            dv_s = sum_t P_ts dh_t / d_t + kept_s k_s dC'
            dq_t = sum_s dS_ts k_s + s w_t (C dh_t / d_t + dqn_t n)
            dk_s = sum_t dS_ts q_t + kept_s (dC' v_s + dn')

With narrow heads one kernel, `attend` (pallas_gpu_attend.py), makes the pairs and combines them:
P and dS are never in memory.

C and dC stay in float32 registers along the whole sequence. They, P and dS enter products rounded
to the type of the inputs, as do kept_t k_t and (s w_t / d_t) q_t. The normaliser n, K numbers per
chunk, is XLA's, in float32.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.derivatives import gradients_alone, with_first_backward_only
from pallas_kernels.filling import filled
from pallas_kernels.interpret import hopper_mode
from pallas_kernels.mlstm.call import Call, Options
from pallas_kernels.mlstm.gates import (
    chunk_gates,
    gate_gradients,
    normaliser_slope,
    per_denominator,
)
from pallas_kernels.mlstm.pallas_gpu_normaliser import walk_vectors
from pallas_kernels.tuning import tuned
from pallas_kernels.typing import Keys, MLSTMState, Values

CHUNKS = (64, 128, 256, 512, 1024)
# Of which narrow heads have a kernel of their own: two tiles of 64 tokens are a cluster, and a copy
# takes at most 256 numbers.
NARROW_CHUNKS = (128, 256)
MAX_HEADS = 65535  # of all rows of the batch: what the slowest axis of a CUDA grid takes


def mlstm_pallas_gpu(call: Call, options: Options) -> tuple[Values, MLSTMState]:
    """The backend "pallas_gpu": bfloat16; K and V are filled up with zeros to multiples of 64, T to
    one of the chunk.

    Raises NotImplementedError for other types (WGMMA would round float32 to TF32, and float16 holds
    no C), one token, more than MAX_HEADS, other chunk sizes than CHUNKS, jax before 0.11 and
    devices that are not Hopper.
    """
    q, k, v, log_i, log_f, state, starts = call
    normalise, chunk_size, eps = options
    mode = hopper_mode()
    if {q.dtype, k.dtype, v.dtype} != {jnp.dtype(jnp.bfloat16)}:
        raise NotImplementedError(
            f"q, k, v must be all bfloat16; they are {q.dtype}, {k.dtype}, {v.dtype}"
        )
    if q.shape[1] == 1:
        raise NotImplementedError('one token is a step of the recurrence; "recurrent" does it')
    if q.shape[0] * q.shape[2] > MAX_HEADS:
        raise NotImplementedError(
            f"batch times heads is at most {MAX_HEADS}; it is {q.shape[0] * q.shape[2]}"
        )
    time, key_dim, value_dim = q.shape[1], q.shape[-1], v.shape[-1]
    known = tuned("mlstm/pallas_gpu", K=key_dim, V=value_dim, dtype=q.dtype.name) or {}
    size = chunk_size or default_chunk_size(time, key_dim, value_dim, known.get("chunk_size"))
    if size not in CHUNKS:
        raise NotImplementedError(f"chunk_size must be one of {CHUNKS}; it is {size}")

    q, k, v = (filled(filled(x, 1, size), -1, 64) for x in (q, k, v))
    log_i, log_f = filled(log_i, 1, size, -jnp.inf), filled(log_f, 1, size)
    starts = None if starts is None else filled(starts, 1, size, False)
    if state is not None:
        C, n = filled(filled(state.C, -1, 64), -2, 64), filled(state.n, -1, 64)
        state = MLSTMState(C, n, state.m)
    narrow = size in NARROW_CHUNKS and has_narrow_heads(key_dim, value_dim)
    settings = (mode, narrow, normalise, size, eps, key_dim**-0.5)
    h, state = _mlstm(settings, Call(q, k, v, log_i, log_f, state, starts))
    return h[:, :time, :, :value_dim], MLSTMState(
        state.C[:, :, :key_dim, :value_dim], state.n[:, :, :key_dim], state.m
    )


def default_chunk_size(time: int, key_dim: int, value_dim: int, measured: int | None = None) -> int:
    """Tokens per chunk, the measured number where there is one; short sequences take the shortest
    chunk that holds them.

    Per token and head a chunk of L costs 4·K·V/L bytes for its state, written and read in bf16, and
    with wide heads about 2·L for its pairs, likewise (half of L·L of them): least at L =
    sqrt(2·K·V), rounded down to a power of two (256/512: 512). The pairs also cost L·(K+V) FLOPs,
    so that benchmarks/roofline.py finds 512 the fastest for wider heads too, forward and back, and
    256 for all narrow ones.
    """
    best = 1 << ((2 * key_dim * value_dim).bit_length() - 1) // 2
    best = 256 if has_narrow_heads(key_dim, value_dim) else max(64, min(best, 512))
    return min(measured or best, max(64, 1 << (time - 1).bit_length()))


def has_narrow_heads(key_dim: int, value_dim: int) -> bool:
    """Whether a block of threads has room for all columns of a head, each width filled up to a
    multiple of 64, so that a chunk's pairs are made where they are used (pallas_gpu_attend.py).

    WGMMA writes 256 columns at most. K + V of 384 fill the 96 KB of shared memory that a block may
    take for keys and values: two steps of 64 tokens, two bytes each.
    """
    widths = [-(-size // 64) * 64 for size in (key_dim, value_dim)]
    return max(widths) <= 256 and sum(widths) <= 384


def _value(options: tuple[Any, ...], call: Call) -> tuple[Values, MLSTMState]:
    """All sizes filled up; options are the fields of pallas_gpu_tiles.Options."""
    return _forward(options, call)[0]


def _forward(options: tuple[Any, ...], call: Call) -> Any:
    q, k, v, log_i, log_f, state, starts = call
    kernels, options = _kernels(options)
    first = _first(q, state)
    gates = chunk_gates(log_i, log_f, first.m, starts, options.chunk, normalise=options.normalise)
    C, last_C = kernels.walk(options, k, v, gates.kept, gates.w_last, first.C)
    n, last_n = None, first.n
    if options.normalise:
        n, last_n = walk_vectors(k, gates.kept, gates.w_last, first.n)
    h, qn = kernels.outputs(options, q, k, v, C, n, gates)
    return (h, MLSTMState(last_C, last_n, gates.m[..., -1])), (
        q,
        k,
        v,
        h,
        qn,
        gates,
        C,
        last_C,
        n,
        last_n,
        state,
        starts,
    )


def _backward(options: tuple[Any, ...], kept: Any, cotangents: Any) -> Any:
    kernels, options = _kernels(options)
    q, k, v, h, qn, gates, C, last_C, n, last_n, state, starts = kept
    dh, after = cotangents
    after = _first(q, after)
    if dh is None:
        dh = jnp.zeros_like(h)
    normalise, of_state = options.normalise, options.scale * gates.w
    per_d = per_denominator(qn, gates.floor, options.eps) if normalise else jnp.ones_like(gates.row)
    dC, first_dC = kernels.walk(
        options, q, dh, of_state * per_d, gates.w_last, after.C,
        reverse=True, keep_last=state is not None,
    )  # fmt: skip
    overlap_after = _overlap_after(C, dC, last_C, after.C)
    dv = kernels.value_gradients(options, q, k, dh, dC, gates, per_d)
    dq, q_dq, overlap, dS = kernels.query_gradients(options, q, k, v, h, dh, C, n, gates, qn, per_d)
    slope = dn = None
    first_dn, dm = jnp.zeros_like(after.n), jnp.zeros_like(after.m)
    if normalise:
        slope = normaliser_slope(overlap, qn, gates.floor)
        of_q = of_state * (per_d * slope)
        dn, first_dn = walk_vectors(q, of_q, gates.w_last, after.n, reverse=True)
        overlap_after = overlap_after + _overlap_after(n, dn, last_n, after.n)
        if state is not None:
            dm = jnp.sum(state.C * first_dC, axis=(-2, -1)) + jnp.sum(state.n * first_dn, axis=-1)
    dk, k_dk = kernels.key_gradients(options, q, k, v, dh, dC, dn, gates, per_d, slope, dS)
    d_log_i, d_log_f = gate_gradients(q_dq, k_dk, overlap_after, starts, gates.wiped)
    d_state = None if state is None else MLSTMState(first_dC, first_dn, dm)
    return (Call(dq, dk, dv, d_log_i, d_log_f, d_state, None),)


_mlstm = with_first_backward_only(
    _value,
    _forward,
    _backward,
    gradients_alone("mlstm", "pallas_gpu"),
    name="cell",
    unused_are_none=True,
)


def _first(q: Keys, state: MLSTMState | None) -> MLSTMState:
    """What a walk begins with, a state or its cotangent: zeros for what is not given, but for C,
    which the kernel then does not read: it is as large as the values of K tokens, in float32.
    """
    batch, _, heads, key_dim = q.shape
    C, n, m = (None, None, None) if state is None else state
    n = jnp.zeros((batch, heads, key_dim)) if n is None else n
    return MLSTMState(C, n, jnp.zeros((batch, heads)) if m is None else m)


def _kernels(options: tuple[Any, ...]) -> tuple[Any, Any]:
    """(the module of the kernels, its Options from a tuple of the fields).

    Imported when it is needed, because jax before 0.11 can't import it, and because its import
    takes time that the callers of other backends need not spend.
    """
    from pallas_kernels.mlstm import pallas_gpu_chunks
    from pallas_kernels.mlstm.pallas_gpu_tiles import Options

    return pallas_gpu_chunks, Options(*options)


def _overlap_after(
    before: Float[Array, "B H N *K"],
    d_after: Float[Array, "B H N *K"],
    last: Float[Array, "B H *K"],
    d_last: Float[Array, "B H *K"] | None,
) -> Float[Array, "B H N"]:
    """<C, dC> after each chunk, from C before and dC after it; the last pair in float32, 0 where
    nobody uses it.
    """
    axes = tuple(range(3, before.ndim))
    inner = jnp.sum(
        before[:, :, 1:].astype(jnp.float32) * d_after[:, :, :-1].astype(jnp.float32), axis=axes
    )
    if d_last is None:
        at_end = jnp.zeros(last.shape[:2])
    else:
        at_end = jnp.sum(last * d_last, axis=tuple(range(2, last.ndim)))
    return jnp.concatenate([inner, at_end[..., None]], axis=2)
