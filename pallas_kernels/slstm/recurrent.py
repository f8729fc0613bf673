"""The sLSTM one token at a time, with its gradient.

Only the product R h_{t-1} and the pointwise equations are inside the scans. The forward scan keeps
the states (c, n, h, m) and nothing else; the backward pass computes all gates again with one
product over the whole sequence, and leaves the gradients of R and of the bias to one product and
one sum at its end.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from pallas_kernels.derivatives import with_backward
from pallas_kernels.rounding import added
from pallas_kernels.slstm.call import Call, Options
from pallas_kernels.typing import SLSTMState, Values

# Least pre-activation of i and f, largest of i. They make infinite gates finite: i = -2^18 counts
# for nothing beside any other token, and f = -2^18 forgets everything.
GATE_BOUNDS = -(2.0**18), 2.0**16

# Inside this file arrays are time-major and head-major, so that the product with R needs no
# transpose in a step.
Raw = Float[Array, "*T H B 4 V"]
Part = Float[Array, "*T H B V"]
Flags = Bool[Array, "*T 1 B 1"]


def slstm_recurrent(call: Call, options: Options) -> tuple[Values, SLSTMState]:
    """Brings everything into the layout of the scan and back."""
    x, R, bias, state, starts, padding = call
    dtype = state.c.dtype
    wx = x.astype(dtype) + bias.astype(dtype)[None, None]
    if padding is not None:  # a padding token may hold anything, NaN too
        wx = jnp.where(padding[..., None, None, None], 0, wx)
    wx = jnp.transpose(wx, (1, 3, 0, 2, 4))
    R = jnp.transpose(R.astype(dtype), (1, 2, 0, 3))
    flags = (
        None
        if starts is None
        else tuple(jnp.transpose(flag)[:, None, :, None] for flag in (starts, padding))
    )
    state = SLSTMState(*(jnp.swapaxes(part, 0, 1) for part in state))
    h, state = _slstm(options.recurrent_gradient_clip, wx, R, state, flags)
    return jnp.transpose(h, (2, 0, 1, 3)).astype(x.dtype), SLSTMState(
        *(jnp.swapaxes(part, 0, 1) for part in state)
    )


def pointwise(raw: Raw, c: Part, n: Part, m: Part) -> tuple[Part, Part, Part, Part]:
    """(c, n, h, m) of one token from its gates' pre-activations: arXiv 2405.04517, equations 8-17,
    stabilised as in appendix A.2.

    The output does not depend on the stabiliser m, so m is a constant to the gradient; only a given
    m has one, as a factor of c and n.
    """
    i, f, z, o = (raw[..., gate, :] for gate in range(4))
    i, f = jnp.clip(i, *GATE_BOUNDS), jnp.maximum(f, GATE_BOUNDS[0])
    log_f = jax.nn.log_sigmoid(f)
    forgotten, missing = added(*map(lax.stop_gradient, (m, log_f)))
    m_new = lax.stop_gradient(jnp.where(n == 0, i, jnp.maximum(forgotten, i)))
    i = jnp.exp(i - m_new)
    # The exponent is above 0 only for an empty state, whose c and n are 0. There the bound keeps f
    # finite, so that f times 0 is 0 and not NaN.
    log_forget = jnp.minimum((forgotten - m_new) + missing, 60)
    # log_forget has no gradient. What is added to it is 0 and has the gradients of log_f and m.
    moved = log_f + m
    f = jnp.exp(log_forget + (moved - lax.stop_gradient(moved)))
    c = f * c + i * jnp.tanh(z)
    n = f * n + i
    return c, n, jax.nn.sigmoid(o) * c / n, m_new


def _value(
    clip: float | None, wx: Raw, R: Float[Array, "H V 4 V"], state: SLSTMState, flags: Any
) -> tuple[Part, SLSTMState]:
    return _slstm_forward(clip, wx, R, state, flags)[0]


def _slstm_forward(
    clip: float | None, wx: Raw, R: Float[Array, "H V 4 V"], state: SLSTMState, flags: Any
) -> Any:
    """Scans over time. Keeps c, n, m as they were before each token and h as it was after it."""

    def step(before: SLSTMState, token: Any) -> Any:
        wx, flags = token
        c, n, h, m = _reset(before, flags)
        c, n, h, m = pointwise(wx + _mix(h, R), c, n, m)
        after = SLSTMState(c, n, h, m)
        if flags is not None:
            after = SLSTMState(
                *(jnp.where(flags[1], old, new) for old, new in zip(before, after, strict=True))
            )
        return after, (before.c, before.n, before.m, after.h)

    after, (c, n, m, h) = lax.scan(step, state, (wx, flags))
    out = h if flags is None else jnp.where(flags[1], 0, h)
    return (out, after), (wx, R, state.h, flags, c, n, m, h)


def _slstm_backward(clip: float | None, kept: Any, cotangents: Any) -> Any:
    wx, R, h_first, flags, c, n, m, h = kept
    d_out, d_after = cotangents
    h_before = jnp.concatenate([h_first[None], h[:-1]])
    if flags is not None:
        h_before = jnp.where(flags[0], 0, h_before)
        d_out = jnp.where(flags[1], 0, d_out)
    raw = wx + jnp.einsum("thbv,hvgw->thbgw", h_before, R, precision=lax.Precision.HIGHEST)

    R_back = jnp.moveaxis(R, 1, 3)  # once, instead of in every step

    def step(after: Any, token: Any) -> Any:
        dc, dn, dh = after
        raw, c, n, m, d_out, flags = token
        c, n, m = _reset((c, n, m), flags)
        _, pull = jax.vjp(lambda raw, c, n: pointwise(raw, c, n, m)[:3], raw, c, n)
        d_raw, dc_before, dn_before = pull((dc, dn, dh + d_out))
        dh_before = jnp.einsum("hbgw,hgwv->hbv", d_raw, R_back, precision=lax.Precision.HIGHEST)
        if clip is not None:
            dh_before = jnp.clip(dh_before, -clip, clip)
        before = (dc_before, dn_before, dh_before)
        if flags is not None:
            before = tuple(
                jnp.where(flags[1], old, new)
                for old, new in zip(after, _reset(before, flags), strict=True)
            )
            d_raw = jnp.where(flags[1][..., None], 0, d_raw)
        return before, d_raw

    (dc, dn, dh), d_raw = lax.scan(
        step, (d_after.c, d_after.n, d_after.h), (raw, c, n, m, d_out, flags), reverse=True
    )
    dR = jnp.einsum("thbv,thbgw->hvgw", h_before, d_raw, precision=lax.Precision.HIGHEST)
    dm = c[0] * dc + n[0] * dn  # m scales the true state, c·exp(m) and n·exp(m)
    no_gradient = jax.tree.map(lambda _: None, flags)
    return d_raw, dR, SLSTMState(dc, dn, dh, dm), no_gradient


def _slstm_push(clip: float | None, kept: Any, tangents: Any) -> tuple[Part, SLSTMState]:
    if clip is not None:
        raise TypeError(
            f"slstm: recurrent_gradient_clip is {clip}; it bounds gradients on their way back, and "
            f"forward mode (jvp, linearize) has none. Leave it None there."
        )
    wx, R, h_first, flags, c, n, m, _ = kept
    value = functools.partial(_value, clip, flags=flags)
    arrays = wx, R, SLSTMState(c[0], n[0], h_first, m[0])
    return jax.jvp(value, arrays, tuple(tangents[:3]))[1]


_slstm = with_backward(_value, _slstm_forward, _slstm_backward, _slstm_push, name="cell")


def _mix(h: Part, R: Float[Array, "H V 4 V"]) -> Raw:
    return jnp.einsum("hbv,hvgw->hbgw", h, R, precision=lax.Precision.HIGHEST)


def _reset(parts: Any, flags: Any) -> Any:
    """Zeros where a token starts a document."""
    return parts if flags is None else tuple(jnp.where(flags[0], 0, part) for part in parts)
