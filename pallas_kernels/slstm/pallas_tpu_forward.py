"""The forward pass of the sLSTM's TPU kernel, and what both passes share: layout, settings, one
token's gates.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from pallas_kernels.rounding import added
from pallas_kernels.segments import PADDING, START
from pallas_kernels.slstm.recurrent import GATE_BOUNDS
from pallas_kernels.tpu_sizes import VMEM_LIMIT

# Layout of this backend. G groups of heads, W lanes of a group, 4 gates in the order i, f, z, o;
# batch and time are padded. The gates come before the rows, so that one transpose makes x from [B T
# 4 H V]: joining gates and lanes, [B 4W], would cost a second pass over x.
Tokens = Float[Array, "G T B W"]
Gates = Float[Array, "G T 4 B W"]
Weights = Float[Array, "G 4 W W"]
States = Float[Array, "G S B W"]  # S = 4: c, n, h, m
Flags = Int[Array, "T B 1"]
Rows = Float[Array, "B W"]  # of one token


class Inputs(NamedTuple):
    """A call's arrays in this layout.

    flags is None where no token starts a document or is padding. state is None in what the backward
    pass is given: it has the state before every block.
    """

    x: Gates
    R: Weights
    bias: Float[Array, "G 4 1 W"]
    state: States | None
    flags: Flags | None


class Settings(NamedTuple):
    """What a call is compiled for: tokens and batch rows of a block, the gradient clip, how to
    interpret.
    """

    tokens: int
    rows: int
    clip: float | None
    interpret: Any


def call_forward(
    settings: Settings, inputs: Inputs, *, keep: bool
) -> tuple[Tokens, States, Float[Array, "G N S B W"] | None]:
    """(h after each token, state after the last, state before each block if it is to be kept)."""
    x, R, bias, state, flags = inputs
    groups, time, _, batch, width = x.shape
    tokens, rows = settings.tokens, settings.rows
    blocks = time // tokens
    h, after, kept = pl.pallas_call(
        functools.partial(_forward_kernel, precision=precision_of(R.dtype)),
        grid=(groups, batch // rows, blocks),
        in_specs=[
            pl.BlockSpec((1, tokens, 4, rows, width), lambda g, b, t: (g, t, 0, b, 0)),
            pl.BlockSpec(
                (1, 4, width, width), lambda g, b, t: (g, 0, 0, 0), pipeline_mode=pl.Buffered(1)
            ),
            pl.BlockSpec((1, 4, 1, width), lambda g, b, t: (g, 0, 0, 0)),
            pl.BlockSpec((1, 4, rows, width), lambda g, b, t: (g, 0, b, 0)),
            None if flags is None else pl.BlockSpec((tokens, rows, 1), lambda g, b, t: (t, b, 0)),
        ],
        out_specs=[
            pl.BlockSpec((1, tokens, rows, width), lambda g, b, t: (g, t, b, 0)),
            pl.BlockSpec((1, 4, rows, width), lambda g, b, t: (g, 0, b, 0)),
            pl.BlockSpec((1, 1, 4, rows, width), lambda g, b, t: (g, t, 0, b, 0)) if keep else None,
        ],
        out_shape=[
            jax.ShapeDtypeStruct((groups, time, batch, width), x.dtype),
            jax.ShapeDtypeStruct(state.shape, jnp.float32),
            jax.ShapeDtypeStruct((groups, blocks, 4, batch, width), jnp.float32) if keep else None,
        ],
        scratch_shapes=[pltpu.VMEM((4, rows, width), jnp.float32)],
        compiler_params=compiler_params(),
        cost_estimate=pl.CostEstimate(
            flops=8 * groups * time * batch * width * width,
            transcendentals=6 * groups * time * batch * width,
            bytes_accessed=5 * width * groups * time * batch * x.dtype.itemsize,
        ),
        interpret=settings.interpret,
        name="slstm_forward",
    )(x, R, bias, state, flags)
    return h, after, kept


def _forward_kernel(
    x_ref: Any,
    R_ref: Any,
    bias_ref: Any,
    state_ref: Any,
    flags_ref: Any,
    h_ref: Any,
    after_ref: Any,
    kept_ref: Any,
    carry: Any,
    *,
    precision: lax.Precision | None,
) -> None:
    """One block of tokens. carry is the state (c, n, h, m), which lives in VMEM from the first
    block to the last.
    """

    @pl.when(pl.program_id(2) == 0)
    def _() -> None:
        carry[...] = state_ref[0]

    if kept_ref is not None:
        kept_ref[0, 0] = carry[...]

    def step(t: Array, _: None) -> None:
        before = tuple(carry[part] for part in range(4))
        c, n, h, m = before if flags_ref is None else reset(before, flags_ref[t])
        h = h.astype(R_ref.dtype)
        mixed = [
            jnp.dot(h, R_ref[0, gate], precision=precision, preferred_element_type=jnp.float32)
            for gate in range(4)
        ]
        raw = (
            x_ref[0, t, gate].astype(jnp.float32) + bias_ref[0, gate] + mixed[gate]
            for gate in range(4)
        )
        i, f, z, o, m = gates_of(*raw, n, m)
        c, n = f * c + i * z, f * n + i
        after = (c, n, o * (c / n), m)
        if flags_ref is not None:
            after = tuple(
                jnp.where(flags_ref[t] == PADDING, old, new)
                for old, new in zip(before, after, strict=True)
            )
        for part, value in enumerate(after):
            carry[part] = value
        h_ref[0, t] = after[2].astype(h_ref.dtype)

    lax.fori_loop(0, x_ref.shape[1], step, None)
    after_ref[0] = carry[...]


def gates_of(i: Rows, f: Rows, z: Rows, o: Rows, n: Rows, m: Rows) -> tuple[Rows, ...]:
    """(i, f, z, o, m) of one token from its pre-activations and the (n, m) before it, stabilised.

    From an empty state (n = 0) the new m is the input gate's pre-activation.
    """
    i = jnp.clip(i, *GATE_BOUNDS)
    log_f = jnp.maximum(jnp.minimum(f, 0) - jnp.log1p(jnp.exp(-jnp.abs(f))), GATE_BOUNDS[0])
    forgotten, missing = added(m, log_f)
    m = jnp.where(n == 0, i, jnp.maximum(forgotten, i))
    f = jnp.exp(jnp.minimum((forgotten - m) + missing, 60))
    return jnp.exp(i - m), f, jnp.tanh(z), jax.nn.sigmoid(o), m


def reset(parts: tuple[Rows, ...], flag: Int[Array, "B 1"]) -> tuple[Rows, ...]:
    """Zeros in the rows where a token starts a document."""
    return tuple(jnp.where(flag == START, 0, part) for part in parts)


def precision_of(dtype: jnp.dtype) -> lax.Precision | None:
    """The MXU multiplies bfloat16; six passes of it make a float32 product."""
    return lax.Precision.HIGHEST if dtype == jnp.float32 else None


def compiler_params() -> pltpu.CompilerParams:
    """Batch and heads may be dealt out, time goes in order."""
    return pltpu.CompilerParams(
        dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=VMEM_LIMIT
    )
