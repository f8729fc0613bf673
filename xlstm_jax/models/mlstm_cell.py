"""What the blocks with a matrix memory share: settings of the cell, gates, the call, its FLOPs."""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from pallas_kernels import MLSTMState
from pallas_kernels.mlstm.api import BACKENDS
from xlstm_jax.errors import UserError, backend_of
from xlstm_jax.models import gpu_forms
from xlstm_jax.models.cpu_forms import gate_preactivations
from xlstm_jax.models.initializers import Initializer, head_linspace, shifted_normal, zeros
from xlstm_jax.models.layers import Fused, Mapped, record_gates, soft_cap, split_heads
from xlstm_jax.models.mixer import Segments
from xlstm_jax.parallel import platform
from xlstm_jax.parallel.kernels import mlstm
from xlstm_jax.settings import refuse_ignored, setting
from xlstm_jax.typing import Array, Float, HeadActivations

CHUNK_LENGTH = 64  # at which FLOPs are counted
SOURCES = ("text", "bias", "fixed")  # of a gate's pre-activation


@dataclasses.dataclass(frozen=True)
class MLSTMCellConfig:
    """Settings of the matrix memory and its gates."""

    num_heads: int = setting(4, "H, number of heads", at_least=1)
    input_gate: str = setting(
        "exponential",
        'or "sigmoid": mLSTMsig of TFLA, without a normaliser',
        choices=("exponential", "sigmoid"),
    )
    input_gate_bias: float = setting(0.0, "mean of the input gate's initial bias")
    input_gate_bias_std: float = setting(0.1, "its standard deviation", at_least=0)
    forget_gate_bias: tuple[float, ...] = setting(
        (3.0, 6.0),
        "initial bias of the first and the last head, linear between; inf,inf forgets nothing",
        entries=2,
        finite=False,
    )
    input_gate_from: str = setting(
        "text",
        'what decides: the text and a bias, "bias" (learned, the same for all tokens) or "fixed"',
        choices=SOURCES,
    )
    forget_gate_from: str = setting(
        "text", 'the same of the forget gate: or "bias", "fixed"', choices=SOURCES
    )
    gate_soft_cap: float | None = setting(None, "gates become a tanh(x / a)", above=0)
    eps: float = setting(1e-6, "added to the stabilised normaliser", at_least=0)
    norm_eps: float = setting(1e-5, "added to the variance in the norm of each head", at_least=0)
    backend: str | None = setting(
        None,
        "unset takes the best that serves the device",
        choices=tuple(BACKENDS),
        may_change=True,
    )
    chunk_size: int | None = setting(
        None, "L, chunk length; unset leaves it to the backend", at_least=1, may_change=True
    )

    @property
    def gates_from_text(self) -> int:
        """How many of the two gates have a kernel."""
        return (self.input_gate_from, self.forget_gate_from).count("text")


class Gate(nn.Module):
    """The weights of one pre-activation per head: of a gate that the text decides kernel and bias,
    else no kernel; a fixed gate has no parameters.

    The kernel starts at zero, so that at first the bias alone decides, as in the authors' code.
    """

    num_heads: int
    bias_init: Initializer
    source: str = "text"

    @nn.compact
    def __call__(self, size: int) -> tuple[Float[Array, "D H"] | None, Float[Array, " H"]]:
        axes, kernel, heads = ("gate_inputs", "gate_heads"), None, (self.num_heads,)
        if self.source == "fixed":
            return None, self.bias_init(None, heads)
        if self.source == "text":
            kernel_init = nn.with_logical_partitioning(zeros, axes)
            kernel = self.param("kernel", kernel_init, (size, *heads))
        bias_init = nn.with_logical_partitioning(self.bias_init, axes[1:])
        return kernel, self.param("bias", bias_init, heads)


