"""The gradient of pallas_gpu.py: one product over the whole sequence before the kernel, one after
it, and a linear recurrence inside.

Given h, c, n and m of every token, the gates and all local derivatives are known for all tokens at
once (XLA), so the kernel's step is eight multiply-adds per cell and the product dh `[64, B]` = sum
over gates of R `[64, V]` @ d_raw `[V, B]`; no exponential is in it. Blocks, clusters and what they
exchange (d_raw, that is dx) are as in the forward pass. dR, the bias' gradient and what leads to
the gates' pre-activations are XLA's.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from pallas_kernels.rounding import added
from pallas_kernels.segments import PADDING, START
from pallas_kernels.slstm import pallas_gpu_cluster as cluster
from pallas_kernels.slstm.pallas_gpu_cluster import load, store
from pallas_kernels.slstm.recurrent import GATE_BOUNDS

# Factors of a step, per token: see `_factors`.
Factors = Float[Array, "T 8 H W B"]


def backward(
    settings: cluster.Settings,
    inputs: cluster.Inputs,
    h: cluster.Tokens,
    kept: cluster.Kept,
    d_h: cluster.Tokens,
    d_after: cluster.States,
) -> cluster.Inputs:
    """Cotangents of the forward pass's inputs, from these, its outputs and what it kept.

    The true state is c·exp(m), so dm is c·dc + n·dn; the returned m has no gradient (d_after's is
    not read).
    """
    x, R, bias, state, flags = inputs
    h_before = jnp.concatenate(
        [jnp.transpose(state[2], (2, 0, 1))[:, None].astype(h.dtype), h[:, :-1]], axis=1
    )
    if flags is not None:
        h_before = jnp.where((flags == START).T[..., None, None], 0, h_before)
    raw = jnp.einsum("bthv,ghvw->tghwb", h_before, R, preferred_element_type=jnp.float32)
    raw = raw + jnp.transpose(x, (1, 2, 3, 4, 0)) + bias[..., None]
    before = jnp.concatenate([state[jnp.array((0, 1, 3))][None], kept[:-1]])
    factors = _factors(raw, before, flags)
    dx, d_first = _call(settings, R, factors, jnp.transpose(d_h, (1, 2, 3, 0)), d_after, flags)
    dR = jnp.einsum("bthv,btghw->ghvw", h_before, dx, preferred_element_type=jnp.float32)
    d_bias = jnp.sum(dx, axis=(0, 1), dtype=jnp.float32)
    dc, dn, dh = d_first
    return cluster.Inputs(
        dx.astype(x.dtype),
        dR.astype(R.dtype),
        d_bias,
        jnp.stack([dc, dn, dh, state[0] * dc + state[1] * dn]),
        None,
    )


def _factors(
    raw: Float[Array, "T 4 H W B"], before: cluster.Kept, flags: cluster.Flags | None
) -> Factors:
    """Eight numbers per cell and token, which are all that the kernel's step multiplies with.

    o/n and c/n after the token; the derivative of h by the pre-activation of o; i, z and f; the
    derivatives of c and of n by the pre-activation of f. Padding has neutral ones: f = 1, the rest
    0.
    """
    i, f, z, o = (raw[:, gate] for gate in range(4))
    c, n, m = (before[:, part] for part in range(3))
    if flags is not None:
        starts = (flags == START)[:, None, None]
        c, n, m = (jnp.where(starts, 0, part) for part in (c, n, m))
    i, kept = jnp.clip(i, *GATE_BOUNDS), jax.nn.sigmoid(-f)
    forgotten, missing = added(m, jax.nn.log_sigmoid(jnp.maximum(f, GATE_BOUNDS[0])))
    m = jnp.where(n == 0, i, jnp.maximum(forgotten, i))
    f = jnp.exp(jnp.minimum((forgotten - m) + missing, 60))
    i, z, o = jnp.exp(i - m), jnp.tanh(z), jax.nn.sigmoid(o)
    n_after = f * n + i
    ratio = (f * c + i * z) / n_after
    factors = [o / n_after, ratio, ratio * o * (1 - o), i, z, f, c * f * kept, n * f * kept]
    if flags is not None:
        factors[5] = jnp.where(starts, 0, f)
        padding = (flags == PADDING)[:, None, None]
        factors = [
            jnp.where(padding, 1 if part == 5 else 0, factor) for part, factor in enumerate(factors)
        ]
    return jnp.stack(factors, axis=1)


def _call(
    settings: cluster.Settings,
    R: Array,
    factors: Factors,
    d_h: Float[Array, "T H W B"],
    d_after: cluster.States,
    flags: cluster.Flags | None,
) -> tuple[Float[Array, "B T 4 H W"], Float[Array, "3 H W B"]]:
    """(gradients of the gates' pre-activations in R's type, gradients of the first c, n, h)."""
    time, _, heads, width, batch = factors.shape
    rows = settings.rows
    tiles = batch // rows
    kernel = cluster.kernel(
        functools.partial(_kernel, clip=settings.clip, flagged=flags is not None),
        settings,
        R,
        batch,
        out_type=[
            jax.ShapeDtypeStruct((time, tiles, 4 * rows, heads, width), R.dtype),
            jax.ShapeDtypeStruct((3, heads, width, batch), jnp.float32),
        ],
        exchanged=4,
        approximate=False,
        name="slstm_backward",
    )
    if flags is None:
        flags = jnp.zeros((1, 1), jnp.int32)
    dx, d_first = kernel(R, factors, d_h, d_after, flags)
    dx = jnp.transpose(dx.reshape(time, tiles, 4, rows, heads, width), (1, 3, 0, 2, 4, 5))
    return dx.reshape(batch, time, 4, heads, width), d_first


def _kernel(
    block: cluster.Block,
    R_ref: Any,
    factors_ref: Any,
    d_h_ref: Any,
    d_after_ref: Any,
    flags_ref: Any,
    dx_ref: Any,
    d_first_ref: Any,
    *,
    clip: float | None,
    flagged: bool,
) -> None:
    """From the last token to the first. The carry is the gradient of (c, n, h) after a token and
    what that token needs from memory.
    """
    time, (head, batch, units) = factors_ref.shape[0], block.place
    block.load_R(R_ref)

    def token(t: Array) -> tuple:
        factors = tuple(load(factors_ref.at[t, factor, head, units, batch]) for factor in range(8))
        flag = load(flags_ref.at[t, batch], reduced=0) if flagged else None
        return factors, load(d_h_ref.at[t, head, units, batch]), flag

    def step(index: Array, carry: Any) -> Any:
        t = time - 1 - index
        (dc, dn, dh), ((per_n, ratio, to_o, i, z, f, c_to_f, n_to_f), d_h, flag) = carry
        next_token = functools.partial(token, jnp.maximum(t - 1, 0))
        following = None if block.shared else next_token()
        dh = dh + d_h.astype(jnp.float32)
        dc = dc + dh * per_n
        dn = dn - dh * per_n * ratio
        d_raw = [i * (dc * z + dn), dc * c_to_f + dn * n_to_f, dc * i * (1 - z * z), dh * to_o]
        # The barrier makes the compiler do this now. After `multiply` the factors would have to be
        # kept through it, in registers that it needs.
        dc, dn = lax.optimization_barrier((f * dc, f * dn))

        def meanwhile() -> tuple:
            return next_token() if block.shared else following

        following = block.publish(d_raw, dx_ref.at[t, block.tile, :, head], meanwhile)
        d_before = functools.reduce(jnp.add, block.multiply())
        if clip is not None:
            d_before = jnp.minimum(jnp.maximum(d_before, -clip), clip)
        if flagged:
            flag = block.for_each_column(flag)
            d_before = jnp.where(flag == START, 0.0, jnp.where(flag == PADDING, dh, d_before))
        return (dc, dn, d_before), following

    last = tuple(load(d_after_ref.at[part, head, units, batch]) for part in range(3))
    first, _ = lax.fori_loop(0, time, step, (last, token(jnp.int32(time - 1))))
    for part in range(3):
        store(d_first_ref.at[part, head, units, batch], first[part])
    block.wait_for_stores()
