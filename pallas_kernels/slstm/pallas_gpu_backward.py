"""The gradient of pallas_gpu.py: one product over the whole sequence before the kernel, one after it, and a linear recurrence inside.

Given h, c, n and m of every token, the gates and all local derivatives are known for all tokens at once (XLA), so the kernel's step is
eight multiply-adds per cell and the product R^T d_raw; no exponential is in it. A block has the same 64 units as in the forward pass: it
owns their d_raw, multiplies it with R `[V, 4·64]` to a part of dh for all V units, and the blocks of a cluster exchange these parts
(float32, TMA through a buffer in global memory, two of them in turns). dR, the bias' gradient and what leads to the gates' pre-activations
are XLA's.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from pallas_kernels.slstm.pallas_gpu import PADDING, START, UNITS, Flags, Settings, States, Tokens, grid, parts_in_smem, store

# Factors of a step, per token: see `_factors`.
Factors = Float[Array, "T 8 H W B"]


def backward(
    settings: Settings, x: Float[Array, "B T 4 H W"], R: Float[Array, "4 H W W"], bias: Float[Array, "4 H W"], state: States,
    flags: Flags | None, h: Tokens, before: Float[Array, "T 3 H W B"], d_h: Tokens, d_after: States,
) -> tuple[Array, Array, Array, States]:  # fmt: skip
    """(dx, dR, d_bias, d_state) from the forward pass's inputs, its outputs and what it kept (c, n, m before each token).

    The true state is c·exp(m), so dm is c·dc + n·dn; the returned m has no gradient (d_after's is not read).
    """
    h_before = jnp.concatenate([jnp.transpose(state[2], (2, 0, 1))[:, None].astype(h.dtype), h[:, :-1]], axis=1)
    if flags is not None:
        h_before = jnp.where((flags == START).T[..., None, None], 0, h_before)
    raw = jnp.einsum("bthv,ghvw->tghwb", h_before, R, preferred_element_type=jnp.float32)
    raw = raw + jnp.transpose(x, (1, 2, 3, 4, 0)) + bias[..., None]
    factors = _factors(raw, before, flags)
    dx, d_first = _call(settings, R, factors, jnp.transpose(d_h, (1, 2, 3, 0)), d_after, flags)
    dR = jnp.einsum("bthv,btghw->ghvw", h_before, dx, preferred_element_type=jnp.float32)
    d_bias = jnp.sum(dx, axis=(0, 1), dtype=jnp.float32)
    dc, dn, dh = d_first
    return dx, dR.astype(R.dtype), d_bias, jnp.stack([dc, dn, dh, state[0] * dc + state[1] * dn])


def _factors(raw: Float[Array, "T 4 H W B"], before: Float[Array, "T 3 H W B"], flags: Flags | None) -> Factors:
    """Of every token: o/n, c/n, d h/d raw_o, i, z, f, and what dc and dn give to raw_f; neutral for padding (f = 1, the rest 0)."""
    i, f, z, o = (raw[:, gate] for gate in range(4))
    c, n, m = (before[:, part] for part in range(3))
    if flags is not None:
        starts = (flags == START)[:, None, None]
        c, n, m = (jnp.where(starts, 0, part) for part in (c, n, m))
    forgets = jax.nn.log_sigmoid(f) + m
    m = jnp.where(n == 0, i, jnp.maximum(forgets, i))
    i, f, z, o, kept = jnp.exp(i - m), jnp.exp(jnp.minimum(forgets - m, 60)), jnp.tanh(z), jax.nn.sigmoid(o), jax.nn.sigmoid(-f)
    n_after = f * n + i
    ratio = (f * c + i * z) / n_after
    factors = [o / n_after, ratio, ratio * o * (1 - o), i, z, f, c * f * kept, n * f * kept]
    if flags is not None:
        factors[5] = jnp.where(starts, 0, f)
        padding = (flags == PADDING)[:, None, None]
        factors = [jnp.where(padding, 1 if part == 5 else 0, factor) for part, factor in enumerate(factors)]
    return jnp.stack(factors, axis=1)


def _call(
    settings: Settings, R: Array, factors: Factors, d_h: Float[Array, "T H W B"], d_after: States, flags: Flags | None
) -> tuple[Float[Array, "B T 4 H W"], Float[Array, "3 H W B"]]:
    from jax.experimental.pallas import mosaic_gpu as plgpu

    time, _, heads, width, batch = factors.shape
    rows, dtype, blocks = settings.rows, d_h.dtype, width // UNITS
    resident = parts_in_smem(settings, width)
    tiles = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))
    shared = blocks > 1
    exchange = (2 * heads * (batch // rows), blocks, blocks * UNITS, rows) if shared else (1,)
    kernel = plgpu.kernel(
        functools.partial(_kernel, rows=rows, clip=settings.clip, flagged=flags is not None),
        out_type=[
            jax.ShapeDtypeStruct((batch, time, 4, heads, width), dtype),
            jax.ShapeDtypeStruct((3, heads, width, batch), jnp.float32),
            jax.ShapeDtypeStruct(exchange, jnp.float32),
        ],
        scratch_types=dict(
            R_smem=plgpu.SMEM((resident, 4, UNITS, UNITS), dtype, transforms=tiles),
            d_smem=plgpu.SMEM((4, rows, UNITS), dtype, transforms=tiles),
            part_smem=plgpu.SMEM((blocks, UNITS, rows), jnp.float32) if shared else None,
            arrived=plgpu.Barrier(),
            R_arrived=plgpu.Barrier(num_arrivals=4 * resident),
            exchanged=plgpu.ClusterBarrier(collective_axes=("block",)) if shared else None,
        ),
        **grid(plgpu, heads, batch // rows, width),
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Lane),
        interpret=settings.interpret,
        kernel_name="slstm_backward",
    )
    if flags is None:
        flags = jnp.zeros((1, 1), jnp.int32)
    return kernel(R, factors, d_h, d_after, flags)[:2]


def _kernel(
    R_ref: Any, factors_ref: Any, d_h_ref: Any, d_after_ref: Any, flags_ref: Any, dx_ref: Any, d_first_ref: Any, exchange_ref: Any,
    *, R_smem: Any, d_smem: Any, part_smem: Any, arrived: Any, R_arrived: Any, exchanged: Any, rows: int, clip: float | None, flagged: bool,
) -> None:  # fmt: skip
    """From the last token to the first. The carry is the gradient of (c, n, h) after a token."""
    from jax.experimental.pallas import mosaic_gpu as plgpu

    time, _, heads, width, batch_size = factors_ref.shape
    blocks, resident = width // UNITS, R_smem.shape[0]
    shared = blocks > 1
    head, tile = lax.axis_index("head"), lax.axis_index("tile")
    block = lax.axis_index("block") if shared else 0
    units, batch = pl.ds(block * UNITS, UNITS), pl.ds(tile * rows, rows)
    dtype = d_smem.dtype

    def load(ref: Any, layout: Any = plgpu.Layout.WGMMA) -> Array:
        return plgpu.load(ref, layout=layout, optimized=False)

    def R_part(part: int, gate: int) -> Any:
        return R_ref.at[gate, head, pl.ds(part * UNITS, UNITS), units]

    for part in range(resident):
        for gate in range(4):
            plgpu.copy_gmem_to_smem(R_part(part, gate), R_smem.at[part, gate], R_arrived)
    R_rest = [[load(R_part(part, gate)) for gate in range(4)] for part in range(resident, blocks)]
    plgpu.barrier_wait(R_arrived)

    def token(t: Array) -> tuple:
        """What a token needs from memory; asked for one token ahead."""
        factors = tuple(load(factors_ref.at[t, factor, head, units, batch]) for factor in range(8))
        flag = load(flags_ref.at[t, batch], plgpu.Layout.WGMMA.reduce(0)) if flagged else None
        return factors, load(d_h_ref.at[t, head, units, batch]), flag

    def step(index: Array, carry: Any) -> Any:
        t = time - 1 - index
        (dc, dn, dh), ((per_n, ratio, to_o, i, z, f, c_to_f, n_to_f), d_h, flag) = carry
        dh = dh + d_h.astype(jnp.float32)
        dc = dc + dh * per_n
        dn = dn - dh * per_n * ratio
        d_raw = (i * (dc * z + dn), dc * c_to_f + dn * n_to_f, dc * i * (1 - z * z), dh * to_o)

        following = token(jnp.maximum(t - 1, 0))  # not before this token's have been used: registers are scarce

        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        for gate in range(4):
            store(d_smem.at[gate].T, d_raw[gate].astype(dtype))
        plgpu.commit_smem()
        for gate in range(4):
            plgpu.copy_smem_to_gmem(d_smem.at[gate], dx_ref.at[batch, t, gate, head, units])
        d_before = exchange(index) if shared else product([R_smem.at[0, gate] for gate in range(4)])
        if clip is not None:
            d_before = jnp.minimum(jnp.maximum(d_before, -clip), clip)
        if flagged:
            flag = lax.broadcast_in_dim(flag, (UNITS, rows), (1,))
            d_before = jnp.where(flag == START, 0.0, jnp.where(flag == PADDING, dh, d_before))
        return (f * dc, f * dn, d_before), following

    def product(of_R: list[Any]) -> Array:
        """This block's part of dh `[64, B]` for the units of one block, from R `[64, 64]` of each gate."""

        def total(sums: Any) -> Array:
            for gate in range(4):
                plgpu.wgmma(sums, of_R[gate], d_smem.at[gate].T)
            return sums[...]

        return pl.run_scoped(total, plgpu.ACC((UNITS, rows), jnp.float32))

    def exchange(index: Array) -> Array:
        """Sum over the cluster's blocks of their parts for this block's units."""

        @pl.loop(0, resident)
        def _(part: Array) -> None:
            store(part_smem.at[part], product([R_smem.at[part, gate] for gate in range(4)]))

        for part in range(resident, blocks):
            store(part_smem.at[part], product(R_rest[part - resident]))
        place = exchange_ref.at[(lax.rem(index, 2) * heads + head) * (batch_size // rows) + tile]
        plgpu.commit_smem()
        for part in range(blocks):
            plgpu.copy_smem_to_gmem(part_smem.at[part], place.at[block, pl.ds(part * UNITS, UNITS)])
        plgpu.wait_smem_to_gmem(0)
        plgpu.barrier_arrive(exchanged)
        plgpu.barrier_wait(exchanged)
        plgpu.copy_gmem_to_smem(place.at[:, units], part_smem, arrived)
        plgpu.barrier_wait(arrived)
        total = load(part_smem.at[0])
        for part in range(1, blocks):
            total = total + load(part_smem.at[part])
        return total

    last = tuple(load(d_after_ref.at[part, head, units, batch]) for part in range(3))
    first, _ = lax.fori_loop(0, time, step, (last, token(jnp.int32(time - 1))))
    for part in range(3):
        store(d_first_ref.at[part, head, units, batch], first[part])
    plgpu.wait_smem_to_gmem(0)