def check_cell(settings: MLSTMCellConfig, name: str) -> None:
    """Refuses what the cell of the mixer `name` would ignore, and gates without a value."""
    if settings.input_gate_from == "fixed" and settings.input_gate_bias_std:
        raise UserError(
            f"config key model.{name}.input_gate_bias_std is {settings.input_gate_bias_std}, but "
            f"model.{name}.input_gate_from 'fixed' has one value for all heads; set it to 0"
        )
    first, last = settings.forget_gate_bias
    if first != last and math.isinf(first - last):
        raise UserError(
            f"config key model.{name}.forget_gate_bias is {settings.forget_gate_bias}; there is "
            "nothing between a finite and an infinite value: give two finite ones, or the same"
        )
    if settings.input_gate == "sigmoid":
        why = "a sigmoid input gate has no normaliser to add it to"
        refuse_ignored(settings, f"model.{name}", ("eps",), why)


GateWeights = list[tuple[Float[Array, "D H"] | None, Float[Array, " H"]]]


def gate_weights(module: nn.Module, settings: MLSTMCellConfig, size: int) -> GateWeights:
    """Kernel and bias of input gate and forget gate, of `size` numbers for each token: the
    parameters `input_gate` and `forget_gate` of the module that calls it.
    """
    input_bias = shifted_normal(settings.input_gate_bias, settings.input_gate_bias_std)
    forget_bias = head_linspace(*settings.forget_gate_bias)
    if settings.input_gate_from == "fixed":
        input_bias = head_linspace(settings.input_gate_bias, settings.input_gate_bias)
    return [
        Gate(settings.num_heads, bias_init, source, name=f"{name}_gate", parent=module)(size)
        for name, bias_init, source in (
            ("input", input_bias, settings.input_gate_from),
            ("forget", forget_bias, settings.forget_gate_from),
        )
    ]


def gates_of(
    module: nn.Module, weights: GateWeights, *inputs: Mapped | Fused | Float[Array, "B T _"]
) -> tuple[Float[Array, "B T H"], Float[Array, "B T H"]]:
    """Pre-activations of input gate and forget gate, linear in the inputs or the same for all
    tokens, float32 or better.

    The rows of the gates' kernels (`gate_weights`) are those of the inputs, one below the other.
    Inputs that were mapped from the same x give one product with x; where all came out of one
    kernel with the gates, these are taken. The module records what they are.
    """
    sizes = [value_of(x).shape[-1] for x in inputs]
    tokens = value_of(inputs[0]).shape[:2]
    decided = iter(_decided(sizes, inputs, [gate for gate in weights if gate[0] is not None]))
    i, f = (
        jnp.broadcast_to(bias, (*tokens, *bias.shape)) if kernel is None else next(decided)
        for kernel, bias in weights
    )
    record_gates(module, i, f)
    return i, f


def _decided(sizes: list[int], inputs: Any, gates: list[tuple[Array, Array]]) -> list[Array]:
    """The pre-activations of the gates with these kernels and biases."""
    if not gates:
        return []
    if (fused := Fused.gates_with(inputs)) is not None:
        return jnp.split(fused, len(gates), axis=-1)
    if platform() == "gpu" and value_of(inputs[0]).shape[1] == 1:
        x = jnp.concatenate([value_of(given) for given in inputs], axis=-1)
        return [gpu_forms.gate_of_token(x, *gate) for gate in gates]
    kernel, bias = (jnp.concatenate(parts, axis=-1) for parts in zip(*gates, strict=True))
    products: dict[int, tuple[Array, Array]] = {}  # by the identity of x
    for given, rows in zip(inputs, jnp.split(kernel, np.cumsum(sizes)[:-1]), strict=True):
        if isinstance(given, Mapped):
            x, rows = given.x, given.then(rows)
        else:
            x = value_of(given)
        before = products.get(id(x))
        products[id(x)] = (x, rows if before is None else before[1] + rows)
    xs, kernels = zip(*products.values(), strict=True)
    return jnp.split(gate_preactivations(list(xs), list(kernels), bias), len(gates), axis=-1)


def value_of(x: Mapped | Fused | Array) -> Array:
    """The array itself."""
    return x.value if isinstance(x, Mapped | Fused) else x


