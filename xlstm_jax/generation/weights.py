"""Parameters as inference reads them: cast to the compute dtype once."""

import functools
import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xlstm_jax.models.config import ModelConfig
from xlstm_jax.parallel import compute_dtype

# Outside the blocks; each mixer names its own.
CAST = frozenset({"lm_head", "embedding", "position_embedding"})


def is_cast(path: tuple[Any, ...], config: ModelConfig) -> bool:
    """Whether the model casts this parameter to the compute dtype before it uses it, so that
    casting it once beforehand changes no bit of any result.
    """
    names = [entry.key for entry in path]
    owner = names[-2]
    if names[-1] not in ("kernel", "embedding"):
        return False
    exact = [name for name in config.mixer_names if name in names]  # "scan_2" before "scan" twice
    inside = exact or [
        name for name in config.mixer_names if any(_is_of(part, name) for part in names)
    ]
    return owner in (config.of(inside[0])[0].cast if inside else CAST)


def _is_of(part: str, mixer: str) -> bool:
    """A block that has a mixer twice calls the second one NAME_1."""
    return part == mixer or part.rpartition("_")[0] == mixer and part[-1].isdigit()


def cast_weights(params: Any, config: ModelConfig) -> Any:
    """The same model in little more than half the memory where the compute dtype is bfloat16, which
    is what decoding is bound by.
    """
    dtype = compute_dtype(config.dtype)

    def cast(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        smaller = dtype.itemsize < leaf.dtype.itemsize
        return leaf.astype(dtype) if smaller and is_cast(path, config) else leaf

    return jax.tree_util.tree_map_with_path(cast, params)


SAMPLED = 64  # so many values of each parameter array are read for the fingerprint


def fingerprint(params: Any, config: ModelConfig) -> str:
    """A name for the values of a checkpoint's parameters, the same before and after
    `cast_weights`.

    It reads 64 values of every array, spread over it, so that it costs nothing for billions of
    parameters. One training step changes nearly all values of an array, and so the fingerprint.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    content = hashlib.sha256()
    for (path, leaf), values in zip(leaves, _sampled(params, config), strict=True):
        content.update(f"{jax.tree_util.keystr(path)} {leaf.shape}".encode())
        content.update(np.asarray(values, np.float32).tobytes())
    return content.hexdigest()


@functools.partial(jax.jit, static_argnames="config")
def _sampled(params: Any, config: ModelConfig) -> list[jax.Array]:
    def values(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        places = np.linspace(0, leaf.size - 1, min(SAMPLED, leaf.size)).astype(np.int64)
        sampled = leaf[np.unravel_index(places, leaf.shape)].astype(jnp.float32)
        # `cast_weights` may have rounded these already
        return sampled.astype(jnp.bfloat16) if is_cast(path, config) else sampled

    return [values(path, leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)]
