"""The ops under settings of jax: 64 bits switched on, and no silent promotion of ranks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import (
    AttentionState,
    attention,
    decayed_average,
    elementwise_scan,
    linear_attention,
    rotary,
)

B, T, H, K = 2, 12, 2, 4
IDS = np.array([[0] * 5 + [-1] + [1] * 6, [0] * 12], np.int32)


HEADS, PER_HEAD, FLAT = (B, T, H, K), (B, T, H), (B, T, K)
CALLS = {
    **{
        f"attention-{backend}{suffix}": (
            lambda q, k, v, ids, state=state, backend=backend: attention(
                rotary(q, jnp.arange(T)), k, v,
                AttentionState.empty(B, 20, H, K, K) if state else None,
                segment_ids=ids, backend=backend, block_size=5,
            ),
            [HEADS] * 3,
        )
        for backend in ("reference", "blockwise")
        for state, suffix in ((False, ""), (True, "-cache"))
    },
    **{
        f"linear_attention-{name}-{backend}": (
            lambda q, k, v, g, u, ids, bonus=bonus, backend=backend: linear_attention(
                q, k, v, -g * g, bonus=u if bonus else None, segment_ids=ids, backend=backend,
                chunk_size=8,
            ),
            [HEADS, HEADS, HEADS, decay, (H, K)],
        )
        for backend in ("recurrent", "chunkwise")
        for name, decay, bonus in (("per-head", PER_HEAD, False), ("bonus", HEADS, True))
    },
    **{
        f"elementwise_scan-{backend}": (
            lambda a, b, ids, backend=backend: elementwise_scan(
                a, b, segment_ids=ids, backend=backend, chunk_size=5
            ),
            [FLAT] * 2,
        )
        for backend in ("recurrent", "associative")
    },
    **{
        f"decayed_average-{backend}": (
            lambda k, v, w, u, ids, backend=backend: decayed_average(
                k, v, -w * w, u, segment_ids=ids, backend=backend, chunk_size=5
            ),
            [FLAT, FLAT, (K,), (K,)],
        )
        for backend in ("recurrent", "associative")
    },
}  # fmt: skip
every_call = pytest.mark.parametrize(("function", "shapes"), CALLS.values(), ids=CALLS)


def gradients(function, shapes, ids):
    """Types and ranks are those of the traced program: nothing is compiled."""

    def loss(*x):
        result = function(*x, ids)
        floats = [a for a in jax.tree.leaves(result) if jnp.issubdtype(a.dtype, jnp.floating)]
        return sum(jnp.sum(jnp.where(jnp.abs(a) < 1e30, a, 0)) for a in floats), result

    x = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.eval_shape(jax.grad(loss, argnums=tuple(range(len(x))), has_aux=True), *x)


@every_call
@pytest.mark.parametrize("documents", (False, True), ids=("one-document", "packed"))
def test_float32_stays_float32_with_64_bits_on(function, shapes, documents):
    with jax.enable_x64(True):
        ids = jnp.asarray(IDS) if documents else None
        for x in jax.tree.leaves(gradients(function, shapes, ids)):
            assert x.dtype in (jnp.float32, jnp.int32), x.dtype


@every_call
def test_no_rank_is_promoted_silently(function, shapes):
    with jax.numpy_rank_promotion("raise"):
        gradients(function, shapes, jnp.asarray(IDS))
        gradients(function, shapes, None)
