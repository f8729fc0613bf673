"""Where a batch of texts stands: everything that going on needs, of a size that does not depend on
the length.

A session is an immutable pytree. Reading more makes a new one; the old one stays usable, so that
going back costs nothing.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from xlstm_jax.errors import UserError
from xlstm_jax.models import BackboneState
from xlstm_jax.typing import Array, Bool, Float, Int

PIECE = 2048  # tokens of a prompt that are read at once: longer ones take no more memory


class Session(NamedTuple):
    """The states after the tokens read so far, and what they say about the next one.

    Attributes:
        logits: float32, of the next token; zeros before the first.
        position: number of tokens read.
        seen: ids read, for the repetition penalty.
    """

    state: BackboneState
    logits: Float[Array, "B E"]
    position: Int[Array, " B"]
    seen: Bool[Array, "B E"]


def empty_session(model: nn.Module, batch_size: int) -> Session:
    """Before the first token."""
    vocabulary = model.config.vocab_size
    return Session(
        model.init_state(batch_size),
        jnp.zeros((batch_size, vocabulary), jnp.float32),
        jnp.zeros(batch_size, jnp.int32),
        jnp.zeros((batch_size, vocabulary), bool),
    )


def read(
    model: nn.Module,
    params: Any,
    prompts: Sequence[Sequence[int]],
    session: Session | None = None,
    *,
    at_least: int = 1,
    place: Callable[[Any], Any] = lambda rows: rows,
) -> Session:
    """The session after each row read its own tokens: in parallel along the time, `PIECE` tokens at
    once.

    Rows may have different lengths, 0 too in a session that exists. Shorter ones are padded on the
    left; padding changes no state, so that a row gets what it would get alone. Padding goes to the
    next of a few lengths, and to `at_least`: fewer programs. `place` puts an array with a row per
    text onto the devices; default: the parameters' device.
    """
    if session is None:
        if not all(len(prompt) for prompt in prompts):
            raise UserError(
                "a prompt is empty; it needs at least one token, an end-of-text token for example"
            )
        session = empty_session(model, len(prompts))
    length = padded(max(at_least, *map(len, prompts)))
    tokens = np.zeros((len(prompts), length), np.int32)
    for row, prompt in enumerate(prompts):
        if len(prompt):
            tokens[row, length - len(prompt) :] = prompt
    padding = np.arange(length) < length - np.array([[len(prompt)] for prompt in prompts])
    first = length % PIECE or min(length, PIECE)
    for start, end in zip(
        [0, *range(first, length, PIECE)], range(first, length + 1, PIECE), strict=True
    ):
        ids = -padding[:, start:end].astype(np.int32) if padding[:, start:end].any() else None
        session = read_piece(
            model, params, session, place(tokens[:, start:end]), None if ids is None else place(ids)
        )
    return session


def padded(length: int) -> int:
    """The next length that is compiled for: whole pieces and, for the first one, 1, 2, 3, 4, 6, 8,
    12, 16, ...
    """
    whole, rest = divmod(length, PIECE)
    sizes = (size for power in range(PIECE.bit_length()) for size in (1 << power, 3 << power >> 1))
    return whole * PIECE + (min(size for size in sizes if size >= rest) if rest else 0)


@functools.partial(jax.jit, static_argnames="model")
def read_piece(
    model: nn.Module,
    params: Any,
    session: Session,
    tokens: Int[Array, "B T"],
    segment_ids: Int[Array, "B T"] | None,
) -> Session:
    hidden, state = model.apply(
        {"params": params}, tokens, session.state, segment_ids=segment_ids, method="hidden"
    )
    logits = model.apply({"params": params}, hidden[:, -1:], method="head")[:, -1].astype(
        jnp.float32
    )
    is_token = jnp.ones(tokens.shape, bool) if segment_ids is None else segment_ids >= 0
    read_any = is_token[:, -1:]
    rows = jnp.arange(len(tokens))[:, None]
    return Session(
        state,
        jnp.where(read_any, logits, session.logits),
        session.position + jnp.sum(is_token, axis=1, dtype=jnp.int32),
        session.seen.at[rows, tokens].max(is_token),
    )


def take(session: Session, rows: Sequence[int]) -> Session:
    """A session of the given rows, in that order; a row may be taken several times, to go on from
    it in several ways.
    """
    index = jnp.asarray(rows)
    return _map_rows(lambda axis, leaf: jnp.take(leaf, index, axis=axis), session)


def merge(rows: Sequence[bool], these: Session, others: Session) -> Session:
    """`these` in the given rows, `others` elsewhere."""
    chosen = jnp.asarray(rows)

    def select(axis: int, this: Array, other: Array) -> Array:
        return jnp.where(
            chosen.reshape(*[1] * axis, -1, *[1] * (this.ndim - axis - 1)), this, other
        )

    return _map_rows(select, these, others)


def _map_rows(function: Any, *sessions: Session) -> Session:
    """function(axis of the batch, leaf of each session) everywhere: the blocks' states are stacked,
    so that theirs is axis 1.
    """
    blocks = jax.tree.map(
        functools.partial(function, 1), *(session.state.blocks for session in sessions)
    )
    rest = [session._replace(state=session.state._replace(blocks=())) for session in sessions]
    mapped = jax.tree.map(functools.partial(function, 0), *rest)
    return mapped._replace(state=mapped.state._replace(blocks=blocks))


def save(session: Session, path: str | pathlib.Path, model: nn.Module) -> None:
    """Writes a session as an .npz file (arrays only) that names the model's configuration."""
    arrays = {name: np.asarray(leaf) for name, leaf in _named(session)}
    with open(path, "wb") as file:
        np.savez(file, model=np.array(json.dumps(dataclasses.asdict(model.config))), **arrays)


def load(path: str | pathlib.Path, model: nn.Module) -> Session:
    """A saved session; raises `UserError` where the file is no session of such a model."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"session file {str(path)!r} can't be read: {error}") from None
    config = json.dumps(dataclasses.asdict(model.config))
    if "model" not in arrays or "logits" not in arrays or str(arrays["model"]) != config:
        raise UserError(
            f"session file {str(path)!r} is of another model; give the checkpoint that it was made "
            f"with"
        )
    wanted = jax.eval_shape(lambda: empty_session(model, len(arrays["logits"])))
    for name, leaf in _named(wanted):
        if name not in arrays or arrays[name].shape != leaf.shape:
            raise UserError(
                f"session file {str(path)!r} is damaged: {name} is missing or has another shape "
                f"than {leaf.shape}"
            )
    return jax.tree.unflatten(
        jax.tree.structure(wanted), [jnp.asarray(arrays[name]) for name, _ in _named(wanted)]
    )


def _named(session: Session) -> list[tuple[str, Any]]:
    return [
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(session)
    ]
