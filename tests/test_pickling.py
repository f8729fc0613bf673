"""Whatever may go to another process, or into a file of one's own, comes back from a pickle as it
was: configurations, models, tasks, parameters and states, tokenizers, errors.
"""

import copy
import importlib
import inspect
import pickle
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import xlstm_jax
from pallas_kernels import MLSTMState, SLSTMState
from tests.training.conftest import CONFIG_FILE
from xlstm_jax.config import load, task_of
from xlstm_jax.data.tokenizer import load_tokenizer
from xlstm_jax.errors import UserError
from xlstm_jax.generation.session import empty_session
from xlstm_jax.interrupts import Preempted
from xlstm_jax.models import build_model
from xlstm_jax.training.state import abstract_state, init_state

CONFIG = load(str(CONFIG_FILE), {"data.path": "stdlib"})
BOTH = {"pickle": lambda x: pickle.loads(pickle.dumps(x)), "deepcopy": copy.deepcopy}
both_ways = pytest.mark.parametrize("there_and_back", BOTH.values(), ids=BOTH)


@both_ways
@pytest.mark.parametrize("file", (str(CONFIG_FILE), "configs/formal.py:parity-xlstm_1_1"))
def test_a_configuration_its_model_and_its_task(there_and_back, file):
    config = load(file)
    again = there_and_back(config)
    assert again == config and again.to_json() == config.to_json()
    assert hash(there_and_back(config.model)) == hash(config.model)
    assert there_and_back(task_of(config).model()) == task_of(config).model()
    assert there_and_back(task_of(config)).shapes(2) == task_of(config).shapes(2)


def assert_same(again, tree):
    assert jax.tree.structure(again) == jax.tree.structure(tree)
    for x, y in zip(jax.tree.leaves(again), jax.tree.leaves(tree), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


@both_ways
def test_parameters_moments_and_states(there_and_back):
    task, optimizer = task_of(CONFIG), optax.adam(1e-3)
    state = jax.eval_shape(lambda: init_state(task, task.model(), optimizer, CONFIG.train))
    trained = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.5, leaf.dtype), state)
    shapes = abstract_state(task, task.model(), optimizer, CONFIG.train)
    model = build_model(CONFIG.model)
    low = jnp.ones((1, 2, 3), "bfloat16")
    for tree in (
        trained,
        model.init_state(2),
        empty_session(model, 2),
        MLSTMState(low[..., None], low, low[..., 0]),
        SLSTMState(low, low, low, low),
    ):
        assert_same(there_and_back(tree), tree)
    assert there_and_back(shapes) == shapes


def test_a_tokenizer():
    tokenizer = load_tokenizer("byte")
    again = BOTH["pickle"](tokenizer)
    assert again.hash == tokenizer.hash and again.encode("é").tolist() == [195, 169]


def errors() -> list[type]:
    """Every exception of the project that a user, or another process, may get to see."""
    found = {}
    for module in pkgutil.walk_packages(xlstm_jax.__path__, "xlstm_jax."):
        if module.name.endswith("__main__"):
            continue
        for name, kind in vars(importlib.import_module(module.name)).items():
            own = inspect.isclass(kind) and kind.__module__.startswith("xlstm_jax.")
            if own and issubclass(kind, BaseException) and not name.startswith("_"):
                found[kind] = None
    return list(found)


@both_ways
def test_errors(there_and_back):
    assert {UserError, Preempted} < set(errors())
    for kind in errors():
        error = kind("data.path '/no/such' does not exist")
        error.number = 7
        again = there_and_back(error)
        assert type(again) is kind and str(again) == str(error) and vars(again) == vars(error)
    assert there_and_back(Preempted("step 3 is saved", 130)).status == 130
