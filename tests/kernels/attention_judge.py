"""Attention token by token in float64: who sees whom by walking along each row, then a softmax.

Nothing is shared with pallas_kernels.
"""

import jax
import jax.numpy as jnp
import numpy as np

B, H, G, K, V = 2, 4, 2, 8, 6


def inputs(time, seed=0, size=1.0, batch=B, heads=H, groups=G, key_dim=K, value_dim=V):
    r = np.random.default_rng(seed)
    return {
        "q": size * r.normal(size=(batch, time, heads, key_dim)),
        "k": size * r.normal(size=(batch, time, groups, key_dim)),
        "v": r.normal(size=(batch, time, groups, value_dim)),
    }


def seen_by(time, segment_ids=None, previous_segment=None, batch=B):
    """[B T T]: which tokens each token attends to."""
    seen = np.zeros((batch, time, time), bool)
    for row in range(batch):
        document, last = [], -1 if previous_segment is None else previous_segment[row]
        for t in range(time):
            segment = 0 if segment_ids is None else segment_ids[row, t]
            if segment < 0:
                continue
            if last >= 0 and segment != last:
                document = []
            document.append(t)
            seen[row, t, document] = True
            last = segment
    return seen


@jax.jit
def judge(x, seen):
    """y of float64 arrays q, k, v; a token that sees nobody gets 0."""
    q, k, v = x["q"], x["k"], x["v"]
    repeats = q.shape[2] // k.shape[2]
    k, v = jnp.repeat(k, repeats, axis=2), jnp.repeat(v, repeats, axis=2)
    scores = jnp.einsum("bthk,bshk->bhts", q, k) / q.shape[-1] ** 0.5
    some = seen.any(-1)[:, None, :, None]
    weights = jax.nn.softmax(jnp.where(seen[:, None] | ~some, scores, -jnp.inf), axis=-1)
    return jnp.einsum("bhts,bshv->bthv", jnp.where(some, weights, 0), v)
