"""The sLSTM as a Pallas TPU (Mosaic) kernel: R stays in VMEM while the grid walks the blocks of
tokens; the state never leaves it.

Grid: (groups of heads, blocks of batch rows, blocks of tokens), the last one sequential. One token
is four products `[Bt W] @ [W W]` and the pointwise equations. A TPU register is 8 sublanes by 128
lanes, so batch rows are padded to a multiple of 8 and heads to W, a multiple of 128 lanes; heads
narrower than that share one block, with R block-diagonal. The forward pass keeps h, which is its
output, and the state before every block; the backward pass (pallas_tpu_backward.py) computes the
rest again.

bfloat16 inputs: h and R enter the products in bfloat16, sums, gates and states are float32. float32
inputs: products at precision HIGHEST.
"""

import math
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.derivatives import gradients_alone, with_first_backward_only
from pallas_kernels.filling import filled
from pallas_kernels.interpret import interpret_mode
from pallas_kernels.segments import PADDING, token_flags
from pallas_kernels.slstm.call import Call, Options
from pallas_kernels.slstm.pallas_tpu_backward import call_backward
from pallas_kernels.slstm.pallas_tpu_forward import (
    Inputs,
    Settings,
    States,
    Tokens,
    Weights,
    call_forward,
)
from pallas_kernels.tpu_sizes import LANES, SUBLANES, VMEM_LIMIT
from pallas_kernels.typing import SLSTMState, Values


def slstm_pallas_tpu(call: Call, options: Options) -> tuple[Values, SLSTMState]:
    """Brings everything into the kernel's layout and back.

    Raises NotImplementedError off the TPU, for inputs other than bfloat16 and float32, and for
    heads too wide for R to stay in VMEM.
    """
    x, R, bias, state, starts, padding = call
    interpret = interpret_mode("tpu")
    batch, time, _, heads, dim = x.shape
    if x.dtype not in (jnp.bfloat16, jnp.float32) or state.c.dtype != jnp.float32:
        raise NotImplementedError(
            f"it takes bfloat16 and float32; x is {x.dtype}, the state {state.c.dtype}"
        )
    width, packed = lanes(heads, dim)
    tokens, rows = default_blocks(batch, time, width, x.dtype.itemsize)

    flags = None
    if starts is not None or time % tokens:
        flags = (
            jnp.zeros((batch, time), jnp.int32) if starts is None else token_flags(starts, padding)
        )
        flags = filled(filled(flags.T, 0, tokens, PADDING), 1, rows)[..., None]
    wx = filled(filled(jnp.transpose(_pack(x, packed, width), (3, 1, 2, 0, 4)), 1, tokens), 3, rows)
    # R enters the products in the lower precision of x and R: a bfloat16 model gives x in float32,
    # so that its gates are not rounded, and R in bfloat16, in which it wants the products.
    R = _block_diagonal(min(R, R.astype(x.dtype), key=lambda r: r.dtype.itemsize), packed, width)
    gate_bias = jnp.swapaxes(_pack(bias.astype(jnp.float32), packed, width), 0, 1)[:, :, None]
    states = filled(jnp.transpose(_pack(jnp.stack(state), packed, width), (2, 0, 1, 3)), 2, rows)

    settings = Settings(tokens, rows, options.recurrent_gradient_clip, interpret)
    h, after = _slstm(settings, Inputs(wx, R, gate_bias, states, flags))
    h = jnp.transpose(_unpack(h, packed, dim), (2, 1, 0, 3, 4)).reshape(-1, h.shape[1], heads, dim)[
        :batch, :time
    ]
    if padding is not None:
        h = jnp.where(padding[..., None, None], 0, h)
    after = jnp.transpose(_unpack(after, packed, dim), (1, 2, 0, 3, 4)).reshape(4, -1, heads, dim)[
        :, :batch
    ]
    return h, SLSTMState(*after)


