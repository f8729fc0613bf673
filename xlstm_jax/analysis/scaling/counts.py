"""The size of a configuration's model: parameters and training FLOPs, without training it."""

from collections.abc import Sequence
from typing import NamedTuple

import jax

from xlstm_jax.analysis.flops import training_flops_per_token
from xlstm_jax.analysis.parameters import count_parameters
from xlstm_jax.config import Config, task_of


class Counts(NamedTuple):
    """Of one model.

    Attributes:
        params: all of them.
        params_without_embedding: those between the input and the head; the final norm is one of
            them.
        flops_per_token: of the forward and the backward pass.
    """

    params: int
    params_without_embedding: int
    flops_per_token: float


def counts_of(config: Config, counting: Sequence[str]) -> Counts:
    """The counts of a configuration's model.

    Args:
        counting: of FLOPs, see `analysis.flops.counting_of`.
    """
    task = task_of(config)
    model = task.model(stacked=True)  # equal blocks are traced once
    shapes = jax.eval_shape(lambda: task.init(model, jax.random.key(0)))["params"]
    return Counts(
        count_parameters(shapes),
        count_parameters(shapes["backbone"]),
        training_flops_per_token(model, config.data.context_length, counting),
    )
