"""`mlstm_front` on NVIDIA GPUs from Ampere on (sm_80), through Pallas' Triton lowering: one kernel
forward, one backward.

Forward c and u are read once and q, k and v are written once: 5 arrays of u's size. Backward c, u
and the gradients of q, k and v are read, those of c and u are written: 7. Besides what was given
the backward pass has the maps as the kernels take them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from pallas_kernels.derivatives import gradients_alone, with_first_backward_only
from pallas_kernels.dispatch import device_family, target_device
from pallas_kernels.interpret import triton_mode
from pallas_kernels.mlstm_front import pallas_triton_kernels as kernels
from pallas_kernels.mlstm_front.call import Call, Front
from pallas_kernels.mlstm_front.pallas_triton_kernels import Blocks, Settings
from pallas_kernels.typing import state_dtype

# On Hopper, ms on an H200, 65,536 tokens of 1,536 channels: forward 0.34, backward 0.37; with two
# stages 0.35 and 0.50. The others are the largest that spill at most 24 bytes a thread
# (docs/aot_gpu.md); they have not been timed. Tiles of 64 x 64 spilled 2 KB in bfloat16 on an A100,
# and 4 to 80 KB in float32, whose operands are two TF32 halves each.
BLOCKS = {"hopper": Blocks(64, 64, 4, stages=3), "gpu": Blocks(32, 32, 4, stages=2)}
FLOAT32 = Blocks(32, 16, 4, stages=2)
LEAST_GATES = 16  # of a product on tensor cores
PROGRAMS = 1056  # about so many in the backward pass, where there are enough tokens


def mlstm_front_pallas_triton(call: Call) -> Front:
    """The backend "pallas_triton": bfloat16, float16 and float32 (three TF32 products for each).

    Raises NotImplementedError for other types, blocks whose size does not divide a group of
    channels (64 on Hopper, 32 elsewhere, 16 of float32), and devices before sm_80.
    """
    mode = triton_mode()
    if call.u.dtype not in (jnp.bfloat16, jnp.float16, jnp.float32):
        raise NotImplementedError(f"u must be bfloat16, float16 or float32; it is {call.u.dtype}")
    if (high := state_dtype(*call)) != jnp.float32:
        raise NotImplementedError(f"its sums are float32; one of the inputs asks for {high}")
    size = call.query.shape[-1]
    blocks = blocks_for(device_family(*target_device()), call.u.dtype)
    if blocks.channels % size:
        raise NotImplementedError(
            f"blocks of channels must divide {blocks.channels}; they have {size}"
        )
    return _front((Settings(mode, size, blocks), PROGRAMS), call)


def blocks_for(family: str, dtype: jnp.dtype) -> Blocks:
    """The sizes for a family of devices (dispatch.py) and the type of u."""
    return FLOAT32 if dtype == jnp.float32 else BLOCKS.get(family, BLOCKS["gpu"])


class Maps(NamedTuple):
    """Of n groups of g channels, in the type of u: to q, k and v; from c and u to P gates."""

    matrices: Float[Array, "3 n g g"]
    to_gates: Float[Array, "2 n g P"]


def _value(static: tuple[Settings, int], call: Call) -> Front:
    return _forward(static, call)[0]


def _forward(static: tuple[Settings, int], call: Call) -> tuple[Front, tuple[Call, Maps]]:
    settings, _ = static
    dtype, gates = call.u.dtype, call.gate_bias.shape[0]
    grouped = [_grouped(settings, _rounded(x, dtype)) for x in (call.query, call.key, call.value)]
    maps = Maps(
        *(x.astype(dtype) for x in (jnp.stack(grouped), _to_gates(settings, call, grouped)))
    )
    *mapped, pre_activations = kernels.forward(
        settings, _rows(call.c), _rows(call.u), *maps,
        _with_least(call.gate_bias.astype(jnp.float32), 0),
    )  # fmt: skip
    q, k, v = (x.reshape(call.u.shape) for x in mapped)
    front = Front(q, k, v, pre_activations[:, :gates].reshape(*call.u.shape[:2], gates))
    return front, (call, maps)


def _backward(static: tuple[Settings, int], kept: tuple[Call, Maps], d_front: Front) -> tuple[Call]:
    (settings, programs), (call, maps) = static, kept
    size, dtype, (*_, channels) = settings.size, call.u.dtype, call.u.shape
    gates = call.gate_bias.shape[0]
    d_gates = d_front.gates.reshape(-1, gates)
    matrices, to_gates = (jnp.swapaxes(x, -1, -2) for x in maps)
    c, u, *of_front = (_rows(x) for x in (call.c, call.u, *d_front[:-1]))
    tiles = pl.cdiv(u.shape[0], settings.blocks.tokens)
    dc, du, of_maps, of_gates = kernels.backward(
        settings, min(tiles, pl.cdiv(programs, settings.groups(channels))), c, u, matrices,
        to_gates, *of_front, _with_least(d_gates, 1).astype(dtype),
    )  # fmt: skip
    of_maps, of_gates = (jnp.sum(x, axis=0)[:, :channels] for x in (of_maps, of_gates))
    of_c, of_u = of_gates[..., :gates]

    # What reaches a map through the gates: x dgates G'; and the gates' kernel: Q' x dgates.
    of_x = jnp.stack([of_c, of_c, of_u]).reshape(3, -1, size, gates)
    of_kernel = _rounded(call.gate_kernel, dtype).reshape(3, -1, size, gates)
    of_maps = of_maps.reshape(3, *call.query.shape) + _product("pnig,pnog->pnio", of_x, of_kernel)
    matrices = jnp.stack([_rounded(x, dtype) for x in (call.query, call.key, call.value)])
    d_kernel = _product("pnio,pnig->pnog", matrices, of_x).reshape(call.gate_kernel.shape)
    gradients = (
        dc.reshape(call.c.shape), du.reshape(call.u.shape), *of_maps, d_kernel,
        jnp.sum(d_gates, axis=0),
    )  # fmt: skip
    return (Call(*(dx.astype(x.dtype) for x, dx in zip(call, gradients, strict=True))),)


_front = with_first_backward_only(
    _value, _forward, _backward, gradients_alone("mlstm_front", "pallas_triton"), name="qkv"
)


def _rows(x: Float[Array, "B T I"]) -> Float[Array, "R I"]:
    return x.reshape(-1, x.shape[-1])


def _rounded(x: Array, dtype: jnp.dtype) -> Array:
    """As the products see it, in float32."""
    return x.astype(dtype).astype(jnp.float32)


def _grouped(settings: Settings, kernel: Float[Array, "N i i"]) -> Float[Array, "n g g"]:
    """Groups of blocks as one block-diagonal matrix each, the last filled up with zeros."""
    size = settings.size
    per_group = settings.blocks.channels // size
    groups = settings.groups(kernel.shape[0] * size)
    filled = jnp.pad(kernel, ((0, groups * per_group - kernel.shape[0]), (0, 0), (0, 0)))
    blocks = filled.reshape(groups, per_group, size, 1, size)
    diagonal = jnp.eye(per_group, dtype=kernel.dtype)[:, None, :, None]
    return (blocks * diagonal).reshape(groups, per_group * size, per_group * size)


def _to_gates(
    settings: Settings, call: Call, maps: list[Float[Array, "n g g"]]
) -> Float[Array, "2 n g P"]:
    """The maps from c and from u to the gates."""
    channels, size = call.u.shape[-1], settings.blocks.channels
    groups = settings.groups(channels)
    parts = _with_least(_rounded(call.gate_kernel, call.u.dtype), 1).reshape(3, channels, -1)
    parts = jnp.pad(parts, ((0, 0), (0, groups * size - channels), (0, 0)))
    of_q, of_k, of_v = (
        _product("ngh,nhp->ngp", x, part.reshape(groups, size, -1))
        for x, part in zip(maps, parts, strict=True)
    )
    return jnp.stack([of_q + of_k, of_v])


def _with_least(x: Array, axis: int) -> Array:
    """Filled up with zeros to a power of two of gates, at least LEAST_GATES."""
    size = max(LEAST_GATES, pl.next_power_of_2(x.shape[axis]))
    widths = [(0, size - x.shape[axis] if at == axis else 0) for at in range(x.ndim)]
    return jnp.pad(x, widths)


def _product(equation: str, x: Array, y: Array) -> Array:
    return jnp.einsum(equation, x, y, precision=jax.lax.Precision.HIGHEST)
