"""The sLSTM as a Mosaic GPU kernel for Hopper (sm_90a): R stays on chip for the whole sequence, one
cluster of blocks per head and batch.

A token is the transposed product gates `[4·64, B]` = R `[4·64, V]` @ h `[V, B]`, so that R fills
WGMMA's 64 rows and any batch of 8 or more its columns; one accumulator per gate leaves all four
gates of a cell in one thread, with its state (c, n, h, m) in registers. A block holds 64 units of a
head; heads wider than that are shared by a cluster of V/64 <= 8 blocks (pallas_gpu_cluster.py).
Heads are filled up with zeros to a multiple of 64. The part of R that does not fit into shared
memory (a quarter of it for V = 512) stays in registers. Grid: (heads, batch tiles) of clusters;
clusters do not wait for each other, so any number of them may run.

h and R enter the products in bfloat16 or float16; sums, gates and states are float32, and x may be.
The backward pass is in pallas_gpu_backward.py. Expected time of a step: docs/kernels.md; what the
compiler makes of it: docs/aot_gpu.md.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from pallas_kernels.derivatives import gradients_alone, with_first_backward_only
from pallas_kernels.filling import filled
from pallas_kernels.interpret import hopper_mode
from pallas_kernels.rounding import added
from pallas_kernels.segments import PADDING, START, token_flags
from pallas_kernels.slstm import pallas_gpu_cluster as cluster
from pallas_kernels.slstm.call import Call, Options
from pallas_kernels.slstm.pallas_gpu_backward import backward
from pallas_kernels.slstm.pallas_gpu_cluster import MAX_BLOCKS, UNITS, load, store
from pallas_kernels.slstm.recurrent import GATE_BOUNDS
from pallas_kernels.typing import SLSTMState, Values


def slstm_pallas_gpu(call: Call, options: Options) -> tuple[Values, SLSTMState]:
    """Brings everything into the kernel's layout and back.

    The products are in the type of x, or in R's where x is float32 (gates that are not rounded, as
    the model has them); h is rounded to it. Raises NotImplementedError off Hopper GPUs, for
    products in other types than bfloat16 and float16, and for heads over 512 units.
    """
    x, R = call.x, call.R
    interpret = hopper_mode()
    batch, _, _, heads, dim = x.shape
    dtype = R.dtype if x.dtype == jnp.float32 else x.dtype
    if dtype not in (jnp.bfloat16, jnp.float16) or call.state.c.dtype != jnp.float32:
        reason = "x, or R where x is float32, must be bfloat16 or float16 (WGMMA's float32 is TF32)"
        raise NotImplementedError(
            f"{reason}; they are {x.dtype} and {R.dtype}, the state {call.state.c.dtype}"
        )
    if dim > UNITS * MAX_BLOCKS:
        raise NotImplementedError(
            f"heads have at most {UNITS * MAX_BLOCKS} units (a cluster of {MAX_BLOCKS} blocks); "
            f"this one has {dim}"
        )
    rows = cluster.default_rows(batch, heads, dim)
    settings = cluster.Settings(rows, options.recurrent_gradient_clip, interpret)
    h, state = _run(settings, call._replace(R=R.astype(dtype)))
    return h.astype(x.dtype), state


def _run(settings: cluster.Settings, call: Call) -> tuple[Values, SLSTMState]:
    """As slstm_pallas_gpu, with its choices made: into the kernel's layout and back."""
    x, R, bias, state, starts, padding = call
    batch, _, _, _, dim = x.shape
    flags = None
    if starts is not None:
        flags = filled(token_flags(starts, padding).T, 1, settings.rows)
    x = jnp.transpose(filled(filled(x, 4, UNITS), 0, settings.rows), (1, 2, 3, 4, 0))
    R = filled(filled(R, 2, UNITS), 3, UNITS)
    bias = filled(bias.astype(jnp.float32), 2, UNITS)
    states = jnp.transpose(jnp.stack(state), (0, 2, 3, 1))
    states = filled(filled(states, 2, UNITS), 3, settings.rows)
    h, after = _slstm(settings, cluster.Inputs(x, R, bias, states, flags))
    h = h[:batch, :, :, :dim]
    if padding is not None:
        h = jnp.where(padding[..., None, None], 0, h)
    return h, SLSTMState(*jnp.transpose(after[:, :, :dim, :batch], (0, 3, 1, 2)))


def _value(
    settings: cluster.Settings, inputs: cluster.Inputs
) -> tuple[cluster.Tokens, cluster.States]:
    return _call_forward(settings, inputs, keep=False)[:2]


def _forward(settings: cluster.Settings, inputs: cluster.Inputs) -> Any:
    h, after, kept = _call_forward(settings, inputs, keep=True)
    # of x the backward pass needs the type alone
    return (h, after), (inputs._replace(x=inputs.x[:0]), h, kept)


def _backward(settings: cluster.Settings, residuals: Any, cotangents: Any) -> Any:
    return (backward(settings, *residuals, *cotangents),)


_slstm = with_first_backward_only(
    _value, _forward, _backward, gradients_alone("slstm", "pallas_gpu"), name="cell"
)


