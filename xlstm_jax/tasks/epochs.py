"""The order of a fixed set of training samples: another one in each epoch."""

import functools

import numpy as np

from xlstm_jax.typing import Int

ORDER = 3  # a stream of random numbers of its own beside those of the splits


def sample_of(seed: int, number: int, count: int) -> int:
    """Which of `count` samples is the `number`-th that training reads, counted over all epochs."""
    epoch, place = divmod(number, count)
    return int(_order(seed, epoch, count)[place])


@functools.lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> Int[np.ndarray, " N"]:
    return np.random.default_rng([ORDER, seed, epoch]).permutation(count)
