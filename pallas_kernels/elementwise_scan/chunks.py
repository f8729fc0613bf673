"""Any recurrence whose steps compose, chunk by chunk: memory linear in T, a state per chunk kept.

Inside a chunk it goes token by token ("recurrent": fewest operations, best on a CPU) or by an
associative scan ("associative": log2(L) steps of all tokens at once, best on an accelerator). A
chunk is recomputed in the backward pass; derivatives of all orders are autodiff's.
"""

from collections.abc import Callable
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool

from pallas_kernels.dispatch import Backend, dispatch


class Rule(NamedTuple):
    """A recurrence. Arrays of tokens and elements are `[B L ...]`, states `[B ...]`."""

    # (tokens, starts or None, padding or None) -> elements, each the step of one token; padding's
    # leaves the state alone, a start's drops it first
    elements: Callable[[Any, Array | None, Array | None], Any]
    # (element, later element) -> the element of both, one after the other
    compose: Callable[[Any, Any], Any]
    # (state, element) -> state
    apply: Callable[[Any, Any], Any]
    # (states before each token, states after it, tokens, starts or None) -> outputs [B L ...]
    readout: Callable[[Any, Any, Any, Array | None], Any]


class Call(NamedTuple):
    """What both forms are given."""

    rule: Rule
    tokens: Any
    starts: Bool[Array, "B T"] | None
    padding: Bool[Array, "B T"] | None
    state: Any
    chunk_size: int | None


def scan(op: str, call: Call, backend: Backend) -> tuple[Any, Any]:
    """(outputs `[B T ...]`, 0 at padding, and the state after the last token) of a recurrence."""
    one = _time(call) == 1
    y, state = dispatch(op, BACKENDS, backend, ("recurrent",) if one else ORDER, call)
    if call.padding is None:
        return y, state

    def silent(y: Array) -> Array:
        return jnp.where(call.padding.reshape(*y.shape[:2], *(1,) * (y.ndim - 2)), 0, y)

    return jax.tree.map(silent, y), state


def scan_recurrent(call: Call) -> tuple[Any, Any]:
    """Token by token inside each chunk."""
    rule = call.rule

    def step(state: Any, token: Any) -> tuple[Any, Any]:
        tokens, starts, padding = jax.tree.map(lambda x: x[:, None], token)
        before = jax.tree.map(lambda x: x[:, None], state)
        after = rule.apply(before, rule.elements(tokens, starts, padding))
        y = rule.readout(before, after, tokens, starts)
        return jax.tree.map(lambda x: x[:, 0], after), jax.tree.map(lambda x: x[:, 0], y)

    return _over_chunks(call, lambda state, chunk: lax.scan(step, state, chunk), 64)


def scan_associative(call: Call) -> tuple[Any, Any]:
    """All tokens of a chunk at once."""
    rule = call.rule

    def chunk_of(state: Any, chunk: Any) -> tuple[Any, Any]:
        tokens, starts, padding = jax.tree.map(_swap, chunk)
        steps = lax.associative_scan(rule.compose, rule.elements(tokens, starts, padding), axis=1)
        first = jax.tree.map(lambda x: x[:, None], state)
        after = rule.apply(first, steps)
        before = jax.tree.map(lambda x, y: jnp.concatenate([x, y[:, :-1]], axis=1), first, after)
        y = rule.readout(before, after, tokens, starts)
        return jax.tree.map(lambda x: x[:, -1], after), jax.tree.map(_swap, y)

    return _over_chunks(call, chunk_of, 128)


BACKENDS = MappingProxyType({"recurrent": scan_recurrent, "associative": scan_associative})
ORDER = MappingProxyType(
    {
        "tpu": ("associative",),
        "hopper": ("associative",),
        "gpu": ("associative",),
        "cpu": ("recurrent",),
    }
)


def _over_chunks(call: Call, of_chunk: Callable, default_size: int) -> tuple[Any, Any]:
    """of_chunk takes (state, (tokens, starts, padding)), time first; returns (state, outputs)."""
    time = _time(call)
    size = call.chunk_size or default_size
    size = -(-time // -(-time // size))  # evened out, so that little is filled up
    padding = call.padding
    if time % size and padding is None:
        padding = jnp.zeros((len(jax.tree.leaves(call.tokens)[0]), time), bool)
    tokens = jax.tree.map(lambda x: _cut(x, size), (call.tokens, call.starts))
    filled = None if padding is None else _cut(padding, size, fill=True)
    chunks = (*tokens, filled)
    state, y = lax.scan(jax.checkpoint(of_chunk), call.state, chunks)
    y = jax.tree.map(lambda y: _swap(y.reshape(-1, *y.shape[2:]))[:, :time], y)
    return y, state


def _time(call: Call) -> int:
    return jax.tree.leaves(call.tokens)[0].shape[1]


def _swap(x: Array) -> Array:
    return jnp.swapaxes(x, 0, 1)


def _cut(x: Array, size: int, *, fill: bool = False) -> Array:
    """`[B T ...]` as chunks `[N L B ...]`."""
    missing = -x.shape[1] % size
    x = jnp.pad(x, ((0, 0), (0, missing), *((0, 0),) * (x.ndim - 2)), constant_values=fill)
    x = _swap(x)
    return x.reshape(-1, size, *x.shape[1:])
