"""From the states before and after each chunk to its tokens' outputs and gradients, on Hopper GPUs;
see pallas_gpu.py.

Narrow heads make the pairs of a chunk where they are used (pallas_gpu_attend.py). Of wide heads a
block of threads has room for a part of the columns alone, and each part would make the pairs anew:
there `pairs` writes them and `combine` reads them (pallas_gpu_kernels.py). `walk`, which makes the
states, is the same for both.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.mlstm.gates import (
    ChunkGates,
    TokenNumbers,
    normaliser_slope,
    output_overlap,
    per_denominator,
)
from pallas_kernels.mlstm.pallas_gpu_attend import attend
from pallas_kernels.mlstm.pallas_gpu_kernels import combine, pairs, walk
from pallas_kernels.mlstm.pallas_gpu_normaliser import dot_vectors
from pallas_kernels.mlstm.pallas_gpu_tiles import Options
from pallas_kernels.typing import Keys, Values

__all__ = ["key_gradients", "outputs", "query_gradients", "value_gradients", "walk"]


def outputs(
    options: Options,
    q: Keys,
    k: Keys,
    v: Values,
    C: Float[Array, "B H N K V"],
    n: Float[Array, "B H N K"] | None,
    gates: ChunkGates,
) -> tuple[Values, TokenNumbers | None]:
    """(h, qn) from C and n before each chunk; without n, h is not normalised, and qn is None."""
    of_state = options.scale * gates.w
    if options.narrow:
        return attend(options, q, k, v, C, gates, of_state, normaliser=n)[:2]
    P, qn = pairs(options, q, k, gates, jnp.ones_like(gates.row), jnp.zeros_like(gates.row))
    if n is None:
        return combine(options, P, v, q, C, of_state)[0], None
    qn = qn + of_state * dot_vectors(q, n)
    per_d = per_denominator(qn, gates.floor, options.eps)
    return combine(options, P, v, q, C, of_state, of_all=per_d)[0], qn


def value_gradients(
    options: Options,
    q: Keys,
    k: Keys,
    dh: Values,
    dC: Float[Array, "B H N K V"],
    gates: ChunkGates,
    per_d: TokenNumbers,
) -> Values:
    """dv."""
    if options.narrow:
        given = {"per_d": per_d, "pairs_transposed": True}
        return attend(options, k, q, dh, dC, gates, gates.kept, **given)[0]
    P, _ = pairs(options, q, k, gates, per_d, jnp.zeros_like(per_d))
    return combine(options, P, dh, k, dC, gates.kept, pairs_transposed=True)[0]


def query_gradients(
    options: Options,
    q: Keys,
    k: Keys,
    v: Values,
    h: Values,
    dh: Values,
    C: Float[Array, "B H N K V"],
    n: Float[Array, "B H N K"] | None,
    gates: ChunkGates,
    qn: TokenNumbers | None,
    per_d: TokenNumbers,
) -> tuple[Keys, TokenNumbers, TokenNumbers | None, Float[Array, "B H T L"] | None]:
    """(dq, q·dq, h·dh where there is a normaliser, and dS where `key_gradients` takes it from
    memory).
    """
    of_state = options.scale * gates.w
    if options.narrow:
        given = {"per_d": per_d, "vector": n, "dot_with": q, "state_transposed": True}
        given |= {} if n is None else {"gradient_of": (h, qn)}
        dq, overlap, q_dq = attend(options, dh, v, k, C, gates, of_state * per_d, **given)
        return dq, q_dq, overlap, None
    overlap, dqn, column = None, jnp.zeros_like(per_d), None
    if n is not None:
        overlap = output_overlap(h, dh)
        dqn = per_d * normaliser_slope(overlap, qn, gates.floor)
        column = (of_state * dqn, n)
    dS, _ = pairs(options, dh, v, gates, per_d, dqn)
    given = {"column": column, "dot_with": q, "state_transposed": True}
    dq, q_dq = combine(options, dS, k, dh, C, of_state * per_d, **given)
    return dq, q_dq, overlap, dS


def key_gradients(
    options: Options,
    q: Keys,
    k: Keys,
    v: Values,
    dh: Values,
    dC: Float[Array, "B H N K V"],
    dn: Float[Array, "B H N K"] | None,
    gates: ChunkGates,
    per_d: TokenNumbers,
    slope: TokenNumbers | None,
    dS: Float[Array, "B H T L"] | None,
) -> tuple[Keys, TokenNumbers]:
    """(dk, k·dk)."""
    given = {"dot_with": k, "state_transposed": True, "pairs_transposed": True}
    if options.narrow:
        given |= {"per_d": per_d, "slope": slope, "vector": dn}
        dk, _, k_dk = attend(options, v, dh, q, dC, gates, gates.kept, **given)
        return dk, k_dk
    given |= {"column": None if dn is None else (gates.kept, dn)}
    return combine(options, dS, q, v, dC, gates.kept, **given)