def lanes(heads: int, dim: int) -> tuple[int, int]:
    """(lanes W of a group of heads, heads in a group): as many heads as 128 lanes hold, W filled up
    to a multiple of 128.
    """
    packed = math.gcd(heads, max(LANES // dim, 1)) if dim < LANES else 1
    return -(-packed * dim // LANES) * LANES, packed


def default_blocks(batch: int, time: int, width: int, itemsize: int) -> tuple[int, int]:
    """(tokens, batch rows) of a block.

    A time step moves R (W·4W entries) from VMEM into the MXU however few rows there are, so a block
    has all rows, up to 128. Its tokens are so many that the backward pass's products over the whole
    block have about 256 rows (tokens times batch rows), which fills the MXU, and at least 8, so
    that the 0.35 us that a grid step costs are small beside their time. Where VMEM does not hold
    them the tokens are halved until it does. Raises NotImplementedError where it does not even hold
    one token.
    """
    rows = min(-(-batch // SUBLANES) * SUBLANES, 128)
    # the fewest rows that make the same number of blocks, so that little is filled up
    rows = -(-batch // (-(-batch // rows))) // -SUBLANES * -SUBLANES
    tokens = min(time, max(256 // rows, 8))
    while vmem_bytes(tokens, rows, width, itemsize) > VMEM_LIMIT:
        if tokens == 1:
            raise NotImplementedError(f"VMEM does not hold R for heads of {width} lanes")
        tokens //= 2
    return -(-time // (-(-time // tokens))), rows


def vmem_bytes(tokens: int, rows: int, width: int, itemsize: int) -> int:
    """Bytes of VMEM that the backward kernel takes, which is more than the forward one does.

    Blocks that change from step to step count twice, as the next one is fetched while one is in
    use; blocks that are fetched once and scratch count once; then the temporaries of a step.
    """
    matrix, row = 4 * width * width, rows * width
    resident = matrix * (2 * itemsize + 4)  # R twice (one is transposed), its gradient
    # x, dx, h, dh; states
    moving = 2 * tokens * row * itemsize * (4 + 4 + 1 + 1) + 2 * 4 * (4 + 4 + 3) * row
    scratch = 4 * tokens * row * (4 + 3 + 1) + 3 * 4 * row
    return resident + moving + scratch + 2 * 4 * tokens * row * 4


def _value(settings: Settings, inputs: Inputs) -> tuple[Tokens, States]:
    h, after, _ = call_forward(settings, inputs, keep=False)
    return h, after


def _forward(settings: Settings, inputs: Inputs) -> Any:
    h, after, kept = call_forward(settings, inputs, keep=True)
    return (h, after), (inputs._replace(state=None), h, kept)


def _backward(settings: Settings, residuals: Any, cotangents: Any) -> Any:
    return (call_backward(settings, *residuals, *cotangents),)


_slstm = with_first_backward_only(
    _value, _forward, _backward, gradients_alone("slstm", "pallas_tpu"), name="cell"
)


def _pack(x: Float[Array, "*D H V"], packed: int, width: int) -> Float[Array, "*D G W"]:
    """Neighbouring heads side by side in one axis, filled up with zeros."""
    x = x.reshape(*x.shape[:-2], x.shape[-2] // packed, packed * x.shape[-1])
    return filled(x, x.ndim - 1, width)


def _unpack(x: Float[Array, "*D W"], packed: int, dim: int) -> Float[Array, "*D M V"]:
    return x[..., : packed * dim].reshape(*x.shape[:-1], packed, dim)


def _block_diagonal(R: Float[Array, "4 H V V"], packed: int, width: int) -> Weights:
    """The matrices of a group's heads along the diagonal of one, zeros around them."""
    gates, heads, dim, _ = R.shape
    R = R.reshape(gates, heads // packed, packed, dim, 1, dim)
    R = jnp.where(jnp.eye(packed, dtype=bool)[:, None, :, None], R, 0)
    R = jnp.swapaxes(R.reshape(gates, -1, packed * dim, packed * dim), 0, 1)
    return filled(filled(R, 2, width), 3, width)