def _call_forward(
    settings: cluster.Settings, inputs: cluster.Inputs, *, keep: bool
) -> tuple[cluster.Tokens, cluster.States, cluster.Kept | None]:
    """(h after each token, state after the last, what the backward pass needs if it is to be
    kept).
    """
    x, R, bias, state, flags = inputs
    time, _, heads, width, batch = x.shape
    h0 = jnp.transpose(state[2], (2, 0, 1)).astype(R.dtype)
    kernel = cluster.kernel(
        functools.partial(_forward_kernel, keep=keep, flagged=flags is not None),
        settings,
        R,
        batch,
        out_type=[
            jax.ShapeDtypeStruct((batch, time, heads, width), R.dtype),
            jax.ShapeDtypeStruct(state.shape, jnp.float32),
            jax.ShapeDtypeStruct((time, 7, heads, width, batch) if keep else (1,), jnp.float32),
        ],
        exchanged=1,
        approximate=True,
        name="slstm_forward",
    )
    if flags is None:
        flags = jnp.zeros((1, 1), jnp.int32)
    h, after, kept = kernel(x, jnp.swapaxes(R, 2, 3), bias, state, h0, flags)
    return h, after, kept if keep else None


def _forward_kernel(
    block: cluster.Block,
    x_ref: Any,
    R_ref: Any,
    bias_ref: Any,
    state_ref: Any,
    h0_ref: Any,
    flags_ref: Any,
    h_ref: Any,
    after_ref: Any,
    kept_ref: Any,
    *,
    keep: bool,
    flagged: bool,
) -> None:
    """The carry is (c, n, h, m) after a token and what the next token needs from memory, which is
    loaded ahead of its turn.
    """
    time, (head, batch, units) = x_ref.shape[0], block.place

    block.fetch(h0_ref.at[batch, head])
    biases = [load(bias_ref.at[gate, head, units], reduced=1) for gate in range(4)]
    block.load_R(R_ref)
    block.wait_for_fetched()

    def token(t: Array) -> tuple:
        gates = tuple(load(x_ref.at[t, gate, head, units, batch]) for gate in range(4))
        return (*gates, load(flags_ref.at[t, batch], reduced=0) if flagged else None)

    def step(t: Array, carry: Any) -> Any:
        before, (*gates, flag) = carry
        next_token = functools.partial(token, jnp.minimum(t + 1, time - 1))
        following = None if block.shared else next_token()
        c, n, _, m = before
        mixed = block.multiply()
        if flagged:
            flag = block.for_each_column(flag)
            mixed, c, n, m = jax.tree.map(
                lambda part: jnp.where(flag == START, 0.0, part), (mixed, c, n, m)
            )
        raw = [
            sums + x.astype(jnp.float32) + block.for_each_row(b)
            for sums, x, b in zip(mixed, gates, biases, strict=True)
        ]
        after, gates = _cell(raw, c, n, m)
        kept = (c, n, *gates)
        if flagged:
            after = tuple(
                jnp.where(flag == PADDING, old, new) for old, new in zip(before, after, strict=True)
            )
            kept = _kept_beside(flag, kept)

        def meanwhile() -> tuple:
            if keep:
                for part, value in enumerate(kept):
                    store(kept_ref.at[t, part, head, units, batch], value)
            return next_token() if block.shared else following

        following = block.publish([after[2]], h_ref.at[batch, t, head], meanwhile)
        return after, following

    first = tuple(load(state_ref.at[part, head, units, batch]) for part in range(4))
    after, _ = lax.fori_loop(0, time, step, (first, token(0)))
    for part in range(4):
        store(after_ref.at[part, head, units, batch], after[part])
    block.wait_for_stores()


# What is kept of padding: c 0, n 1, f 1, the rest 0, so that the gradient passes as it is.
NEUTRAL = (0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0)


def _kept_beside(flag: Array, kept: tuple[Array, ...]) -> tuple[Array, ...]:
    """What is kept of a token where it may begin a text or be padding: no gradient flows over a
    start (f is 0), and over padding it flows unchanged.
    """
    c, n, i, f, *rest = kept
    kept = (c, n, i, jnp.where(flag == START, 0.0, f), *rest)
    return tuple(
        jnp.where(flag == PADDING, neutral, value)
        for neutral, value in zip(NEUTRAL, kept, strict=True)
    )


def _cell(raw: list[Array], c: Array, n: Array, m: Array) -> tuple[tuple, tuple]:
    """(c, n, h, m) after one token, and its i, f, z, o and df/f, as they are kept; from an empty
    state (n = 0) m is the input gate's pre-activation.

    tanh and the sigmoid are made of exponentials, whose approximation is good to 2^-22; the
    hardware's own tanh is good to 2^-11 only.
    """
    i, f, z, o = raw
    least, largest = GATE_BOUNDS
    i = jnp.minimum(jnp.maximum(i, least), largest)
    small = jnp.exp(-jnp.abs(f))
    closing = jnp.where(f > 0, small, 1.0) / (1 + small)  # sigmoid(-f)
    log_f = jnp.maximum(jnp.minimum(f, 0) - jnp.log(1 + small), least)
    forgotten, missing = added(m, log_f)
    m = jnp.where(n == 0, i, jnp.maximum(forgotten, i))
    i = jnp.exp(i - m)
    f = jnp.exp(jnp.minimum((forgotten - m) + missing, 60))
    z, o = 1 - 2 / (1 + jnp.exp(2 * z)), 1 + jnp.exp(-o)
    c = f * c + i * z
    n = f * n + i
    return (c, n, c / (n * o), m), (i, f, z, 1 / o, closing)
