"""One token of the mLSTM on NVIDIA GPUs: every entry of the state is read once and written once,
in its place.

As XLA compiles `recurrent.mlstm_step`, C is copied, read for the update, written, and read again
for its product with q, in seven kernels: of 9 MB a block of the 7B model's moves 21. Here a program
has one head's K x wide part of C, from which it makes the new part and that part's outputs; one
more program for each head does the same with n. Weights of the gates before, and the quotient
after, are elementwise, so that XLA joins them with what is around the cell.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from pallas_kernels.derivatives import in_32_bits, with_backward
from pallas_kernels.filling import filled
from pallas_kernels.mlstm import pallas_triton_tiles as tiles
from pallas_kernels.mlstm.call import Call, Options
from pallas_kernels.mlstm.exponents import denominator, quotient
from pallas_kernels.mlstm.recurrent import mlstm_recurrent, step_gates
from pallas_kernels.typing import MLSTMState, Values

# A part of 256 x 32 numbers is 32 KB; at batch 1 the 7B model has 128 of them, one for each of an
# H100's multiprocessors. Rows of 32 numbers are whole lines of 128 bytes.
TALL, WIDE, WARPS = 256, 32, 8


def mlstm_step_triton(call: Call, options: Options, interpret: Any) -> tuple[Values, MLSTMState]:
    """The result of `mlstm_recurrent` for T = 1; q, k, v in bfloat16, float16 or float32, the state
    in float32. All derivatives are those of `mlstm_recurrent`.

    K and V are filled up with zeros to a power of two up to 64 and to a multiple of 64 beyond.
    """
    return _step((interpret, options), call)


def _value(static: tuple[Any, Options], call: Call) -> tuple[Values, MLSTMState]:
    interpret, (normalise, _, eps) = static
    q, k, v = (x[:, 0] for x in (call.q, call.k, call.v))
    m = call.state.m
    start = jnp.zeros(len(q), bool) if call.starts is None else call.starts[:, 0]
    start = start[:, None]
    gates = step_gates(
        jnp.where(start, 0, m), jnp.zeros_like(m), call.log_i[:, 0], call.log_f[:, 0], normalise
    )
    keep = jnp.where(start, 0, gates.forget)
    numbers = jnp.stack([keep, gates.write, jnp.expm1(gates.low), gates.m], axis=-1)
    numerator, qn, state = _new_state(interpret, normalise, q, k, v, numbers, call.state)
    if normalise:
        numerator = quotient(numerator, denominator(qn, state.m, eps)[..., None])
    return numerator[:, None].astype(v.dtype), state


def _new_state(
    interpret: Any,
    normalise: bool,
    q: Float[Array, "B H K"],
    k: Float[Array, "B H K"],
    v: Float[Array, "B H V"],
    numbers: Float[Array, "B H 4"],
    state: MLSTMState,
) -> tuple[Float[Array, "B H V"], Float[Array, "B H"], MLSTMState]:
    """(q C', q·n', the new state) with X = keep X + write k v and X' = X + more X, where `numbers`
    are keep, write, more and the new m.

    What is kept with the weight 0 is not read as a number: a document's border forgets NaN too.
    All that is not the state is handed over as one array, which XLA makes in one kernel.
    """
    C, n, m = state
    batch, heads, key_dim, value_dim = C.shape
    high, broad = tiles.width(key_dim), tiles.width(value_dim)
    C, n = filled(filled(C, -1, broad), -2, high), filled(n, -1, high)
    q, k, v = filled(q, -1, high), filled(k, -1, high), filled(v, -1, broad)
    token = jnp.concatenate([x.astype(jnp.float32) for x in (q, k, v, numbers)], axis=-1)
    tall, wide = tiles.tile(high, TALL), tiles.tile(broad, WIDE)
    parts, scale = broad // wide, key_dim**-0.5

    def mlstm_one_token(token, C, n, m, C_out, n_out, m_out, numerator, qn):
        part = pl.program_id(0)
        keep, write, more, new_m = (token[2 * high + broad + place] for place in range(4))

        def walk(new_rows: Any, first: Array) -> Array:
            """The sum over all rows of what `new_rows` gives."""

            def step(number: Array, total: Array) -> Array:
                rows = pl.ds(number * tall, tall)
                qs, ks = token[rows] * scale, token[pl.ds(high + number * tall, tall)] * write
                return total + new_rows(rows, qs, ks)

            return lax.fori_loop(0, high // tall, step, first)

        def updated(old: Array, added: Array) -> Array:
            new = jnp.where(keep == 0, 0, keep * old) + added
            return new + more * new

        @pl.when(part < parts)
        def _():
            vs = token[pl.ds(2 * high + part * wide, wide)]

            def new_rows(rows, qs, ks):
                C_out[rows, :] = new = updated(C[rows, :], ks[:, None] * vs[None, :])
                return jnp.sum(qs[:, None] * new, axis=0)

            numerator[...] = walk(new_rows, jnp.zeros((wide,), jnp.float32))

        @pl.when(part == parts)
        def _():
            def new_rows(rows, qs, ks):
                n_out[rows] = new = updated(n[rows], ks)
                return jnp.sum(qs * new)

            qn[...] = walk(new_rows, jnp.float32(0))
            m_out[...] = new_m

    def of_head(*block: int, along: int | None = None) -> pl.BlockSpec:
        """Of `B H ...`; `along` is the axis of the block that the parts run along."""

        def place(part, head):
            part = jnp.minimum(part, parts - 1)  # n's program has no part of C
            moved = (part if axis == along else 0 for axis in range(len(block)))
            return head // heads, head % heads, *moved

        return pl.BlockSpec((None, None, *block), place)

    blocks = of_head(high, wide, along=1), of_head(high), of_head()
    *after, numerator, qn = tiles.call(
        mlstm_one_token,
        tiles.Options(interpret, normalise, 0.0, scale, tiles.Blocks(1, tall, wide, 0, 0, WARPS)),
        (parts + normalise, batch * heads),
        [(token, of_head(token.shape[-1])), *zip((C, n, m), blocks, strict=True)],
        [
            *((x.shape, x.dtype, block) for x, block in zip((C, n, m), blocks, strict=True)),
            ((batch, heads, broad), jnp.float32, of_head(wide, along=0)),
            ((batch, heads), jnp.float32, of_head()),
        ],
        in_place={1: 0, 2: 1, 3: 2},
    )
    C, n, m = after
    state = MLSTMState(C[:, :, :key_dim, :value_dim], n[..., :key_dim], m)
    return numerator[..., :value_dim], qn, state


def _recurrent(static: tuple[Any, Options], call: Call) -> Any:
    return mlstm_recurrent(call, static[1])


def _push(static: tuple[Any, Options], call: Call, tangents: Any) -> Any:
    return jax.jvp(functools.partial(_recurrent, static), (call,), tangents)[1]


def _backward(static: tuple[Any, Options], call: Call, cotangents: Any) -> Any:
    gradients = jax.vjp(functools.partial(_recurrent, static), call)[1](cotangents)[0]
    return (gradients._replace(starts=None),)


_step = with_backward(
    in_32_bits(_value),
    lambda static, call: (in_32_bits(_value)(static, call), call),
    _backward,
    _push,
    name="cell",
)
