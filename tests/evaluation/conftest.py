"""A small random model of bytes, and a text that it is evaluated on."""

import functools

import jax
import numpy as np
import pytest

from xlstm_jax.config import Config
from xlstm_jax.data.config import DataConfig
from xlstm_jax.models import ModelConfig, build_model
from xlstm_jax.runs.checkpoints import write_params
from xlstm_jax.runs.params import language_model_params
from xlstm_jax.tasks.config import EvalConfig

CONFIG = ModelConfig(vocab_size=320, dim=16, num_blocks=1, mixers={"mlstm": {"num_heads": 2}})


# What bounds the text: a cache, and a number of learned positions.
ATTENTION = ModelConfig(
    vocab_size=320,
    dim=16,
    num_blocks=1,
    blocks="attention+mlp",
    positions="learned",
    max_positions=24,
    mixers={"attention": {"num_heads": 2, "theta": None}},
)


@functools.cache
def random_model(config: ModelConfig = CONFIG):
    """(model, params): a random one whose probabilities are far from uniform."""
    model = build_model(config)
    rng = np.random.default_rng(0)
    return model, jax.tree.map(
        lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), language_model_params(model)
    )


@functools.cache
def logits_of(config: ModelConfig = CONFIG):
    """Jitted (tokens [B T]) -> log-probabilities of the next token."""
    model, params = random_model(config)
    return jax.jit(
        lambda tokens: jax.nn.log_softmax(model.apply({"params": params}, tokens)[0], axis=-1)
    )


@pytest.fixture(scope="session")
def text_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(" ".join(str(number) for number in range(400)))
    return path


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory, text_file):
    folder = tmp_path_factory.mktemp("evaluated") / "run"
    data = DataConfig(path=str(text_file), validation_path=str(text_file), context_length=16)
    write_params(
        folder, Config(model=CONFIG, data=data, eval=EvalConfig(batch_size=4)), random_model()[1]
    )
    return folder
