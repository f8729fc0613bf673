"""The norm of heads and what follows it, as the kernels of `mlstm_back` and, without gate and skip,
of `row_norm`, where a row is one head, compute it on a tile. With n the heads' norm and a(z) the
gate:

  forward     y = (n * scale + skip * c) * a(z)
  backward    g = dy * a(z), the gradient of what is gated
              dz = dy * (n * scale + skip * c) * a'(z), dc = g * skip
              dh = rate * (dn - mean(dn) - n * mean(dn * n)) with dn = g * scale
              sums over tokens of g * n and g * c

A tile is some tokens of a head, in one or several pieces of channels (Triton wants powers of two),
from the first sum to the result in registers.
"""

from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

Parts = list[Float[Array, "t p"]]  # the pieces of a tile


class Piece(Protocol):
    """Some tokens of some channels of a head."""

    some_rows: Bool[Array, "t 1"] | None  # which tokens exist; None where all do

    def read(self, ref: Any) -> Float[Array, "t p"]:
        """The piece of an array; zeros for tokens that do not exist."""

    def read_row(self, ref: Any) -> Float[Array, "1 p"]:
        """The piece's channels of a row that all tokens have in common."""

    def write(self, ref: Any, x: Float[Array, "t p"]) -> None:
        """Writes the piece of an array, in its type."""


class Norm(NamedTuple):
    """What is computed.

    head_dim: V.
    eps, center: as `mlstm_back` takes them.
    activation: what the gate goes through, None where there is no gate.
    """

    head_dim: int
    eps: float
    center: bool
    activation: str | None


class Given(NamedTuple):
    """What a kernel was given; None for what it was not."""

    h: Any
    scale: Any
    gate: Any = None
    c: Any = None
    skip: Any = None

    def replaced(self, refs: Any) -> "Given":
        """Each array's place taken by the next of refs."""
        refs = iter(refs)
        return Given(*(None if x is None else next(refs) for x in self))


def write_forward(norm: Norm, pieces: list[Piece], given: Given, y: Any) -> None:
    """y of a tile."""
    h, scale, gate, c, skip = given
    normed, _ = _normed(norm, pieces, h)
    for piece, n in zip(pieces, normed, strict=True):
        inner = n * piece.read_row(scale)
        if c is not None:
            inner = inner + piece.read_row(skip) * _read(piece, c)
        if gate is not None:
            inner = inner * _gate(norm, _read(piece, gate))[0]
        piece.write(y, inner)


def write_backward(
    norm: Norm, pieces: list[Piece], dy: Any, given: Given, gradients: Any
) -> list[Parts]:
    """Writes dh, and dgate and dc where there are gate and c. For each piece what its tokens add to
    the gradients of scale and, where there is one, skip.
    """
    h, scale, gate, c, skip = given
    dh, *others = gradients
    normed, rate = _normed(norm, pieces, h)
    along, added = [], []
    for piece, n in zip(pieces, normed, strict=True):
        of_y, of_scale = _read(piece, dy), piece.read_row(scale)
        a, slope = (1, 0) if gate is None else _gate(norm, _read(piece, gate))
        inner, g = n * of_scale, of_y * a
        summands = [g * n]
        if c is not None:
            of_c, of_skip = _read(piece, c), piece.read_row(skip)
            inner = inner + of_skip * of_c
            piece.write(others[1], g * of_skip)
            summands.append(g * of_c)
        if gate is not None:
            piece.write(others[0], of_y * inner * slope)
        along.append(g * of_scale)
        added.append(summands)
    slope = _mean(norm, [dn * n for dn, n in zip(along, normed, strict=True)])
    level = _mean(norm, along) if norm.center else 0
    for piece, dn, n in zip(pieces, along, normed, strict=True):
        piece.write(dh, rate * (dn - level - n * slope))
    return added


def _normed(norm: Norm, pieces: list[Piece], h: Any) -> tuple[Parts, Float[Array, "t 1"]]:
    """n, and what the distances from the mean were multiplied with."""
    parts = [_read(piece, h) for piece in pieces]
    if norm.center:
        mean = _mean(norm, parts)
        parts = [x - mean for x in parts]
    square = _mean(norm, [x * x for x in parts]) + norm.eps
    if (some := pieces[0].some_rows) is not None:  # zeros, whose norm is infinite where eps is 0
        square = jnp.where(some, square, 1)
    rate = lax.rsqrt(square)
    return [x * rate for x in parts], rate


def _mean(norm: Norm, parts: Parts) -> Float[Array, "t 1"]:
    return sum(jnp.sum(x, axis=1, keepdims=True) for x in parts) / norm.head_dim


def _gate(norm: Norm, z: Array) -> tuple[Array, Array]:
    """The activation and its derivative."""
    s = 1 / (1 + jnp.exp(-z))
    if norm.activation == "sigmoid":
        return s, s * (1 - s)
    return z * s, s * (1 + z * (1 - s))


def _read(piece: Piece, ref: Any) -> Float[Array, "t p"]:
    return piece.read(ref).astype(jnp.float32)
