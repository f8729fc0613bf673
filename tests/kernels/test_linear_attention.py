"""Linear attention against its recurrence, one token at a time in float64: decays per head and per
channel, with and without RWKV's bonus.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.linear_attention import LinearAttentionState, linear_attention
from pallas_kernels.segments import last_segment
from pallas_kernels.testing import cases
from tests.kernels import differentiated
from tests.kernels.differentiated import assert_close

B, H, K, V = 2, 2, 8, 6
KINDS = {"per-head": (False, False), "per-channel": (True, False), "bonus": (True, True)}
every_kind = pytest.mark.parametrize(("per_channel", "bonus"), KINDS.values(), ids=KINDS)
FORMS = ({"backend": "recurrent"}, {"backend": "chunkwise", "chunk_size": 8})
PER_TOKEN = ("q", "k", "v", "log_decay")


def inputs(time, per_channel, bonus, seed=0, strength=1.0):
    r = np.random.default_rng(seed)
    decay = (B, time, H, K) if per_channel else (B, time, H)
    given = {
        "q": r.normal(size=(B, time, H, K)),
        "k": r.normal(size=(B, time, H, K)),
        "v": r.normal(size=(B, time, H, V)),
        "log_decay": -strength * np.exp(r.normal(size=decay)),
        "S": r.normal(size=(B, H, K, V)),
    }
    return given | ({"bonus": r.normal(size=(H, K))} if bonus else {})


def judge(x, segment_ids, previous_segment):
    """The recurrence, and the rule of segments, written down once more."""
    decay = x["log_decay"]
    decay = decay if decay.ndim == 4 else decay[..., None]

    def step(carry, token):
        S, last = carry
        q, k, v, g, segment = token
        real = (segment >= 0)[:, None, None]
        start = ((last >= 0) & (segment != last))[:, None, None, None]
        before = jnp.where(start, 0, S)
        outer = k[..., :, None] * v[..., None, :]
        after = jnp.exp(g)[..., None] * before + outer
        read = before + x["bonus"][..., None] * outer if "bonus" in x else after
        o = jnp.where(real, jnp.sum(q[..., None] * read, axis=-2), 0)
        last = jnp.where(segment >= 0, segment, last)
        return (jnp.where(real[..., None], after, S), last), o

    tokens = (x["q"], x["k"], x["v"], decay, segment_ids)
    carry = (x["S"], previous_segment)
    (S, _), o = jax.lax.scan(step, carry, jax.tree.map(lambda a: jnp.moveaxis(a, 1, 0), tokens))
    return jnp.moveaxis(o, 0, 1), S


def call(x, segment_ids=None, previous_segment=None, **options):
    o, state = linear_attention(
        *(x[name] for name in PER_TOKEN), LinearAttentionState(x["S"]), bonus=x.get("bonus"),
        segment_ids=segment_ids, previous_segment=previous_segment, **options,
    )  # fmt: skip
    return o, state.S


compiled = functools.partial(differentiated.compiled, of=jnp.sin)


@functools.cache
def judge_of(time, packed):
    """Compiled once for all forms and decays."""
    return compiled(lambda x: judge(x, *documents_of(time, packed)))


def documents_of(time, packed, seed=0):
    if packed:
        return tuple(cases.random_documents(time, seed).values())
    return np.zeros((B, time), np.int32), np.full(B, -1, np.int32)


@every_kind
@pytest.mark.parametrize("options", FORMS, ids=("recurrent", "chunkwise"))
@pytest.mark.parametrize("time", (1, 37))
def test_values_and_gradients(per_channel, bonus, options, time):
    """Packed documents, an initial state, the last state in the loss; in float64."""
    x, documents = inputs(time, per_channel, bonus), documents_of(time, True)
    got = compiled(lambda x: call(x, *documents, **options))(x, "float64")
    assert_close(got, judge_of(time, True)(x, "float64"), 1e-12)


@functools.cache
def in_long_chunks():
    return compiled(lambda x: call(x, chunk_size=64))


@every_kind
@pytest.mark.parametrize("strength", (1e-3, 1.0, 1e4), ids=("weak", "usual", "strong"))
def test_float32_with_any_decay(per_channel, bonus, strength):
    """Decays of almost 1 and of exactly 0, and both in one chunk: as exact as without."""
    time = 70
    x = inputs(time, per_channel, bonus, strength=strength)
    if strength == 1e4:
        x["log_decay"][:, ::3] = -1e-3
        x["log_decay"][:, 5] = -np.inf
    x = {name: np.asarray(a, np.float32) for name, a in x.items()}
    assert_close(in_long_chunks()(x, "float32"), judge_of(time, False)(x, "float64"), 2e-5)


def test_bfloat16():
    x = inputs(40, True, True)
    x = {
        name: np.asarray(jnp.asarray(a, "bfloat16"), np.float64) if name in "qkv" else a
        for name, a in x.items()
    }
    expected, _ = jax.jit(judge)(x, *documents_of(40, False))
    low = {
        name: jnp.asarray(a, "bfloat16" if name in "qkv" else "float32") for name, a in x.items()
    }
    o, S = jax.jit(call)(low)
    assert (o.dtype, S.dtype) == (jnp.bfloat16, jnp.float32)
    assert_close([np.asarray(o, np.float64)], [np.asarray(expected)], 2e-2)


@every_kind
def test_forward_and_second_derivatives(per_channel, bonus):
    time = 13
    x, direction = (inputs(time, per_channel, bonus, seed) for seed in (0, 5))
    documents = documents_of(time, True, seed=3)

    def derivatives(function):
        def loss(x):
            values = function(x)
            return sum(jnp.sum(jnp.sin(a)) for a in values)

        with jax.enable_x64(True):
            point, tangent = jax.tree.map(jnp.asarray, (x, direction))
            slope = jax.jit(
                lambda x: (
                    jax.jvp(loss, (x,), (tangent,))[1],
                    jax.jvp(jax.grad(loss), (x,), (tangent,))[1],
                ),
                compiler_options=cases.QUICK_COMPILE,
            )(point)
            return [np.asarray(a) for a in jax.tree.leaves(slope)]

    got = derivatives(lambda x: call(x, *documents, chunk_size=8, backend="chunkwise"))
    assert_close(got, derivatives(lambda x: judge(x, *documents)), 1e-11)


@every_kind
def test_a_sequence_may_be_cut_anywhere(per_channel, bonus):
    """Pieces, single tokens among them, hand on state and last id; values and gradients stay."""
    time, cuts = 36, (0, 1, 14, 27, 36)
    x, (ids, previous) = inputs(time, per_channel, bonus), documents_of(time, True, seed=5)
    ids[:, 12:16] = -1
    ids[:, 26:28] = [3, 1]

    def in_pieces(x):
        last, outputs = jnp.asarray(previous), []
        for start, stop in zip(cuts, cuts[1:], strict=False):
            piece = x | {name: x[name][:, start:stop] for name in PER_TOKEN}
            segment_ids = jnp.asarray(ids[:, start:stop])
            o, S = call(piece, segment_ids, last, chunk_size=8)
            x, last = x | {"S": S}, last_segment(segment_ids, last)
            outputs.append(o)
        return jnp.concatenate(outputs, axis=1), S

    got = compiled(in_pieces)(x, "float64")
    assert_close(got, compiled(lambda x: judge(x, ids, previous))(x, "float64"), 1e-12)


@every_kind
def test_nothing_of_a_document_or_of_padding_reaches_another(per_channel, bonus):
    """Decays of almost 1, and still gradients of exactly 0 in the first document; padding may hold
    NaN.
    """
    time, second = 30, 13
    x = inputs(time, per_channel, bonus, strength=1e-6)
    ids = np.zeros((B, time), np.int32)
    ids[:, second:], ids[:, 20:22] = 1, -1
    for name in PER_TOKEN:
        x[name][:, 20:22] = np.nan
    x = {name: jnp.asarray(a, "float32") for name, a in x.items()}

    def loss(x):
        o, S = call(x, ids, chunk_size=8)
        return jnp.sum(jnp.sin(o[:, second:])) + jnp.sum(jnp.sin(S))

    gradients = jax.jit(jax.grad(loss))(x)
    assert all(np.isfinite(g).all() for g in gradients.values())
    for name in PER_TOKEN:
        assert (np.asarray(gradients[name][:, :second]) == 0).all()
        assert (np.asarray(gradients[name][:, 20:22]) == 0).all()
        assert np.abs(gradients[name][:, 23:]).max() > 0
    assert (np.asarray(gradients["S"]) == 0).all()


@functools.cache
def temporary_bytes(time, backend):
    shapes = {name: jax.ShapeDtypeStruct((1, time, 1, 16), "float32") for name in PER_TOKEN}

    def loss(x):
        return jnp.sum(linear_attention(*(x[n] for n in PER_TOKEN), backend=backend)[0] ** 2)

    return jax.jit(jax.grad(loss)).lower(shapes).compile().memory_analysis().temp_size_in_bytes


def test_memory_is_linear_in_time_and_keeps_a_state_per_chunk():
    """Four times the tokens, at most 4.2 times the memory, and a third of what a state per token
    takes.
    """
    assert temporary_bytes(2048, "chunkwise") < 4.2 * temporary_bytes(512, "chunkwise")
    assert temporary_bytes(2048, "chunkwise") < temporary_bytes(2048, "recurrent") / 3


def test_vmap_equals_one_by_one():
    x = {name: jnp.asarray(a, "float32") for name, a in inputs(20, True, False).items()}
    ids = documents_of(20, True)[0]

    def one(x, ids):
        o, S = call(jax.tree.map(lambda a: a[None], x), ids[None])
        return o[0], S[0]

    got = jax.jit(jax.vmap(one))(x, ids)
    assert_close(got, jax.jit(judge)(x, ids, np.full(B, -1, np.int32)), 1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": (2, 9, 2, 7)}, r"k has shape \(2, 9, 2, 7\).*must be \(2, 9, 2, 8\)"),
        ({"log_decay": (2, 9, 3)}, r"log_decay has shape \(2, 9, 3\).*must be \(2, 9, 2\)"),
        ({"bonus": (8,)}, r"bonus has shape \(8,\).*must be \(2, 8\)"),
        ({"v": (2, 0, 2, 8)}, "none of them 0"),
        ({"chunk_size": 0}, "chunk_size is 0"),
    ],
)
def test_mistakes_are_named(change, message):
    shapes = {name: (2, 9, 2, 8) for name in PER_TOKEN} | change
    given = {n: jnp.zeros(s) if isinstance(s, tuple) else s for n, s in shapes.items()}
    with pytest.raises(ValueError, match=message):
        linear_attention(**given)
