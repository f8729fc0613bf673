"""The gradient of pallas_gpu.py: a linear recurrence in the kernel, one product after it.

The forward pass keeps what a token's derivatives are made of, so the kernel's step is some
multiply-adds and a division per cell and the product dh `[64, B]` = sum over gates of R `[64, V]` @
d_raw `[V, B]`; no exponential is in it. Blocks, clusters and what they exchange (d_raw, that is dx)
are as in the forward pass. dR and the bias' gradient are XLA's.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from pallas_kernels.segments import PADDING, START
from pallas_kernels.slstm import pallas_gpu_cluster as cluster
from pallas_kernels.slstm.pallas_gpu_cluster import load, store


def backward(
    settings: cluster.Settings,
    inputs: cluster.Inputs,
    h: cluster.Tokens,
    kept: cluster.Kept,
    d_h: cluster.Tokens,
    d_after: cluster.States,
) -> cluster.Inputs:
    """Cotangents of the forward pass's inputs, from these (of x the type alone), its outputs and
    what it kept.

    The true state is c·exp(m), so dm is c·dc + n·dn; the returned m has no gradient (d_after's is
    not read).
    """
    x, R, _, state, flags = inputs
    h_before = jnp.concatenate(
        [jnp.transpose(state[2], (2, 0, 1))[:, None].astype(h.dtype), h[:, :-1]], axis=1
    )
    if flags is not None:
        h_before = jnp.where((flags == START).T[..., None, None], 0, h_before)
    dx, d_first = _call(settings, R, kept, jnp.transpose(d_h, (1, 2, 3, 0)), d_after, flags)
    dR = jnp.einsum("bthv,tghwb->ghvw", h_before, dx, preferred_element_type=jnp.float32)
    d_bias = jnp.sum(dx, axis=(0, 4), dtype=jnp.float32)
    dc, dn, dh = d_first
    return cluster.Inputs(
        dx.astype(x.dtype),
        dR.astype(R.dtype),
        d_bias,
        jnp.stack([dc, dn, dh, state[0] * dc + state[1] * dn]),
        None,
    )


def _call(
    settings: cluster.Settings,
    R: Array,
    kept: cluster.Kept,
    d_h: Float[Array, "T H W B"],
    d_after: cluster.States,
    flags: cluster.Flags | None,
) -> tuple[Float[Array, "T 4 H W B"], Float[Array, "3 H W B"]]:
    """(gradients of the gates' pre-activations in R's type, gradients of the first c, n, h)."""
    time, heads, width, batch = d_h.shape
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
    dx, d_first = kernel(R, kept, d_h, d_after, flags)
    dx = jnp.transpose(dx.reshape(time, tiles, 4, rows, heads, width), (0, 2, 4, 5, 1, 3))
    return dx.reshape(time, 4, heads, width, batch), d_first


def _kernel(
    block: cluster.Block,
    R_ref: Any,
    kept_ref: Any,
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
    time, (head, batch, units) = d_h_ref.shape[0], block.place
    block.load_R(R_ref)

    def token(t: Array) -> tuple:
        kept = tuple(load(kept_ref.at[t, part, head, units, batch]) for part in range(7))
        flag = load(flags_ref.at[t, batch], reduced=0) if flagged else None
        return kept, load(d_h_ref.at[t, head, units, batch]), flag

    def step(index: Array, carry: Any) -> Any:
        t = time - 1 - index
        (dc, dn, dh), ((c, n, i, f, z, o, closing), d_h, flag) = carry
        next_token = functools.partial(token, jnp.maximum(t - 1, 0))
        following = None if block.shared else next_token()
        dh = dh + d_h.astype(jnp.float32)
        per_n = 1 / (f * n + i)
        ratio = (f * c + i * z) * per_n  # c/n after the token
        dc = dc + dh * o * per_n
        dn = dn - dh * o * per_n * ratio
        d_raw = [
            i * (dc * z + dn),
            (dc * c + dn * n) * f * closing,
            dc * i * (1 - z * z),
            dh * ratio * o * (1 - o),
        ]
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
