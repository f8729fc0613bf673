"""Every field of `ModelConfig` changes the model or is refused; dropout acts in training only."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from xlstm_jax import config_checks
from xlstm_jax.config import Config, ModelConfig
from xlstm_jax.errors import UserError
from xlstm_jax.models import build_model

BASE = {
    "paper": ModelConfig(dim=16, num_blocks=4, num_heads=2, vocab_size=23, slstm_positions=(1,)),
    "7b": ModelConfig(dim=16, num_blocks=4, num_heads=2, vocab_size=23, block="7b"),
    "slstm": ModelConfig(dim=16, num_blocks=2, num_heads=2, vocab_size=23, ratio="0:1"),
}

CHANGES = {
    "vocab_size": 29,
    "dim": 24,
    "num_blocks": 6,
    "num_heads": 4,
    "block": "7b",  # and "paper" where the base is "7b"
    "ratio": "1:1",
    "slstm_positions": (0,),
    "up_factor": 8.0,
    "conv_width": 3,
    "qkv_block_size": 8,
    "qk_factor": 1.0,
    "ffn_factor": 8.0,
    "input_gate": "sigmoid",
    "input_gate_bias": -3.0,
    "input_gate_bias_std": 0.4,
    "forget_gate_bias": (1.0, 2.0),
    "slstm_recurrent_init": "uniform",
    "gate_soft_cap": 2.0,
    "logit_soft_cap": 0.5,
    "norm_eps": 1e-1,
    "cell_eps": 0.5,
    "tie_embeddings": True,
    "dropout": 0.5,
    "dtype": "bfloat16",
    "remat": "block",
    "mlstm_backend": "recurrent",
    "slstm_backend": "recurrent",  # so far the only one: tested by name below
    "chunk_size": 4,
    "recurrent_gradient_clip": 1e-6,
}

TOKENS = jnp.arange(20).reshape(2, 10)


def traces(config: ModelConfig) -> tuple[str, str]:
    """The programs that initialise the parameters and that compute loss and gradient; nothing is
    compiled.
    """
    model = build_model(config)

    def loss(variables):
        logits, _ = model.apply(variables, TOKENS, train=True, rngs={"dropout": jax.random.key(1)})
        return jnp.square(logits).sum()

    init, variables = jax.make_jaxpr(model.init, return_shape=True)(jax.random.key(0), TOKENS)
    return str(init), str(jax.make_jaxpr(jax.value_and_grad(loss))(nn.meta.unbox(variables)))


@functools.cache
def base_traces(base: str) -> tuple[str, str]:
    return traces(BASE[base])


@pytest.mark.slow
@pytest.mark.parametrize("field", sorted(CHANGES.keys() - {"slstm_backend"}))
@pytest.mark.parametrize("base", BASE)
def test_each_field_changes_the_program_or_is_refused(base, field):
    value = "paper" if (base, field) == ("7b", "block") else CHANGES[field]
    changed = dataclasses.replace(BASE[base], **{field: value})
    assert changed != BASE[base], (
        f"CHANGES[{field!r}] is the value of the base configuration: the test changes nothing"
    )
    try:
        config_checks.check(Config(model=changed))
    except UserError as error:
        assert f"model.{field}" in str(error)
    else:
        assert traces(changed) != base_traces(base)


def test_no_field_is_forgotten():
    assert CHANGES.keys() == {field.name for field in dataclasses.fields(ModelConfig)}


@pytest.mark.parametrize("field", ["mlstm_backend", "slstm_backend"])
def test_a_backend_that_does_not_exist_is_named(field):
    changed = dataclasses.replace(BASE["paper"], **{field: "no_such_backend"})
    with pytest.raises(ValueError, match="no_such_backend"):
        traces(changed)


@pytest.mark.slow
def test_dropout_is_off_unless_training(config, random_variables, jitted):
    config = dataclasses.replace(config, dropout=0.5)
    model, variables = jitted(config), random_variables(config)
    without, _ = jitted(dataclasses.replace(config, dropout=0.0)).apply(variables, TOKENS)
    evaluated, _ = model.apply(variables, TOKENS, rngs={"dropout": jax.random.key(0)})
    np.testing.assert_array_equal(evaluated, without)
    first, _ = model.apply(variables, TOKENS, train=True, rngs={"dropout": jax.random.key(0)})
    second, _ = model.apply(variables, TOKENS, train=True, rngs={"dropout": jax.random.key(1)})
    assert np.abs(first - second).max() > 0
