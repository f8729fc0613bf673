"""The sLSTM as a Mosaic GPU kernel for Hopper (sm_90a): R stays on chip for the whole sequence, one cluster of blocks per head and batch.

A token is the transposed product gates `[4·64, B] = R `[4·64, V]` @ h `[V, B]`, so that R fills WGMMA's 64 rows and any batch of 8 or more
its columns; one accumulator per gate leaves all four gates of a cell in one thread, with its state (c, n, h, m) in registers. A block
holds 64 units of a head; heads wider than that are shared by a cluster of V/64 <= 8 blocks, which exchange h_t through its place in the
output (TMA out, cluster barrier, TMA in). Heads are filled up with zeros to a multiple of 64. What does not fit into shared memory of R (V
= 512: a quarter) stays in registers. Grid: (heads, batch tiles) of clusters; clusters do not wait for each other, so any number of them
may run.

bfloat16 and float16 inputs: h and R enter the products in the type of x, sums, gates and states are float32. The backward pass is in
pallas_gpu_backward.py.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int

from pallas_kernels.dispatch import device_family, target_device
from pallas_kernels.interpret import interpret_mode
from pallas_kernels.typing import SLSTMState, TokenFlags, Values

UNITS = 64  # units of a block: the rows of a WGMMA
MAX_BLOCKS = 8  # of a cluster, the portable limit
RESIDENT = 6  # parts of R `[4·64, 64]` that shared memory holds: 192 of 227 KB, all of V = 384; more are held in registers
START, PADDING = 1, 2  # a token's flag; 0: neither

# Layout of this backend: W units (V filled up to a multiple of 64); batch and units are padded, and swapped where a block computes.
Tokens = Float[Array, "B T H W"]
Gates = Float[Array, "T 4 H W B"]
States = Float[Array, "S H W B"]  # S = 4: c, n, h, m
Flags = Int[Array, "T B"]


class Settings(NamedTuple):
    """What a call is compiled for: batch rows of a block, gradient clip, how to interpret."""

    rows: int
    clip: float | None
    interpret: Any


def slstm_pallas_gpu(
    x: Float[Array, "B T 4 H V"],
    recurrent_kernel: Float[Array, "4 H V V"],
    bias: Float[Array, "4 H V"],
    state: SLSTMState,
    starts: TokenFlags | None,
    padding: TokenFlags | None,
    *,
    recurrent_gradient_clip: float | None,
) -> tuple[Values, SLSTMState]:
    """Brings everything into the kernel's layout and back.

    Raises NotImplementedError off Hopper GPUs, for inputs other than bfloat16 and float16, and for heads of more than 512 units.
    """
    if jax.__version_info__ < (0, 11):
        raise NotImplementedError(f"it needs jax >= 0.11; this is {jax.__version__}")
    interpret = interpret_mode("gpu")
    if interpret is True:
        raise NotImplementedError("it is interpreted by Mosaic GPU's simulator alone, interpreted(plgpu.InterpretGPUParams())")
    if interpret is False and device_family(*target_device()) != "hopper":
        raise NotImplementedError(f"it needs an NVIDIA GPU with sm_90, and this program is lowered for a {target_device()[1]}")
    batch, time, _, heads, dim = x.shape
    if x.dtype not in (jnp.bfloat16, jnp.float16) or state.c.dtype != jnp.float32:
        raise NotImplementedError(f"it takes bfloat16 and float16 (WGMMA's float32 is TF32); x is {x.dtype}, the state {state.c.dtype}")
    if dim > UNITS * MAX_BLOCKS:
        raise NotImplementedError(f"heads have at most {UNITS * MAX_BLOCKS} units (a cluster of {MAX_BLOCKS} blocks); this one has {dim}")
    settings = Settings(default_rows(batch, dim), recurrent_gradient_clip, interpret)
    return run(settings, x, recurrent_kernel, bias, state, starts, padding)


def run(
    settings: Settings, x: Array, recurrent_kernel: Array, bias: Array, state: SLSTMState, starts: Array | None, padding: Array | None
) -> tuple[Values, SLSTMState]:
    """As slstm_pallas_gpu, with its choices made."""
    batch, time, _, heads, dim = x.shape
    flags = None
    if starts is not None:
        flags = _fill(jnp.where(padding, PADDING, jnp.where(starts, START, 0)).astype(jnp.int32).T, 1, settings.rows)
    x = _fill(_fill(x, 4, UNITS), 0, settings.rows)
    R = _fill(_fill(recurrent_kernel.astype(x.dtype), 2, UNITS), 3, UNITS)
    bias = _fill(bias.astype(jnp.float32), 2, UNITS)
    states = _fill(_fill(jnp.transpose(jnp.stack(state), (0, 2, 3, 1)), 2, UNITS), 3, settings.rows)
    h, after = _slstm(settings, x, R, bias, states, flags)
    h = h[:batch, :, :, :dim]
    if padding is not None:
        h = jnp.where(padding[..., None, None], 0, h)
    return h, SLSTMState(*jnp.transpose(after[:, :, :dim, :batch], (0, 3, 1, 2)))


def default_rows(batch: int, dim: int) -> int:
    """Batch rows of a block: 8 or 16.

    The product streams R from shared memory however many rows there are, so more of them make a step longer by less than they add; 32 would
    take more registers than there are. R in registers (V = 512) leaves room for 8 only.
    """
    return 8 if batch <= 8 or dim > UNITS * RESIDENT else 16


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _slstm(
    settings: Settings, x: Float[Array, "B T 4 H W"], R: Float[Array, "4 H W W"], bias: Float[Array, "4 H W"], state: States,
    flags: Flags | None,
) -> tuple[Tokens, States]:  # fmt: skip
    return _call_forward(settings, x, R, bias, state, flags, keep=False)[:2]


def _forward(settings: Settings, x: Array, R: Array, bias: Array, state: States, flags: Flags | None) -> Any:
    h, after, before = _call_forward(settings, x, R, bias, state, flags, keep=True)
    return (h, after), (x, R, bias, state, flags, h, before)


def _backward(settings: Settings, residuals: Any, cotangents: Any) -> Any:
    from pallas_kernels.slstm.pallas_gpu_backward import backward

    return *backward(settings, *residuals, *cotangents), None


_slstm.defvjp(_forward, _backward)


def _call_forward(
    settings: Settings, x: Array, R: Array, bias: Array, state: States, flags: Flags | None, *, keep: bool
) -> tuple[Tokens, States, Float[Array, "T 3 H W B"] | None]:
    """(h after each token, state after the last, c, n and m before each token if they are to be kept)."""
    from jax.experimental.pallas import mosaic_gpu as plgpu

    batch, time, _, heads, width = x.shape
    rows, dtype = settings.rows, x.dtype
    blocks = width // UNITS
    resident, shared = parts_in_smem(settings, width), blocks > 1
    tiles = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))
    h0 = jnp.transpose(state[2], (2, 0, 1)).astype(dtype)
    kernel = plgpu.kernel(
        functools.partial(_forward_kernel, rows=rows, keep=keep, flagged=flags is not None),
        out_type=[
            jax.ShapeDtypeStruct((batch, time, heads, width), dtype),
            jax.ShapeDtypeStruct(state.shape, jnp.float32),
            jax.ShapeDtypeStruct((time, 3, heads, width, batch) if keep else (1,), jnp.float32),
        ],
        scratch_types=dict(
            R_smem=plgpu.SMEM((resident, 4, UNITS, UNITS), dtype, transforms=tiles),
            h_smem=plgpu.SMEM((blocks, rows, UNITS), dtype, transforms=tiles),
            out_smem=plgpu.SMEM((rows, UNITS), dtype, transforms=tiles) if shared else None,
            arrived=plgpu.Barrier(num_arrivals=blocks),
            R_arrived=plgpu.Barrier(num_arrivals=4 * resident),
            exchanged=plgpu.ClusterBarrier(collective_axes=("block",)) if shared else None,
        ),
        **grid(plgpu, heads, batch // rows, width),
        compiler_params=plgpu.CompilerParams(approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Lane),
        interpret=settings.interpret,
        kernel_name="slstm_forward",
    )
    if flags is None:
        flags = jnp.zeros((1, 1), jnp.int32)
    h, after, before = kernel(jnp.transpose(x, (1, 2, 3, 4, 0)), jnp.swapaxes(R, 2, 3), bias, state, h0, flags)
    return h, after, before if keep else None


def parts_in_smem(settings: Settings, width: int) -> int:
    """Parts of R that shared memory holds: all of them in the simulator, which multiplies nothing that is in registers."""
    return min(width // UNITS, RESIDENT if settings.interpret is False else MAX_BLOCKS)


def store(ref: Any, x: Array) -> None:
    """x into memory, in whatever order its layout has (plgpu.store does not exist in jax 0.11, whose assignment does the same)."""
    from jax.experimental.pallas import mosaic_gpu as plgpu

    if hasattr(plgpu, "store"):
        plgpu.store(ref, x, optimized=False)
    else:
        ref[...] = x


def grid(plgpu: Any, heads: int, tiles: int, width: int) -> dict[str, Any]:
    """One cluster per head and batch tile, of one block per 64 units."""
    cluster = dict(cluster=(width // UNITS,), cluster_names=("block",)) if width > UNITS else {}
    return dict(grid=(heads, tiles), grid_names=("head", "tile"), **cluster)


def _forward_kernel(
    x_ref: Any, R_ref: Any, bias_ref: Any, state_ref: Any, h0_ref: Any, flags_ref: Any, h_ref: Any, after_ref: Any, before_ref: Any,
    *, R_smem: Any, h_smem: Any, out_smem: Any, arrived: Any, R_arrived: Any, exchanged: Any, rows: int, keep: bool, flagged: bool,
) -> None:  # fmt: skip
    from jax.experimental.pallas import mosaic_gpu as plgpu

    time, blocks, resident = x_ref.shape[0], h_smem.shape[0], R_smem.shape[0]
    shared = blocks > 1
    head, tile = lax.axis_index("head"), lax.axis_index("tile")
    block = lax.axis_index("block") if shared else 0
    units, batch = pl.ds(block * UNITS, UNITS), pl.ds(tile * rows, rows)
    dtype = h_smem.dtype

    def load(ref: Any, layout: Any = plgpu.Layout.WGMMA) -> Array:
        return plgpu.load(ref, layout=layout, optimized=False)

    def fetch_h(ref: Any) -> None:
        for part in range(blocks):
            plgpu.copy_gmem_to_smem(ref.at[:, pl.ds(part * UNITS, UNITS)], h_smem.at[part], arrived)

    def R_part(part: int, gate: int) -> Any:
        return R_ref.at[gate, head, units, pl.ds(part * UNITS, UNITS)]

    for part in range(resident):
        for gate in range(4):
            plgpu.copy_gmem_to_smem(R_part(part, gate), R_smem.at[part, gate], R_arrived)
    fetch_h(h0_ref.at[batch, head])
    biases = [load(bias_ref.at[gate, head, units], plgpu.Layout.WGMMA.reduce(1)) for gate in range(4)]
    R_rest = [[load(R_part(part, gate)) for gate in range(4)] for part in range(resident, blocks)]
    plgpu.barrier_wait(R_arrived)
    plgpu.barrier_wait(arrived)

    def token(t: Array) -> tuple:
        """What a token needs from memory; asked for one token ahead."""
        gates = tuple(load(x_ref.at[t, gate, head, units, batch]) for gate in range(4))
        return (*gates, load(flags_ref.at[t, batch], plgpu.Layout.WGMMA.reduce(0)) if flagged else None)

    def step(t: Array, carry: Any) -> Any:
        before, (*gates, flag) = carry
        following = token(jnp.minimum(t + 1, time - 1))
        c, n, h, m = before

        def mix(*sums: Any) -> list[Array]:
            @pl.loop(0, resident)  # unrolled, its many descriptors would not leave registers for anything else
            def _(part: Array) -> None:
                for gate in range(4):
                    plgpu.wgmma(sums[gate], R_smem.at[part, gate], h_smem.at[part].T)

            for part in range(resident, blocks):
                for gate in range(4):
                    plgpu.wgmma(sums[gate], R_rest[part - resident][gate], h_smem.at[part].T)
            return [total[...] for total in sums]

        mixed = pl.run_scoped(mix, *[plgpu.ACC((UNITS, rows), jnp.float32)] * 4)
        if keep:
            for part, value in enumerate((c, n, m)):
                store(before_ref.at[t, part, head, units, batch], value)
        if flagged:
            flag = lax.broadcast_in_dim(flag, (UNITS, rows), (1,))
            mixed, c, n, m = jax.tree.map(lambda part: jnp.where(flag == START, 0.0, part), (mixed, c, n, m))
        raw = [
            sums + x.astype(jnp.float32) + lax.broadcast_in_dim(b, (UNITS, rows), (0,))
            for sums, x, b in zip(mixed, gates, biases, strict=True)
        ]
        c, n, h, m = _cell(raw, c, n, m)
        after = (c, n, h, m)
        if flagged:
            after = tuple(jnp.where(flag == PADDING, old, new) for old, new in zip(before, after, strict=True))
        publish(t, after[2].astype(dtype))
        return after, following

    def publish(t: Array, h: Array) -> None:
        """h into the output, and into h_smem of every block of the cluster."""
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        own = out_smem if shared else h_smem.at[0]
        store(own.T, h)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(own, h_ref.at[batch, t, head, units])
        if shared:
            plgpu.wait_smem_to_gmem(0)
            plgpu.barrier_arrive(exchanged)
            plgpu.barrier_wait(exchanged)
            fetch_h(h_ref.at[batch, t, head])
            plgpu.barrier_wait(arrived)

    first = tuple(load(state_ref.at[part, head, units, batch]) for part in range(4))
    after, _ = lax.fori_loop(0, time, step, (first, token(0)))
    for part in range(4):
        store(after_ref.at[part, head, units, batch], after[part])
    plgpu.wait_smem_to_gmem(0)


def _cell(raw: list[Array], c: Array, n: Array, m: Array) -> tuple[Array, Array, Array, Array]:
    """(c, n, h, m) after one token; from an empty state (n = 0) m is the input gate's pre-activation.

    tanh and the sigmoid are made of exponentials, whose approximation is good to 2^-22; the hardware's tanh is to 2^-11.
    """
    i, f, z, o = raw
    forgets = jnp.minimum(f, 0) - jnp.log(1 + jnp.exp(-jnp.abs(f))) + m
    m = jnp.where(n == 0, i, jnp.maximum(forgets, i))
    i = jnp.exp(i - m)
    f = jnp.exp(jnp.minimum(forgets - m, 60))
    c = f * c + i * (1 - 2 / (1 + jnp.exp(2 * z)))
    n = f * n + i
    return c, n, c / (n * (1 + jnp.exp(-o))), m


def _fill(x: Array, axis: int, size: int) -> Array:
    """Padded with zeros at the end of an axis to a multiple of size."""
    missing = -x.shape[axis] % size
    return jnp.pad(x, [(0, missing if a == axis else 0) for a in range(x.ndim)]) if missing else x
