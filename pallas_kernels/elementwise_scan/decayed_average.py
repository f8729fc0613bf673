"""RWKV-4's wkv: an average of values with weights exp(k) that decay, whose own token counts exp(u)
times more.

Weights may be as large as exp(1000). So a state holds numerator and denominator divided by exp(m),
m the largest logarithm of a weight so far: the true ones are those times exp(m). m is a constant to
the gradient, as it cancels in the average; a given m has its exact one. Source: arXiv 2305.13048,
equations 19 to 22 of appendix D.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pallas_kernels.dispatch import Backend
from pallas_kernels.elementwise_scan.api import borders, check_tokens, clean, over
from pallas_kernels.elementwise_scan.chunks import Call, Rule, scan
from pallas_kernels.typing import LastSegment, SegmentIds, state_dtype

NO_WEIGHT = -1e38  # m where there is nothing yet: finite, so that differences of two are 0


class AverageState(NamedTuple):
    """Numerator and denominator of the average, each divided by exp(m)."""

    numerator: Float[Array, "B D"]
    denominator: Float[Array, "B D"]
    m: Float[Array, "B D"]

    @classmethod
    def empty(cls, batch: int, dim: int, dtype: DTypeLike = jnp.float32) -> "AverageState":
        """The state before the first token, and after a reset."""
        zeros = jnp.zeros((batch, dim), dtype)
        return cls(zeros, zeros, jnp.full((batch, dim), NO_WEIGHT, dtype))


def decayed_average(
    k: Float[Array, "B T D"],
    v: Float[Array, "B T D"],
    log_decay: Float[Array, " D"],
    bonus: Float[Array, " D"],
    initial_state: AverageState | None = None,
    *,
    segment_ids: SegmentIds | None = None,
    previous_segment: LastSegment | None = None,
    chunk_size: int | None = None,
    backend: Backend = None,
) -> tuple[Float[Array, "B T D"], AverageState]:
    """y_t = (N_{t-1} + e^{u + k_t} v_t) / (D_{t-1} + e^{u + k_t}), and the state after the last
    token, where N_t = w N_{t-1} + e^{k_t} v_t and D_t = w D_{t-1} + e^{k_t}.

    log_decay is log w `[D]`, at most 0 (RWKV-4: -exp(time_decay)); bonus is u `[D]`. y has v's
    type, states are float32, float64 when any input is. The returned m carries no gradient. Options
    and errors as in `elementwise_recurrence`.
    """
    if not k.ndim == v.ndim == 3:
        raise ValueError(
            f"decayed_average: k has shape {k.shape} and v {v.shape}; they must be [B T D]."
        )
    batch, time = check_tokens("decayed_average", (k, v), chunk_size)
    dim = k.shape[2]
    expected = {"v": (v, k.shape), "log_decay": (log_decay, (dim,)), "bonus": (bonus, (dim,))}
    for name, array in (initial_state or AverageState(None, None, None))._asdict().items():
        expected[f"initial_state.{name}"] = (array, (batch, dim))
    for name, (array, shape) in expected.items():
        if array is not None and array.shape != shape:
            raise ValueError(
                f"decayed_average: {name} has shape {array.shape}; with k {k.shape} it must be "
                f"{shape}."
            )
    starts, padding = borders("decayed_average", batch, time, segment_ids, previous_segment)
    dtype = state_dtype(k, v, log_decay, bonus)
    decay, u = log_decay.astype(dtype), bonus.astype(dtype)[None, None]
    state = AverageState.empty(batch, dim, dtype) if initial_state is None else initial_state
    state = AverageState(*(x.astype(dtype) for x in state))

    # An element is what a stretch of tokens leaves, with the sum of its log decays.
    def elements(tokens: Any, starts: Array | None, padding: Array | None) -> Any:
        k, v = (x.astype(dtype) for x in tokens)
        g, one = jnp.broadcast_to(decay, k.shape), jnp.ones_like(k)
        if starts is not None:
            g = jnp.where(starts[..., None], -jnp.inf, g)
        if padding is not None:
            flags = padding[..., None]
            g, v, one = (jnp.where(flags, 0, x) for x in (g, v, one))
            k = jnp.where(flags, NO_WEIGHT, k)
        return g, AverageState(v, one, k)

    def readout(before: AverageState, after: AverageState, tokens: Any, starts: Any) -> Array:
        k, v = (x.astype(dtype) for x in tokens)
        if starts is not None:
            nothing = AverageState(0.0, 0.0, NO_WEIGHT)
            flags = over(starts, k)
            before = AverageState(
                *(jnp.where(flags, x, y) for x, y in zip(nothing, before, strict=True))
            )
        own = AverageState(v, jnp.ones_like(k), u + k)
        total = _sum(before, 0, own)
        return (total.numerator / total.denominator).astype(tokens[1].dtype)

    rule = Rule(
        elements,
        compose=lambda x, y: (x[0] + y[0], _sum(x[1], y[0], y[1])),
        apply=lambda state, x: _sum(state, *x),
        readout=readout,
    )
    call = Call(rule, clean((k, v), padding), starts, padding, state, chunk_size)
    return scan("decayed_average", call, backend)


def _sum(x: AverageState, g: Array | int, y: AverageState) -> AverageState:
    """x decayed by exp(g), plus y."""
    m = lax.stop_gradient(jnp.maximum(x.m + g, y.m))
    old, new = jnp.exp(x.m + g - m), jnp.exp(y.m - m)
    return AverageState(
        old * x.numerator + new * y.numerator, old * x.denominator + new * y.denominator, m
    )
