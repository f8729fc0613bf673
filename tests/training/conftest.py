"""A tiny corpus and configuration, shared by the tests of training."""

import pathlib
import random

import jax
import jax.numpy as jnp
import pytest

from xlstm_jax import progress
from xlstm_jax.config import Config, load
from xlstm_jax.training import loop

ROOT = pathlib.Path(__file__).parents[2]
CONFIG_FILE = pathlib.Path(__file__).with_name("tiny_run.py")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> pathlib.Path:
    """A folder of 20 small texts, so that one is held out."""
    folder = tmp_path_factory.mktemp("corpus")
    words = "the cell keeps what the gate lets in and forgets the rest of it".split()
    for number in range(20):
        draw = random.Random(number)
        folder.joinpath(f"{number:02}.txt").write_text(
            " ".join(draw.choice(words) for _ in range(40))
        )
    return folder


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory):
    """Runs of the same configuration compile once, also without JAX_COMPILATION_CACHE_DIR."""
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """What takes long says so; here that would depend on the machine."""
    monkeypatch.setattr(progress, "FIRST", 1e6)


@pytest.fixture
def no_op_step(monkeypatch):
    """Replaces the training step by one that only counts, for tests of what is around it. Its value
    names the step with a NaN.
    """
    poisoned = {"at": None}

    def make_train_step(*_):
        def step(state, batch):
            number = int(state.step) + 1
            loss = jnp.float32("nan" if number == poisoned["at"] else number)
            skipped = jnp.int32(number == poisoned["at"])
            metrics = {
                "loss": loss,
                "tokens": jnp.int32(64),
                "grad_norm": loss,
                "learning_rate": jnp.float32(0),
            }
            return state._replace(step=state.step + 1), metrics | {
                "skipped": skipped,
                "skipped_in_a_row": skipped,
            }

        return step

    monkeypatch.setattr(loop, "make_train_step", make_train_step)
    return poisoned


@pytest.fixture
def tiny(corpus):
    """Makes the tiny configuration with overrides: tiny({"train.steps": 3})."""

    def make(overrides: dict | None = None) -> Config:
        return load(str(CONFIG_FILE), {"data.path": str(corpus), **(overrides or {})})

    return make


@pytest.fixture
def arguments(corpus):
    """The command line of the tiny run: arguments(workdir, "--config.train.steps=3")."""

    def make(workdir, *more: str) -> list[str]:
        return [
            "train.py",
            f"--config={CONFIG_FILE}",
            f"--config.data.path={corpus}",
            f"--workdir={workdir}",
            *more,
        ]

    return make
