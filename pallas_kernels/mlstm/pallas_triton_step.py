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
    C, n, m = call.state
    start = jnp.zeros(len(q), bool) if call.starts is None else call.starts[:, 0]
    start = start[:, None]
    gates = step_gates(
        jnp.where(start, 0, m), jnp.zeros_like(m), call.log_i[:, 0], call.log_f[:, 0], normalise
    )
    keep = jnp.where(start, 0, gates.forget)
    numerator, qn, C, n = _new_state(
        interpret, normalise, q, k, v, keep, gates.write, jnp.expm1(gates.low), C, n
    )
    h = quotient(numerator, denominator(qn, gates.m, eps)[..., None]) if normalise else numerator
    return h[:, None].astype(v.dtype), MLSTMState(C, n, gates.m)


def _new_state(
    interpret: Any,
    normalise: bool,
    q: Float[Array, "B H K"],
    k: Float[Array, "B H K"],
    v: Float[Array, "B H V"],
    keep: Float[Array, "B H"],
    write: Float[Array, "B H"],
    more: Float[Array, "B H"],
    C: Float[Array, "B H K V"],
    n: Float[Array, "B H K"],
) -> tuple[
    Float[Array, "B H V"], Float[Array, "B H"], Float[Array, "B H K V"], Float[Array, "B H K"]
]:
    """(q C', q·n', C', n') with X = keep X + write k v and X' = X + more X.

    What is kept with the weight 0 is not read as a number: a document's border forgets NaN too.
    """
    batch, heads, key_dim, value_dim = C.shape
    q, k, n = (filled(x, -1, tiles.width(key_dim)) for x in (q, k, n))
    v, C = (filled(x, -1, tiles.width(value_dim)) for x in (v, C))
    C = filled(C, -2, tiles.width(key_dim))
    tall, wide = tiles.tile(C.shape[2], TALL), tiles.tile(C.shape[3], WIDE)
    parts, scale = C.shape[3] // wide, key_dim**-0.5

    def mlstm_one_token(q, k, v, keep, write, more, C, n, C_out, n_out, numerator, qn):
        part = pl.program_id(0)
        keep, write, more = keep[...], write[...], more[...]

        def walk(new_rows: Any, first: Array) -> Array:
            """The sum over all rows of what `new_rows` gives."""

            def step(number: Array, total: Array) -> Array:
                rows = pl.ds(number * tall, tall)
                qs, ks = (x[rows].astype(jnp.float32) for x in (q, k))
                return total + new_rows(rows, qs * scale, ks * write)

            return lax.fori_loop(0, C.shape[0] // tall, step, first)

        def updated(old: Array, added: Array) -> Array:
            new = jnp.where(keep == 0, 0, keep * old) + added
            return new + more * new

        @pl.when(part < parts)
        def _():
            vs = v[...].astype(jnp.float32)

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

    def of_head(*block: int, along: int | None = None) -> pl.BlockSpec:
        """Of `B H ...`; `along` is the axis of the block that the parts run along."""

        def place(part, head):
            part = jnp.minimum(part, parts - 1)  # n's program has none
            return head // heads, head % heads, *(part * (axis == along) for axis in range(len(block)))

        return pl.BlockSpec((None, None, *block), place)

    number, row = of_head(), of_head(C.shape[2])
    column, matrix = of_head(wide, along=0), of_head(C.shape[2], wide, along=1)
    ins = [(q, row), (k, row), (v, column), (keep, number), (write, number), (more, number)]
    outs = [
        (C.shape, C.dtype, matrix),
        (n.shape, n.dtype, row),
        (v.shape, jnp.float32, column),
        (keep.shape, jnp.float32, number),
    ]
    C, n, numerator, qn = tiles.call(
        mlstm_one_token,
        tiles.Options(interpret, normalise, 0.0, scale, tiles.Blocks(1, tall, wide, 0, 0, WARPS)),
        (parts + normalise, batch * heads),
        [*ins, (C, matrix), (n, row)],
        outs,
        in_place={len(ins): 0, len(ins) + 1: 1},
    )
    return numerator[..., :value_dim], qn, C[:, :, :key_dim, :value_dim], n[..., :key_dim]


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