def matrix_memory(
    settings: MLSTMCellConfig,
    q: Mapped | Fused | Float[Array, "B T H*K"],
    k: Mapped | Fused | Float[Array, "B T H*K"],
    v: Mapped | Fused | Float[Array, "B T H*V"],
    gates: tuple[Float[Array, "B T H"], Float[Array, "B T H"]],
    state: MLSTMState | None,
    segments: Segments,
    name: str,
) -> tuple[HeadActivations, MLSTMState]:
    """`mlstm` with neighbouring channels as heads; `settings` are those of the mixer `name`."""
    heads = [
        split_heads(checkpoint_name(value_of(x), "qkv"), settings.num_heads) for x in (q, k, v)
    ]
    i, f = (soft_cap(gate, settings.gate_soft_cap) for gate in gates)
    with backend_of(f"model.{name}.backend", settings.backend):
        return mlstm(
            *heads,
            i,
            f,
            state,
            segment_ids=segments.ids,
            previous_segment=segments.previous,
            input_gate=settings.input_gate,
            chunk_size=settings.chunk_size,
            eps=settings.eps,
            # one token is always the decode step
            backend=settings.backend if heads[0].shape[1] > 1 else None,
        )


def empty_memory(
    batch_size: int, num_heads: int, qk_dim: int, v_dim: int, dtype: Any
) -> MLSTMState:
    """The empty matrix memory of so many channels over all heads, in float32 or better."""
    qk_dim, v_dim = qk_dim // num_heads, v_dim // num_heads
    dtype = jnp.promote_types(dtype, jnp.float32)
    return MLSTMState.empty(batch_size, num_heads, qk_dim, v_dim, dtype)


def cell_flops(num_heads: int, qk_dim: int, v_dim: int, length: int = CHUNK_LENGTH) -> float:
    """Forward FLOPs of one token over all heads in the chunkwise form at this chunk length (xLSTM
    7B, arXiv 2503.13427, appendix D, every elementary function one FLOP).
    """
    k, v = qk_dim // num_heads, v_dim // num_heads
    triangle = length * (length + 1) / 2
    between_gates = triangle + 2 * length + 5 + 5 * length
    between_state = 2 * k * v + 4 * length * k * v + 3 * length * k + 2 * k + 4 * length * k
    within_gates = triangle + 6 * length**2 + 2 * length
    within_products = 2 * length**2 * (1 + k) + 2 * length**2 * v + 2 * length**2
    combination = 2 * length + length * (5 + 2 * v)
    of_chunk = between_gates + between_state + within_gates + within_products + combination
    return num_heads * of_chunk / length


def cell_flops_tfla(num_heads: int, qk_dim: int, v_dim: int, length: int = CHUNK_LENGTH) -> float:
    """The same as the repositories of TFLA and of arXiv 2510.02228 count it ("tfla"): with the
    logarithm and the sigmoid of the gates, and with fewer products for the normaliser. The square
    of a chunk counts as a whole, as it does there up to a chunk length of 64.
    """
    k, v = qk_dim // num_heads, v_dim // num_heads
    triangle = length * (length + 1) / 2
    gates = triangle + 6 * length + 5
    state = 2 * k * v + 2 * length * k * v + length * k
    normaliser = 2 * k + 2 * length * k
    forget = triangle + 2 * length
    within = 5 * length**2 + 2 * length + 2 * length**2 * (k + v) + 3 * length**2
    between = 2 * length * k * v + 3 * length * k
    combination = 2 * length * v + 4 * length
    of_chunk = gates + state + normaliser + forget + within + between + combination
    return num_heads * of_chunk / length


def cell_flops_parallel(num_heads: int, qk_dim: int, v_dim: int, context_length: int) -> float:
    """The same in the parallel form (arXiv 2405.04517, appendix A.3; counted as by the repository
    of TFLA): a T x T matrix per head, of which all entries are computed.
    """
    k, v, time = qk_dim // num_heads, v_dim // num_heads, context_length
    forget = (time + 1) / 2 + 2
    gate_matrix = 6 * time
    scores = 2 * time * k + 2 * time
    normaliser = 4 * time + 2
    return num_heads * (forget + gate_matrix + scores + normaliser + 2 * time * v)


def cell_flops_recurrent(num_heads: int, qk_dim: int, v_dim: int) -> float:
    """The same in the recurrent form, token by token (counted as by the repository of TFLA)."""
    k, v = qk_dim // num_heads, v_dim // num_heads
    gates, update, normaliser = 9, 4 * k * v, 6 * k + v + 3
    return num_heads * (gates + update + normaliser + 2 * k * v + k)
