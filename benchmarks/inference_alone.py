"""Our side of `benchmarks.inference` alone, with random weights: what `benchmarks.on_a_gpu` times
of 7B.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import device_time
from benchmarks.inference import DECODED, SIZES, Ours, alternate, initial_params, seconds
from xlstm_jax.generation import GREEDY, decode, session
from xlstm_jax.generation.decoding import row_keys
from xlstm_jax.generation.weights import cast_weights
from xlstm_jax.models import LanguageModel, build_model


@functools.partial(jax.jit, static_argnums=(1, 2))
def _drawn(key: jax.Array, shape: tuple[int, ...], dtype: str) -> jax.Array:
    return jax.random.normal(key, shape, dtype) / shape[0] ** 0.5


def drawn_weights(model: LanguageModel) -> Any:
    """Random matrices and vectors of ones, in the types that generation keeps them in, one after
    the other: initialising 7B as the model does takes more than a minute to compile, and the memory
    of float32 weights beside them.
    """
    shapes = jax.eval_shape(lambda: cast_weights(initial_params(model), model.config))
    keys = iter(jax.random.split(jax.random.key(0), len(jax.tree.leaves(shapes))))
    return jax.tree.map(
        lambda x: (
            _drawn(next(keys), x.shape, x.dtype.name) if x.ndim > 1 else jnp.ones(x.shape, x.dtype)
        ),
        shapes,
    )


def reading(
    size: str, lengths: Sequence[int]
) -> Iterator[tuple[str, int, Callable, tuple[Any, ...]]]:
    """What `alone` times of prompts, one piece each: (case, tokens, function, the shapes of its
    arguments, weights first).
    """
    model = build_model(SIZES[size])
    params = jax.eval_shape(lambda: cast_weights(initial_params(model), model.config))
    start = jax.eval_shape(lambda: session.empty_session(model, 1))

    def read(params: Any, start: session.Session, tokens: jax.Array) -> Any:
        return session.read_piece(model, params, start, tokens, None)

    for length in lengths:
        tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
        yield f"{size} prefill, T {length}", length, read, (params, start, tokens)


def compile_ahead(size: str, lengths: Sequence[int], batches: Sequence[int]) -> None:
    """Compiles what `alone` runs, and runs nothing: a process that comes later finds it in the
    compilation cache.
    """
    model = build_model(SIZES[size])
    params = jax.eval_shape(lambda: cast_weights(initial_params(model), model.config))
    read = {
        (1, size) for length in lengths for size in np.diff(session.cuts(length, session.PIECES))
    }
    for batch, length in [*read, *((batch, 16) for batch in batches)]:
        tokens = jax.ShapeDtypeStruct((batch, int(length)), jnp.int32)
        start = jax.eval_shape(lambda batch=batch: session.empty_session(model, batch))
        session.read_piece.lower(model, params, start, tokens, None).compile()
    for batch in batches:
        start = jax.eval_shape(lambda batch=batch: session.empty_session(model, batch))
        decode.lower(
            model, params, start, row_keys(range(batch)), jnp.zeros(batch, bool), DECODED - 1,
            space=DECODED, sampling=GREEDY,
        ).compile()  # fmt: skip


def alone(
    size: str, lengths: Sequence[int], batches: Sequence[int], repetitions: int
) -> Iterator[dict[str, Any]]:
    """Our side alone, with random weights: rows of prompts read and of texts written, medians.

    Raises:
        AssertionError: something that was read is not finite.
    """
    config = SIZES[size]
    model = build_model(config)
    ours, rng = Ours(model, drawn_weights(model)), np.random.default_rng(1)

    def row(what: str, count: int, run: Callable[[], Any]) -> dict[str, Any]:
        took = alternate({"ours": lambda: seconds(run)}, repetitions)["ours"]
        rates = {"seconds": took, "tokens_per_second": count / took}
        return {"case": f"{size} {what}", **rates, "kernels": device_time.kernels_of(run)}

    count = DECODED - 1
    for batch in batches:
        read = ours.read(rng.integers(0, config.vocab_size, (batch, 16)))
        assert np.isfinite(read.logits).all(), "logits are not finite"
        yield row(
            f"decode, batch {batch}", batch * count, lambda read=read: ours.write(read, count)
        )
    for length in lengths:
        prompt = rng.integers(0, config.vocab_size, (1, length))
        yield row(f"prefill, T {length}", length, lambda prompt=prompt: ours.read(prompt))
