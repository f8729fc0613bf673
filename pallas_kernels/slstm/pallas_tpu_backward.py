"""The backward pass of the sLSTM's TPU kernel: blocks of tokens from the last to the first.

For each block, with h of every token and the state before the block at hand: all pre-activations
with one product per gate over the block; (c, n, m) token by token, without any product; the
gradient token by token backwards, with one product per gate each; the gradient of R with one
product per gate over the block. Names: with y = o c / n,

  dc += dh o / n                             dn -= dh o c / n^2
  do~ = dh (c / n) o (1 - o)                 dz~ = dc i (1 - z^2)
  di~ = (dc z + dn) i                        df~ = (dc c_before + dn n_before) f sigmoid(-f~)
  dc_before = dc f
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from pallas_kernels.segments import PADDING, START
from pallas_kernels.slstm.pallas_tpu_forward import (
    Inputs,
    Rows,
    Settings,
    States,
    Tokens,
    compiler_params,
    gates_of,
    precision_of,
    reset,
)
from pallas_kernels.slstm.recurrent import GATE_BOUNDS


def call_backward(
    settings: Settings,
    inputs: Inputs,
    h: Tokens,
    kept: Float[Array, "G N S B W"],
    dh: Tokens,
    d_after: States,
) -> Inputs:
    """Cotangents of x, R, bias and the state before the first token (m's: <c, dc> + <n, dn>)."""
    x, R, bias, _, flags = inputs
    groups, time, _, batch, width = x.shape
    tokens, rows = settings.tokens, settings.rows
    blocks, batches = time // tokens, batch // rows
    once = {"pipeline_mode": pl.Buffered(1)}
    last = blocks - 1

    gates_of_block = pl.BlockSpec(
        (1, tokens, 4, rows, width), lambda g, b, t: (g, last - t, 0, b, 0)
    )
    block = pl.BlockSpec((1, tokens, rows, width), lambda g, b, t: (g, last - t, b, 0))

    dx, dR, d_bias, d_state = pl.pallas_call(
        functools.partial(_kernel, clip=settings.clip, precision=precision_of(R.dtype)),
        grid=(groups, batches, blocks),
        in_specs=[
            gates_of_block,
            pl.BlockSpec((1, 4, width, width), lambda g, b, t: (g, 0, 0, 0), **once),
            pl.BlockSpec((1, 4, width, width), lambda g, b, t: (g, 0, 0, 0), **once),
            pl.BlockSpec((1, 4, 1, width), lambda g, b, t: (g, 0, 0, 0)),
            None
            if flags is None
            else pl.BlockSpec((tokens, rows, 1), lambda g, b, t: (last - t, b, 0)),
            block,
            pl.BlockSpec((1, 1, 4, rows, width), lambda g, b, t: (g, last - t, 0, b, 0)),
            block,
            pl.BlockSpec((1, 4, rows, width), lambda g, b, t: (g, 0, b, 0)),
        ],
        out_specs=[
            gates_of_block,
            pl.BlockSpec((1, 1, 4, width, width), lambda g, b, t: (g, b, 0, 0, 0), **once),
            pl.BlockSpec((1, 1, 4, 1, width), lambda g, b, t: (g, b, 0, 0, 0)),
            pl.BlockSpec((1, 3, rows, width), lambda g, b, t: (g, 0, b, 0)),
        ],
        out_shape=[
            jax.ShapeDtypeStruct(x.shape, x.dtype),
            jax.ShapeDtypeStruct((groups, batches, 4, width, width), jnp.float32),
            jax.ShapeDtypeStruct((groups, batches, 4, 1, width), jnp.float32),
            jax.ShapeDtypeStruct((groups, 3, batch, width), jnp.float32),
        ],
        scratch_shapes=[
            pltpu.VMEM((3, rows, width), jnp.float32),
            pltpu.VMEM((4, tokens, rows, width), jnp.float32),
            pltpu.VMEM((3, tokens, rows, width), jnp.float32),
            pltpu.VMEM((tokens, rows, width), jnp.float32),
        ],
        compiler_params=compiler_params(),
        cost_estimate=pl.CostEstimate(
            flops=3 * 8 * groups * time * batch * width * width,
            transcendentals=12 * groups * time * batch * width,
            bytes_accessed=10 * width * groups * time * batch * x.dtype.itemsize,
        ),
        interpret=settings.interpret,
        name="slstm_backward",
    )(x, R, jnp.swapaxes(R, 2, 3), bias, flags, h, kept, dh, d_after)
    dc, dn, d_h = (d_state[:, part] for part in range(3))
    dm = kept[:, 0, 0] * dc + kept[:, 0, 1] * dn  # m scales the true state, c·exp(m) and n·exp(m)
    return Inputs(
        dx,
        jnp.sum(dR, axis=1).astype(R.dtype),
        jnp.sum(d_bias, axis=1),
        jnp.stack([dc, dn, d_h, dm], axis=1),
        None,
    )


def _kernel(
    x_ref: Any,
    R_ref: Any,
    R_back_ref: Any,
    bias_ref: Any,
    flags_ref: Any,
    h_ref: Any,
    kept_ref: Any,
    dh_ref: Any,
    d_after_ref: Any,
    dx_ref: Any,
    dR_ref: Any,
    d_bias_ref: Any,
    d_state_ref: Any,
    carry: Any,
    raw_ref: Any,
    states: Any,
    h_before: Any,
    *,
    clip: float | None,
    precision: lax.Precision | None,
) -> None:
    """One block. carry holds (dc, dn, dh) of the state after it; raw_ref first the pre-activations,
    then their cotangents.
    """
    _, tokens, rows, width = raw_ref.shape
    dot = functools.partial(jnp.dot, precision=precision, preferred_element_type=jnp.float32)

    @pl.when(pl.program_id(2) == 0)
    def _() -> None:
        carry[...] = d_after_ref[0, :3]
        dR_ref[...] = jnp.zeros_like(dR_ref)
        d_bias_ref[...] = jnp.zeros_like(d_bias_ref)

    h_before[0] = kept_ref[0, 0, 2]
    if tokens > 1:
        h_before[1:] = h_ref[0, : tokens - 1].astype(jnp.float32)
    if flags_ref is not None:
        h_before[...] = jnp.where(flags_ref[...] == START, 0, h_before[...])
    flat = h_before[...].reshape(tokens * rows, width).astype(R_ref.dtype)
    for gate in range(4):
        mixed = dot(flat, R_ref[0, gate]).reshape(tokens, rows, width)
        raw_ref[gate] = mixed + x_ref[0, :, gate].astype(jnp.float32) + bias_ref[0, gate][None]

    def forward(t: Array, before: tuple[Rows, ...]) -> tuple[Rows, ...]:
        c, n, m = before if flags_ref is None else reset(before, flags_ref[t])
        states[0, t], states[1, t], states[2, t] = c, n, m
        i, f, z, _, m = gates_of(*(raw_ref[gate, t] for gate in range(4)), n, m)
        after = (f * c + i * z, f * n + i, m)
        if flags_ref is not None:
            after = tuple(
                jnp.where(flags_ref[t] == PADDING, old, new)
                for old, new in zip(before, after, strict=True)
            )
        return after

    lax.fori_loop(0, tokens, forward, tuple(kept_ref[0, 0, part] for part in (0, 1, 3)))

    def backward(step: Array, _: None) -> None:
        t = tokens - 1 - step
        raw, c_before, n_before = (
            [raw_ref[gate, t] for gate in range(4)],
            states[0, t],
            states[1, t],
        )
        i, f, z, o, _ = gates_of(*raw, n_before, states[2, t])
        c, n = f * c_before + i * z, f * n_before + i
        after = tuple(carry[part] for part in range(3))
        dh = after[2] + dh_ref[0, t].astype(jnp.float32)
        y, per_n = c / n, dh * o / n
        dc, dn = after[0] + per_n, after[1] - per_n * y
        least, largest = GATE_BOUNDS
        inside = (raw[0] > least) & (raw[0] < largest)
        d_i = jnp.where(inside, (dc * z + dn) * i, 0)
        d_f = (dc * c_before + dn * n_before) * f * jax.nn.sigmoid(-raw[1])
        d_f = jnp.where(raw[1] > least, d_f, 0)
        dh_before = jnp.zeros((rows, width), jnp.float32)
        for gate, d_raw in enumerate((d_i, d_f, dc * i * (1 - z * z), dh * y * o * (1 - o))):
            if flags_ref is not None:
                d_raw = jnp.where(flags_ref[t] == PADDING, 0, d_raw)
            raw_ref[gate, t] = d_raw
            dx_ref[0, t, gate] = d_raw.astype(dx_ref.dtype)
            dh_before += dot(d_raw.astype(R_back_ref.dtype), R_back_ref[0, gate])
        if clip is not None:
            dh_before = jnp.clip(dh_before, -clip, clip)
        before = (dc * f, dn * f, dh_before)
        if flags_ref is not None:
            before = reset(before, flags_ref[t])
            before = tuple(
                jnp.where(flags_ref[t] == PADDING, old, new)
                for old, new in zip(after, before, strict=True)
            )
        for part, value in enumerate(before):
            carry[part] = value

    lax.fori_loop(0, tokens, backward, None)

    dot_over_tokens = functools.partial(
        lax.dot_general,
        dimension_numbers=(((0,), (0,)), ((), ())),
        precision=precision,
        preferred_element_type=jnp.float32,
    )
    for gate in range(4):
        d_raw = raw_ref[gate].reshape(tokens * rows, width)
        dR_ref[0, 0, gate] += dot_over_tokens(flat, d_raw.astype(flat.dtype))
        d_bias_ref[0, 0, gate] += jnp.sum(d_raw, axis=0, keepdims=True)
    d_state_ref[0] = carry[...]
