"""`mlstm_back` on NVIDIA GPUs from Ampere on (sm_80), through Pallas' Triton lowering: one kernel
forward, one backward.

Forward h, the gate and c are read once and y is written: 4 arrays of h's size. Backward dy and
these are read and their gradients are written: 7. Nothing but what was given is kept for it.
"""

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array

from pallas_kernels.derivatives import gradients_alone, with_first_backward_only
from pallas_kernels.interpret import triton_mode
from pallas_kernels.mlstm_back import pallas_triton_kernels as kernels
from pallas_kernels.mlstm_back.call import Call, Inner, Options
from pallas_kernels.mlstm_back.pallas_triton_kernels import Blocks, Settings
from pallas_kernels.typing import state_dtype

MOST_PIECES = 16  # of a head
ENTRIES = 4096  # at most so many of a tile, if it has more than one token
PER_WARP = 256  # entries of a piece: each thread reads 8 neighbours
PROGRAMS = 1056  # about so many in the backward pass, where there are enough tokens


def mlstm_back_pallas_triton(call: Call, options: Options) -> Inner:
    """The backend "pallas_triton": bfloat16, float16 and float32.

    Raises NotImplementedError for other types, one token, heads that are no sum of few powers of
    two of one size, and devices before sm_80.
    """
    mode = triton_mode()
    h, V = call.h, call.h.shape[-1]
    if h.dtype not in (jnp.bfloat16, jnp.float16, jnp.float32):
        raise NotImplementedError(f"h must be bfloat16, float16 or float32; it is {h.dtype}")
    if (high := state_dtype(*(x for x in call if x is not None))) != jnp.float32:
        raise NotImplementedError(f"it computes in float32; one of the inputs asks for {high}")
    if h.shape[0] * h.shape[1] == 1:
        raise NotImplementedError("it is for several tokens; of one, XLA makes as few kernels")
    blocks = blocks_of(V)
    check_pieces("a head", V, blocks)
    return _back((Settings("mlstm_back", mode, V, options, blocks), PROGRAMS), call)


def blocks_of(head_dim: int) -> Blocks:
    """Sizes for heads of V channels."""
    piece = min(head_dim & -head_dim, ENTRIES)
    tokens = 1 << (max(1, ENTRIES // head_dim).bit_length() - 1)
    return Blocks(tokens, piece, warps=max(1, min(8, tokens * piece // PER_WARP)))


def check_pieces(what: str, channels: int, blocks: Blocks) -> None:
    """Raises NotImplementedError for channels that are many pieces."""
    if channels > MOST_PIECES * blocks.piece:
        raise NotImplementedError(
            f"{what} must be at most {MOST_PIECES} times a power of two; it has {channels} channels"
        )


def stretches_of(settings: Settings, shape: tuple[int, int], programs: int) -> int:
    """Into how many stretches of tokens the backward pass of arrays of this shape goes."""
    heads = shape[1] // settings.head_dim
    return min(pl.cdiv(shape[0], settings.blocks.tokens), pl.cdiv(programs, heads))


def _value(static: tuple[Settings, int], call: Call) -> Inner:
    return kernels.forward(static[0], *_rows(call)).reshape(call.gate.shape)


def _forward(static: tuple[Settings, int], call: Call) -> tuple[Inner, Call]:
    return _value(static, call), call


def _backward(static: tuple[Settings, int], call: Call, dy: Inner) -> tuple[Call]:
    settings, programs = static
    rows = _rows(call)
    stretches = stretches_of(settings, rows.h.shape, programs)
    dy = dy.reshape(rows.h.shape)
    dh, d_gate, *dc, sums = kernels.backward(settings, stretches, dy, *rows)
    d_scale, *d_skip = jnp.sum(sums, axis=0)
    gradients = Call(dh, d_scale, d_gate, *(dc or [None]), *(d_skip or [None]))
    return (
        Call(
            *(
                None if x is None else dx.reshape(x.shape).astype(x.dtype)
                for x, dx in zip(call, gradients, strict=True)
            )
        ),
    )


_back = with_first_backward_only(
    _value, _forward, _backward, gradients_alone("mlstm_back", "pallas_triton"), name="operands"
)


def _rows(call: Call) -> Call:
    """Arrays of tokens as [R I], rows of weights in float32."""
    channels = call.scale.shape[0]

    def of(x: Array | None) -> Array | None:
        if x is None:
            return None
        return x.astype(jnp.float32) if x.ndim == 1 else x.reshape(-1, channels)

    return Call(*(of(x) for x in call))
