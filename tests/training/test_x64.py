"""With 64-bit types enabled the training step is the step without, whatever is learned."""

import jax
import pytest

from tests.models.test_x64 import types, values_in
from xlstm_jax import tasks
from xlstm_jax.config import load, task_of
from xlstm_jax.training.optimizer import make_optimizer, make_schedule
from xlstm_jax.training.state import abstract_state
from xlstm_jax.training.step import make_train_step

SMALL = {"model.dim": 16, "data.batch_size": 4, "train.accumulation_steps": 2}
# every task, one of them with values instead of tokens
RUNS = {
    "language_modelling": ("tests/training/tiny_run.py", {"data.path": "unused"}),
    "cifar": ("configs/lra.py:g_image-xlstm_1_0", {"task.cifar.path": "unused"}),
    "formal": ("configs/formal.py:parity-xlstm_1_1", {}),
    "listops": ("configs/lra.py:listops-xlstm_1_0", {}),
    "mqar": ("configs/mqar.py:64x4-xlstm_1_1", {}),
    "nearest_neighbour": ("configs/nns.py:xlstm_0_1", {}),
    "pathfinder": ("configs/lra.py:pathfinder-xlstm_1_0", {}),
    "retrieval": ("configs/lra.py:retrieval-xlstm_1_0", {"task.retrieval.path": "unused"}),
}
FROM_FILES = ("language_modelling", "cifar", "retrieval")


@pytest.fixture(autouse=True)
def with_64_bits():
    with jax.enable_x64(True):
        yield


def test_every_task_has_a_row():
    assert RUNS.keys() == set(tasks.names())


@pytest.mark.parametrize("name", RUNS)
def test_a_step_leaves_every_type_as_it_was(name):
    config = load(*(RUNS[name][0], SMALL | RUNS[name][1]))
    task = task_of(config)
    assert config.task.name == name
    model, schedule = task.model(stacked=True), make_schedule(config.optimizer, config.train.steps)
    optimizer = make_optimizer(config.optimizer, schedule)
    state = abstract_state(task, model, optimizer, config.train)
    assert types(state) == {"float32", "int32"} and types(state.params) == {"float32"}
    step = make_train_step(task, model, optimizer, schedule, config.train)
    program, (after, metrics) = jax.make_jaxpr(step, return_shape=True)(state, task.shapes(4))
    assert [leaf.dtype for leaf in jax.tree.leaves(after)] == [
        leaf.dtype for leaf in jax.tree.leaves(state)
    ]
    assert types(metrics) <= {"float32", "int32"}
    # optax computes two numbers of Adam, 1 - beta^step, in float64
    arrays = [value for value in values_in(program.jaxpr) if getattr(value, "shape", ())]
    assert "float64" not in {str(value.dtype) for value in arrays}


@pytest.mark.parametrize("name", [name for name in RUNS if name not in FROM_FILES])
def test_a_batch_has_the_types_that_the_step_was_made_for(name):
    task = task_of(load(RUNS[name][0], SMALL | RUNS[name][1]))
    found, wanted = task.batch(0, 1, range(4)), task.shapes(4)
    assert [leaf.dtype for leaf in jax.tree.leaves(found)] == [
        leaf.dtype for leaf in jax.tree.leaves(wanted)
    ]
