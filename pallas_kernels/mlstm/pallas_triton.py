"""The mLSTM on NVIDIA GPUs from Ampere on (sm_80), through Pallas' Triton lowering: four kernels,
forward and backward.

A walk over the chunks keeps one tile of C in registers as float32 and leaves the state before every
chunk, rounded to the type of the inputs, for the products that read it; all chunks' outputs follow
in parallel. The backward pass walks twice, forward to have the states again (keeping them would
cost 2·K·V/L bytes per token) and back with dC, and then takes dq, dk and dv of all chunks in
parallel.
"""

from typing import Any

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.typing import DTypeLike
from jaxtyping import Array

from pallas_kernels.derivatives import gradients_alone, with_first_backward_only
from pallas_kernels.dispatch import HOPPER, target_device
from pallas_kernels.filling import filled
from pallas_kernels.interpret import interpret_mode
from pallas_kernels.mlstm import pallas_triton_tiles as tiles
from pallas_kernels.mlstm.call import Call, Options
from pallas_kernels.mlstm.gates import chunk_gates, gate_gradients, output_gradients
from pallas_kernels.mlstm.pallas_triton_backward import key_gradients, value_gradients
from pallas_kernels.mlstm.pallas_triton_forward import outputs, walk
from pallas_kernels.products import product_dtype
from pallas_kernels.tuning import tuned
from pallas_kernels.typing import MLSTMState, Values

CHUNKS = (16, 32, 64, 128)  # a chunk's L·L weights are in registers

# K x V of the widest bfloat16 heads on Hopper. On an H100, jax 0.11.2, two calls with heads of
# 256 x 512 and the same input differed at T 8192 by up to 0.36 of an array's largest entry, while
# heads of 128 x 256 repeated to the bit; the cause is not known.
HOPPERS_WIDEST = 128 * 256

# device kinds without sm_80's products
TOO_OLD = ("Tesla", "V100", "P100", "T4", "GTX", "TITAN", "Quadro", "RTX 20", "AMD", "Radeon")


def mlstm_pallas_triton(call: Call, options: Options) -> tuple[Values, MLSTMState]:
    """The backend "pallas_triton": bfloat16, float16 and float32 (three TF32 products for each).

    K and V are filled up with zeros to a power of two up to 64 and to a multiple of 64 beyond; T to
    a multiple of the chunk. float16 is multiplied as float32 (`product_dtype`). Raises
    NotImplementedError for T = 1, float64, mixed types, other chunk sizes than CHUNKS, devices
    before sm_80, and on Hopper bfloat16 heads of more than HOPPERS_WIDEST.
    """
    q, k, v, log_i, log_f, state, starts = call
    normalise, chunk_size, eps = options
    mode = interpret_mode("gpu")
    kind = target_device()[1]
    if mode is False and any(name in kind for name in TOO_OLD):
        raise NotImplementedError(
            f"it needs an NVIDIA GPU with sm_80 or later, and this program is lowered for a {kind}"
        )
    if mode not in (False, True):
        raise NotImplementedError(
            "it is interpreted by interpret=True alone, there is no simulator for Triton kernels"
        )
    if len({q.dtype, k.dtype, v.dtype}) > 1 or q.dtype not in (
        jnp.bfloat16,
        jnp.float16,
        jnp.float32,
    ):
        raise NotImplementedError(
            f"q, k, v must be all bfloat16, float16 or float32; they are {q.dtype}, {k.dtype}, "
            f"{v.dtype}"
        )
    time, key_dim, value_dim = q.shape[1], q.shape[-1], v.shape[-1]
    if time == 1:
        raise NotImplementedError('it is for sequences, one step is "recurrent"')
    dtype, out_dtype = product_dtype(q.dtype, state.C.dtype), v.dtype
    too_wide = dtype == jnp.bfloat16 and key_dim * value_dim > HOPPERS_WIDEST
    if mode is False and too_wide and HOPPER.search(kind):
        raise NotImplementedError(
            f"its results for heads of {key_dim} x {value_dim} in bfloat16 are not reliable on a "
            f'{kind}; "pallas_gpu" (jax >= 0.11) serves them there'
        )
    known = tuned("mlstm/pallas_triton", K=key_dim, V=value_dim, dtype=dtype.name) or {}
    blocks = default_blocks(time, key_dim, value_dim, dtype, kind, known.get("chunk_size"))
    size = chunk_size or blocks.chunk
    if size not in CHUNKS:
        raise NotImplementedError(f"chunk_size must be one of {CHUNKS}; it is {size}")

    tall, wide = _width(key_dim), _width(value_dim)
    q, k, v = (
        filled(filled(x.astype(dtype), 1, size), -1, width)
        for x, width in ((q, tall), (k, tall), (v, wide))
    )
    log_i, log_f = filled(log_i, 1, size, -jnp.inf), filled(log_f, 1, size, 0)
    starts = None if starts is None else filled(starts, 1, size, False)
    C = filled(filled(state.C, -1, wide), -2, tall)
    state = MLSTMState(C, filled(state.n, -1, tall), state.m)
    settings = tiles.Options(mode, normalise, eps, key_dim**-0.5, blocks._replace(chunk=size))
    h, state = _mlstm(settings, Call(q, k, v, log_i, log_f, state, starts))
    return h[:, :time, :, :value_dim].astype(out_dtype), MLSTMState(
        state.C[:, :, :key_dim, :value_dim], state.n[:, :, :key_dim], state.m
    )


