"""Sessions as files: arrays only, with the model and the parameters that they belong to.

A session's states mean something to the parameters that made them and to no others, not even to
those of the same run a few steps later.
"""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from xlstm_jax.errors import UserError
from xlstm_jax.generation.session import Session, empty_session, widened
from xlstm_jax.generation.weights import fingerprint

MODEL, PARAMETERS, ORIGIN = "model", "parameters", "origin"  # entries beside the session's own


def save(
    session: Session, path: str | os.PathLike, model: nn.Module, params: Any, *, origin: str = ""
) -> None:
    """Writes a session as an .npz file. An older file of that name is replaced when the new one is
    complete; whatever goes wrong before leaves it as it was.

    Args:
        params: those that made the session.
        origin: where they are from, for a person ("step 600 of runs/quickstart").

    Raises:
        UserError: the file can't be written.
    """
    path = pathlib.Path(path)
    arrays = {
        MODEL: np.array(_text_of(model)),
        PARAMETERS: np.array(fingerprint(params, model.config)),
        ORIGIN: np.array(origin),
        **{name: np.asarray(leaf).astype(_stored(leaf.dtype)) for name, leaf in _named(session)},
    }
    target = path.resolve()  # behind a link: the link stays
    unfinished = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    try:
        with unfinished.open("wb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(target)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise UserError(
            f"session file {str(path)!r} can't be written ({error.strerror}); an older one of that "
            f"name is as it was. Give a file that can be written"
        ) from None


def load(path: str | os.PathLike, model: nn.Module, params: Any) -> Session:
    """A saved session; raises `UserError` where the file is none, or belongs to another model or
    other parameters.
    """
    return restored(read_arrays(path), path, model, params)


def read_arrays(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """What a session's file holds; raises `UserError` where it is no such file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    except Exception as error:  # NumPy, zipfile, zlib and others raise many types for such a file
        reason = f": {error.strerror}" if isinstance(error, OSError) and error.strerror else ""
        raise UserError(
            f"session file {str(path)!r} is no session, or is damaged{reason}; give a file that "
            f"--session has written, or one that does not exist yet"
        ) from None
    if not {MODEL, PARAMETERS, ORIGIN, "logits"} <= arrays.keys():
        raise UserError(
            f"session file {str(path)!r} is no session: it has other entries; give a file that "
            f"--session has written, or one that does not exist yet"
        )
    return arrays


def restored(
    arrays: Mapping[str, np.ndarray], path: str | os.PathLike, model: nn.Module, params: Any
) -> Session:
    """The session of `read_arrays`.

    Raises:
        UserError: it belongs to another model or to other parameters, or is damaged.
    """
    origin = f" (of {arrays[ORIGIN]})" if str(arrays[ORIGIN]) else ""
    for entry, ours, what in (
        (MODEL, _text_of(model), "another model"),
        (PARAMETERS, fingerprint(params, model.config), "other parameters"),
    ):
        if str(arrays[entry]) != ours:
            raise UserError(
                f"session file {str(path)!r} is of {what}{origin}, to which its state belongs; "
                f"give the checkpoint and the --step that it was made with, or another --session"
            )
    rows = len(arrays["logits"]) if arrays["logits"].ndim else 0
    room = int(np.max(arrays["room"], initial=1)) if "room" in arrays else 1
    tail = arrays.get("tail/tokens")
    width = tail.shape[1] if tail is not None and tail.ndim == 2 else 0

    def empty() -> Session:
        session = empty_session(model, rows, room)
        return session._replace(tail=widened(session.tail, width))

    wanted = jax.eval_shape(empty)
    for name, leaf in _named(wanted):
        found = arrays.get(name)
        stored = _stored(leaf.dtype)
        if not rows or found is None or (found.shape, found.dtype) != (leaf.shape, stored):
            raise UserError(
                f"session file {str(path)!r} is damaged: {name} is missing, or has another shape "
                f"or type than {stored}{list(leaf.shape)}"
            )
    return jax.tree.unflatten(
        jax.tree.structure(wanted),
        [jnp.asarray(arrays[name], leaf.dtype) for name, leaf in _named(wanted)],
    )


def _stored(dtype: Any) -> np.dtype:
    """NumPy's files know no bfloat16; float32 holds its numbers."""
    return np.dtype(np.float32) if dtype == jnp.bfloat16 else np.dtype(dtype)


def _text_of(model: nn.Module) -> str:
    return json.dumps(model.config.values())


def _named(session: Session) -> list[tuple[str, Any]]:
    return [
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(session)
    ]
