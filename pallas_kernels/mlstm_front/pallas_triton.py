"""`mlstm_front` on NVIDIA GPUs from Ampere on (sm_80), through Pallas' Triton lowering: one kernel
forward, two backward.

Forward u is read once and c, q, k, v are written once. Backward, u and the gradients of c, q, k and
v are read, and c is made again from u; the gradient g of the convolution's sum is written by one
kernel and read by the next, with v's gradient, because a token's is needed by W-1 others, which
other programs have. In all 5 arrays of u's size forward and 9 backward; a backward pass in one
kernel would be 6, with g made W times over, or handed on within a program through memory that
Triton gives no order to.

Nothing but what was given is kept for the backward pass.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int

from pallas_kernels.derivatives import gradients_alone, with_first_backward_only
from pallas_kernels.dispatch import target_device
from pallas_kernels.interpret import interpret_mode
from pallas_kernels.mlstm.pallas_triton import TOO_OLD
from pallas_kernels.mlstm_front import pallas_triton_kernels as kernels
from pallas_kernels.mlstm_front.call import Call, Front, Inner
from pallas_kernels.mlstm_front.pallas_triton_tiles import Blocks, Operands, Settings, groups_of
from pallas_kernels.mlstm_front.places import Places
from pallas_kernels.typing import state_dtype

LEAST_GATES = 16  # of a product on tensor cores
PROGRAMS = 512  # at least so many in the kernel with the sums, where there are enough tokens


def mlstm_front_pallas_triton(call: Call) -> Front:
    """The backend "pallas_triton": bfloat16, float16 and float32 (three TF32 products for each).

    Raises NotImplementedError for other types, blocks whose size does not divide a group of 64
    channels, and devices before sm_80.
    """
    mode = interpret_mode("gpu")
    kind = target_device()[1]
    if mode is False and any(name in kind for name in TOO_OLD):
        raise NotImplementedError(
            f"it needs an NVIDIA GPU with sm_80 or later, and this program is lowered for a {kind}"
        )
    if mode not in (False, True):
        raise NotImplementedError(
            "it is interpreted by interpret=True alone, there is no simulator for Triton kernels"
        )
    if call.u.dtype not in (jnp.bfloat16, jnp.float16, jnp.float32):
        raise NotImplementedError(f"u must be bfloat16, float16 or float32; it is {call.u.dtype}")
    if (high := state_dtype(*call.floats())) != jnp.float32:
        raise NotImplementedError(f"its sums are float32; one of the inputs asks for {high}")
    size = call.query.shape[-1]
    if Blocks().channels % size:
        raise NotImplementedError(
            f"blocks of channels must divide {Blocks().channels}; they have {size}"
        )
    batch, time, channels = call.u.shape
    tiles = pl.cdiv(time, Blocks().tokens)
    of_rows = batch * pl.cdiv(channels, Blocks().channels)
    settings = Settings(mode, size, min(tiles, pl.cdiv(PROGRAMS, of_rows)))
    return _front(settings, call, call.places())


def _value(settings: Settings, call: Call, places: Places) -> Front:
    gates = call.gate_bias.shape[0]
    matrices = jnp.stack([_grouped(settings, x) for x in (call.query, call.key, call.value)])
    front = kernels.forward(
        settings,
        _operands(call, places),
        matrices.astype(call.u.dtype),
        _gate_parts(settings, call).astype(call.u.dtype),
        _with_least(call.gate_bias.astype(jnp.float32), 0),
    )
    return front._replace(gates=front.gates[..., :gates])


def _forward(settings: Settings, call: Call, places: Places) -> tuple[Front, tuple[Call, Places]]:
    return _value(settings, call, places), (call, places)


def _backward(settings: Settings, kept: tuple[Call, Places], d_front: Front) -> tuple[Call, Places]:
    call, places = kept
    dtype, gates = call.u.dtype, call.gate_bias.shape[0]
    d_bias = jnp.sum(d_front.gates, axis=(0, 1))
    d_front = d_front._replace(gates=_with_least(d_front.gates, 2).astype(dtype))
    query, key, value = (
        _grouped(settings, x.astype(dtype).astype(jnp.float32))
        for x in (call.query, call.key, call.value)
    )
    parts = _gate_parts(settings, call).astype(dtype).astype(jnp.float32)

    def transposed(*matrices: Array) -> Array:
        return jnp.swapaxes(jnp.stack(matrices), -1, -2).astype(dtype)

    # from c and from u to the gates
    through = [
        _product("ngh,nhp->ngp", x, part)
        for x, part in zip((query, key, value), parts, strict=True)
    ]
    from_c, from_u = transposed(through[0] + through[1], through[2])
    g, *of_c = kernels.inner(
        settings, _operands(call, places), transposed(query, key), from_c, d_front.c, d_front.q,
        d_front.k, d_front.gates,
    )  # fmt: skip
    conv_kernel, (to_u,) = call.conv_kernel.astype(jnp.float32), transposed(value)
    du, *of_u, of_taps = kernels.outer(
        settings, places.targets, call.u, conv_kernel, to_u, from_u, g, d_front.v, d_front.gates
    )

    channels = call.u.shape[-1]
    (of_q_and_k, gates_of_c), (of_v, gates_of_u) = (
        [jnp.sum(x, axis=(0, 1)) for x in sums] for sums in (of_c, of_u)
    )
    of_taps = jnp.sum(of_taps, axis=(0, 1))[:, :channels]
    blocks = jnp.concatenate([of_q_and_k, of_v[None]])[:, :channels].reshape(3, *call.query.shape)
    # A map's gradient also has what comes through the gates: x dgates G'.
    of_x = jnp.stack([gates_of_c, gates_of_c, gates_of_u])[:, :channels, :gates]
    of_x, of_kernel = (
        x.reshape(3, -1, settings.size, gates)
        for x in (of_x, call.gate_kernel.astype(dtype).astype(jnp.float32))
    )
    blocks = blocks + _product("pnig,pnog->pnio", of_x, of_kernel)
    matrices = jnp.stack([x.astype(dtype) for x in (call.query, call.key, call.value)])
    d_gate_kernel = _product("pnio,pnig->pnog", matrices.astype(jnp.float32), of_x)
    d_kernel, d_window = of_taps[:-1], None
    if call.window is not None:
        met = _met_by_window(places.window_targets, g)
        d_window = _product("bwri,wi->bri", met, conv_kernel)
        d_kernel = d_kernel + _product("bwri,bri->wi", met, call.window.astype(jnp.float32))
    d_call = call._replace(
        u=du,
        window=d_window,
        conv_kernel=d_kernel,
        conv_bias=of_taps[-1],
        query=blocks[0],
        key=blocks[1],
        value=blocks[2],
        gate_kernel=d_gate_kernel.reshape(call.gate_kernel.shape),
        gate_bias=d_bias,
    )
    arrays = [
        None if x is None else dx.astype(x.dtype)
        for x, dx in zip(call[:-2], d_call[:-2], strict=True)
    ]
    return Call(*arrays, None, None), Places(None, None, None, None)


_front = with_first_backward_only(
    _value,
    _forward,
    _backward,
    gradients_alone("mlstm_front", "pallas_triton"),
    name=("conv", "qkv", "qkv", "qkv", "qkv"),
)


def _operands(call: Call, places: Places) -> Operands:
    kernel, bias = (x.astype(jnp.float32) for x in (call.conv_kernel, call.conv_bias))
    return Operands(places.sources, call.u, call.window, kernel, bias)


def _met_by_window(place: Int[Array, "B W W-1"], g: Inner) -> Float[Array, "B W W-1 I"]:
    """g of the few tokens that meet the window."""
    rows = jnp.maximum(place - place.shape[-1], 0).reshape(place.shape[0], -1)
    met = jnp.take_along_axis(g, rows[..., None], axis=1).reshape(*place.shape, -1)
    return jnp.where((place >= 0)[..., None], met, 0).astype(jnp.float32)


def _grouped(settings: Settings, kernel: Float[Array, "N i i"]) -> Float[Array, "n g g"]:
    """Groups of blocks as one block-diagonal matrix each, the last filled up with zeros."""
    size = settings.size
    per_group = settings.blocks.channels // size
    groups = groups_of(settings, kernel.shape[0] * size)
    filled = jnp.pad(kernel, ((0, groups * per_group - kernel.shape[0]), (0, 0), (0, 0)))
    blocks = filled.reshape(groups, per_group, size, 1, size)
    diagonal = jnp.eye(per_group, dtype=kernel.dtype)[:, None, :, None]
    return (blocks * diagonal).reshape(groups, per_group * size, per_group * size)


def _gate_parts(settings: Settings, call: Call) -> Float[Array, "3 n g P"]:
    """The gates' kernels of q, of k and of v, by groups of channels."""
    channels, size = call.u.shape[-1], settings.blocks.channels
    groups = groups_of(settings, channels)
    parts = _with_least(call.gate_kernel, 1).reshape(3, channels, -1)
    return jnp.pad(parts, ((0, 0), (0, groups * size - channels), (0, 0))).reshape(
        3, groups, size, -1
    )


def _with_least(x: Array, axis: int) -> Array:
    """Filled up with zeros to a power of two of gates, at least LEAST_GATES."""
    size = max(LEAST_GATES, pl.next_power_of_2(x.shape[axis]))
    widths = [(0, size - x.shape[axis] if at == axis else 0) for at in range(x.ndim)]
    return jnp.pad(x, widths)


def _product(equation: str, x: Array, y: Array) -> Array:
    return jnp.einsum(equation, x, y, precision=jax.lax.Precision.HIGHEST)
