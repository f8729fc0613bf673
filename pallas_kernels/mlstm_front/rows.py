"""`mlstm_front` from kernels that take all tokens as rows and channels in groups: what its Pallas
backends have in common.

Groups of blocks of i x i channels are one matrix each, zero off its diagonal blocks: units that
multiply matrices do it in less time than the group's bytes take. The gates are linear in q, k and
v, which are linear in c and u. So they are maps of c and u as well, A = Q G_q + K G_k and B = V
G_v, with G the parts of the gates' kernel and transposes written as Q':

  forward     q = Q c, k = K c, v = V u, gates = bias + A' c + B' u
  backward    dc = Q' dq + K' dk + A dgates, du = V' dv + B dgates; sums over tokens of c dq, c dk,
              u dv, c dgates, u dgates

Forward c and u are read once and q, k and v are written once: 5 arrays of u's size. Backward c, u
and the gradients of q, k and v are read, those of c and u are written: 7. Besides what was given
the backward pass has the maps as the kernels take them.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from pallas_kernels.derivatives import gradients_alone, with_first_backward_only
from pallas_kernels.mlstm_front.call import Call, Front, Inner
from pallas_kernels.typing import Rows, require_type, state_dtype

LEAST_GATES = 16  # of a product on tensor cores, and rows of a register of bfloat16


class Kernels(NamedTuple):
    """Of a backend.

    module: has `forward(settings, c, u, matrices [3 n g g], to_gates [2 n g P], bias [P])`, which
        gives q, k, v and the gates [R P], and `backward(settings, c, u, matrices [3 n g g],
        to_gates [2 n P g], dq, dk, dv, dgates)`, with the maps transposed, which gives dc, du, the
        diagonal blocks of c dq, c dk and u dv as [3 n*g i], c dgates and u dgates as [2 n*g P].
    settings: what they are specialised on; has `size`, i, the channels of a block.
    group: g, channels of a group.
    place: what the gradients of the maps [N i i] and of the gates' kernel go through, to lie in
        memory as the device wants them.
    """

    module: ModuleType
    settings: Any
    group: int
    place: Callable[[Array], Array] = lambda x: x

    @property
    def size(self) -> int:
        """i, channels of a block."""
        return self.settings.size

    def groups(self, channels: int) -> int:
        """n, how many groups the channels make."""
        return pl.cdiv(channels, self.group)


class Maps(NamedTuple):
    """Of n groups of g channels, in the type of u: to q, k and v; from c and u to P gates."""

    matrices: Float[Array, "3 n g g"]
    to_gates: Float[Array, "2 n g P"]


def check(call: Call, group: int, *types: jnp.dtype) -> int:
    """The channels of a block.

    Raises NotImplementedError for u of other types, where sums in float64 are asked for, and for
    blocks that do not divide a group.
    """
    require_type("u", call.u, types)
    if (high := state_dtype(*call)) != jnp.float32:
        raise NotImplementedError(f"its sums are float32; one of the inputs asks for {high}")
    size = call.query.shape[-1]
    if group % size:
        raise NotImplementedError(f"blocks of channels must divide {group}; they have {size}")
    return size


def with_kernels(backend: str) -> Any:
    """The backend's function of Kernels and a Call."""
    refusal = gradients_alone("mlstm_front", backend)
    return with_first_backward_only(_value, _forward, _backward, refusal, name="qkv")


def _value(kernels: Kernels, call: Call) -> Front:
    return _forward(kernels, call)[0]


def _forward(kernels: Kernels, call: Call) -> tuple[Front, tuple[Call, Maps]]:
    dtype, gates = call.u.dtype, call.gate_bias.shape[0]
    grouped = [_grouped(kernels, _rounded(x, dtype)) for x in (call.query, call.key, call.value)]
    maps = Maps(*(x.astype(dtype) for x in (jnp.stack(grouped), _to_gates(kernels, call, grouped))))
    *mapped, pre_activations = kernels.module.forward(
        kernels.settings, _rows(call.c), _rows(call.u), *maps,
        _with_least(call.gate_bias.astype(jnp.float32), 0),
    )  # fmt: skip
    q, k, v = (x.reshape(call.u.shape) for x in mapped)
    front = Front(q, k, v, pre_activations[:, :gates].reshape(*call.u.shape[:2], gates))
    return front, (call, maps)


def _backward(kernels: Kernels, kept: tuple[Call, Maps], d_front: Front) -> tuple[Call]:
    call, maps = kept
    size, dtype, (*_, channels) = kernels.size, call.u.dtype, call.u.shape
    gates = call.gate_bias.shape[0]
    d_gates = d_front.gates.reshape(-1, gates)
    matrices, to_gates = (jnp.swapaxes(x, -1, -2) for x in maps)
    c, u, *of_front = (_rows(x) for x in (call.c, call.u, *d_front[:-1]))
    dc, du, *sums = kernels.module.backward(
        kernels.settings, c, u, matrices, to_gates, *of_front,
        _with_least(d_gates, 1).astype(dtype),
    )  # fmt: skip
    of_maps, of_gates = (x[:, :channels] for x in sums)
    of_c, of_u = of_gates[..., :gates]

    # What reaches a map through the gates: x dgates G'; and the gates' kernel: Q' x dgates.
    of_x = jnp.stack([of_c, of_c, of_u]).reshape(3, -1, size, gates)
    of_kernel = _rounded(call.gate_kernel, dtype).reshape(3, -1, size, gates)
    of_maps = of_maps.reshape(3, *call.query.shape) + _product("pnig,pnog->pnio", of_x, of_kernel)
    matrices = jnp.stack([_rounded(x, dtype) for x in (call.query, call.key, call.value)])
    d_kernel = _product("pnio,pnig->pnog", matrices, of_x).reshape(call.gate_kernel.shape)
    of_weights = (kernels.place(x) for x in (*of_maps, d_kernel))
    gradients = (
        dc.reshape(call.c.shape), du.reshape(call.u.shape), *of_weights,
        jnp.sum(d_gates, axis=0),
    )  # fmt: skip
    return (Call(*(dx.astype(x.dtype) for x, dx in zip(call, gradients, strict=True))),)


def _rows(x: Inner) -> Rows:
    return x.reshape(-1, x.shape[-1])


def _rounded(x: Array, dtype: jnp.dtype) -> Array:
    """As the products see it, in float32."""
    return x.astype(dtype).astype(jnp.float32)


def _grouped(kernels: Kernels, kernel: Float[Array, "N i i"]) -> Float[Array, "n g g"]:
    """Groups of blocks as one block-diagonal matrix each, the last filled up with zeros."""
    size, per_group = kernels.size, kernels.group // kernels.size
    groups = kernels.groups(kernel.shape[0] * size)
    filled = jnp.pad(kernel, ((0, groups * per_group - kernel.shape[0]), (0, 0), (0, 0)))
    blocks = filled.reshape(groups, per_group, size, 1, size)
    diagonal = jnp.eye(per_group, dtype=kernel.dtype)[:, None, :, None]
    return (blocks * diagonal).reshape(groups, per_group * size, per_group * size)


def _to_gates(
    kernels: Kernels, call: Call, maps: list[Float[Array, "n g g"]]
) -> Float[Array, "2 n g P"]:
    """The maps from c and from u to the gates."""
    channels, size = call.u.shape[-1], kernels.group
    groups = kernels.groups(channels)
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