def default_blocks(
    time: int,
    key_dim: int,
    value_dim: int,
    dtype: DTypeLike,
    device_kind: str,
    measured: int | None = None,
) -> tiles.Blocks:
    """Sizes for which no kernel spills registers (docs/aot_gpu.md); L is the measured one, or the
    longest of those.

    A chunk's state is written and read once: 4·K·V/L bytes per token in bfloat16, against 4·(K+V)
    for q, k, v and h. At L = 128 that is 1.0 to 1.5 KB for heads of 128/256 and 8.2 to 4.1 KB for
    512/512. The work within chunks is 2·L·(K·V/wide + V) products per token against 4·K·V for the
    state. So heads from 128 on take L = 128 on Hopper. Elsewhere operands are in registers too: L =
    64 (float32, which splits its operands: 32), and the state's bytes and the products then take
    the same time on an A100 (2 TB/s, half of 312 TFLOP/s). A sequence is not filled up beyond the
    next power of two.
    """
    hopper = HOPPER.search(device_kind) is not None
    if jnp.dtype(dtype) == jnp.float32:
        chunk, blocks = (
            64 if hopper else 32,
            tiles.Blocks(0, tall=64, wide=64, keys=32, deep=32, warps=8),
        )
    else:
        wide_heads = key_dim * value_dim >= 128 * 128
        # with deep = 64 a kernel spills 56 bytes on an A100
        chunk, deep = 128 if hopper and wide_heads else 64, 64 if hopper else 32
        blocks = tiles.Blocks(0, tall=64, wide=128, keys=64, deep=deep, warps=8)
    return blocks._replace(chunk=min(measured or chunk, max(16, pl.next_power_of_2(time))))


def _width(size: int) -> int:
    """Triton's arrays have sizes that are powers of two: 16, 32, or any number of tiles of 64."""
    return max(16, pl.next_power_of_2(size)) if size < 64 else -(-size // 64) * 64


def _value(options: tiles.Options, call: Call) -> tuple[Values, MLSTMState]:
    """The op with all sizes filled up."""
    return _forward(options, call)[0]


def _forward(options: tiles.Options, call: Call) -> Any:
    q, k, v, log_i, log_f, state, starts = call
    normalise = options.normalise
    gates = chunk_gates(log_i, log_f, state.m, starts, options.blocks.chunk, normalise=normalise)
    C, n, last_C, last_n = walk(
        options, k, v, gates.kept, _if(normalise, gates.kept), gates.w_last, state.C, state.n
    )
    h, qn = outputs(options, q, k, v, gates, C, n)
    after = MLSTMState(last_C, last_n if normalise else state.n, gates.m[..., -1])
    return (h, after), (q, k, v, h, qn, gates, state, starts)


def _backward(options: tiles.Options, kept: Any, cotangents: Any) -> Any:
    normalise = options.normalise
    q, k, v, h, qn, gates, state, starts = kept
    dh, after = cotangents
    per_d, dqn = output_gradients(h, dh, qn, gates.floor, options.eps, normalise=normalise)
    C, n, _, _ = walk(
        options, k, v, gates.kept, _if(normalise, gates.kept), gates.w_last, state.C, state.n
    )
    to_state = options.scale * gates.w
    d_n = _if(normalise, after.n)
    dC, dn, first_dC, first_dn = walk(
        options, q, dh, to_state * per_d, to_state * dqn, gates.w_last, after.C, d_n, reverse=True
    )
    dq, dk, q_dq, k_dk, overlap = key_gradients(
        options, q, k, v, dh, gates, per_d, dqn, C, dC, n, dn
    )
    dv = value_gradients(options, q, k, dh, gates, per_d, dC)
    d_log_i, d_log_f = gate_gradients(q_dq, k_dk, overlap, starts, gates.wiped)
    dm = jnp.sum(state.C * first_dC, axis=(-2, -1)) + jnp.sum(state.n * first_dn, axis=-1)
    d_state = MLSTMState(first_dC, _if(normalise, first_dn), _if(normalise, dm))
    return (Call(dq, dk, dv, d_log_i, d_log_f, d_state, None),)


_mlstm = with_first_backward_only(
    _value, _forward, _backward, gradients_alone("mlstm", "pallas_triton"), name="cell"
)


def _if(flag: bool, x: Array) -> Array:
    return x if flag else jnp.zeros_like(x)
