"""Where a run begins or goes on: from its newest checkpoint, from other parameters, or afresh.

The trainer scans equal blocks, whose parameters are stacked; checkpoints have blocks by number, as
everybody else. The two meet here and nowhere else.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import optax
from jax.sharding import Mesh

from xlstm_jax.config import Config
from xlstm_jax.errors import UserError
from xlstm_jax.models.remat import stack_of
from xlstm_jax.models.stack import Stack
from xlstm_jax.runs.checkpoints import Checkpoints, read_params
from xlstm_jax.runs.params import shardings_of
from xlstm_jax.tasks.task import Task
from xlstm_jax.training.console import say
from xlstm_jax.training.state import TrainState, abstract_state, init_state, start_from


class Keeper:
    """Saves a run's states and gives them back.

    Args:
        model: the one that is trained, with stacked blocks.
    """

    def __init__(
        self,
        task: Task,
        model: nn.Module,
        optimizer: optax.GradientTransformation,
        config: Config,
        checkpoints: Checkpoints,
        mesh: Mesh,
    ) -> None:
        self._task, self._model, self._optimizer = task, model, optimizer
        self._config, self._checkpoints = config, checkpoints
        self._stack = stack_of(config.model.layout, config.model.remat, stacked=True)
        self._stacked = abstract_state(task, model, optimizer, config.train, mesh)
        # how the same state lies with blocks by number
        self._by_number = abstract_state(task, task.model(), optimizer, config.train, mesh)
        # made once: another jit of the same function would be traced and compiled with every save
        self._to_numbers = _converter(self._stack, self._stack.by_number, self._by_number)
        self._to_stacked = _converter(self._stack, self._stack.stack, self._stacked)

    def start(self) -> tuple[TrainState, int]:
        """The newest checkpoint's state and step; else, at step 0, the parameters of
        `checkpoint.init_from` or fresh ones.

        Raises:
            UserError: the data have changed since the checkpoint was saved.
        """
        wanted = self._by_number
        restored = self._checkpoints.restore(wanted.params, _rest(wanted))
        if restored is not None:
            expected = self._task.position(restored.step)
            if restored.position != expected:
                raise UserError(
                    f"the data have changed since step {restored.step} was saved: then "
                    f"{restored.position}, now {expected}; give another --workdir"
                )
            say(f"resumed from step {restored.step}")
            state = TrainState(params=restored.params, **restored.optimizer)
            return self._to_stacked(state), restored.step
        shardings = shardings_of(self._stacked)
        if (source := self._config.checkpoint.init_from) is not None:
            step, params = read_params(source, wanted.params)
            say(f"parameters of step {step} of {source}")
            begin = jax.jit(
                lambda params: start_from(
                    self._stack.stack(params), self._optimizer, self._config.train
                ),
                out_shardings=shardings,
            )
            return begin(params), 0
        begin = jax.jit(
            lambda: init_state(self._task, self._model, self._optimizer, self._config.train),
            out_shardings=shardings,
        )
        return begin(), 0

    def by_number(self, state: TrainState) -> TrainState:
        """A state as checkpoints have it."""
        return self._to_numbers(state)

    def save(self, state: TrainState, step: int, loss: float | None, *, force: bool) -> None:
        """Starts saving a state with blocks by number; see `Checkpoints.save`."""
        position = self._task.position(step)
        self._checkpoints.save(state.params, _rest(state), step, position, loss, force=force)


def _converter(
    stack: Stack, convert: Callable[[Any], Any], wanted: TrainState
) -> Callable[[TrainState], TrainState]:
    """`convert` on the devices. Where both forms are the same nothing is copied."""
    if not stack.is_stacked:
        return lambda state: state
    return jax.jit(convert, out_shardings=shardings_of(wanted))


def _rest(state: TrainState) -> dict[str, Any]:
    """All but the parameters."""
    return {name: part for name, part in state._asdict().items() if name != "params"}
